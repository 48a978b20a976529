"""The heavy work: the nearest larger cities of a city, and how many people live around it.

Every larger city is looked at for every city: some 2 ms of plain Python. (NumPy, or a tree of the cities,
would need a fraction of it. But then there would be nothing to share out.)
"""

import asyncio
import heapq
import math
import os
import re
from typing import NamedTuple

from cities import LargerCity, larger_cities
from messages import Chunk, City, MappedChunk, MappedCity, Near

from meshkit import ConfigError

EARTH_RADIUS = 6371.0088  # km, the mean radius R1 of the GRS 80 ellipsoid
NEAREST = 10
AROUND = 100.0  # km

# To show scaling on a machine with few cores: the seconds that a chunk takes, next to none of a processor.
SERVICE_TIME_GIVEN = os.environ.get("PIPELINE_SERVICE_TIME", "0")
if not re.fullmatch(r"[0-9]*\.?[0-9]+", SERVICE_TIME_GIVEN):
    raise ConfigError(
        f"PIPELINE_SERVICE_TIME is a number of seconds, such as 0.5, not {SERVICE_TIME_GIVEN!r}"
    )
SERVICE_TIME = float(SERVICE_TIME_GIVEN)
LARGER = 1_000_000 if SERVICE_TIME else 50_000  # people, to be a larger city

Direction = tuple[float, float, float]


class World(NamedTuple):
    """The larger cities, and where they are as seen from the centre of the Earth."""

    cities: list[LargerCity]
    directions: list[Direction]


def world() -> World:
    """The larger cities: 12,325 with 50,000 people or more."""
    cities = larger_cities(LARGER)
    return World(cities, [direction(city.latitude, city.longitude) for city in cities])


def direction(latitude: float, longitude: float) -> Direction:
    """The unit vector from the centre of the Earth to a place, given in degrees."""
    phi, lambda_ = math.radians(latitude), math.radians(longitude)
    return math.cos(phi) * math.cos(lambda_), math.cos(phi) * math.sin(lambda_), math.sin(phi)


def kilometres(cosine: float) -> float:
    """The great-circle distance of two places, given the cosine of the angle between them, to 100 m."""
    return round(EARTH_RADIUS * math.acos(min(1.0, max(-1.0, cosine))), 1)


def mapped(city: City, world: World) -> MappedCity:
    """Do the heavy work for a city, which is not near to itself."""
    x, y, z = direction(city.latitude, city.longitude)
    cosines = [x * a + y * b + z * c for a, b, c in world.directions]
    horizon = math.cos(AROUND / EARTH_RADIUS)
    people = sum(world.cities[place].population for place, cosine in enumerate(cosines) if cosine >= horizon)
    # Of two that are equally near, the one with the smaller number comes first.
    places = heapq.nlargest(NEAREST + 1, range(len(cosines)), key=cosines.__getitem__)
    near = [
        Near(other.geonameid, other.name, kilometres(cosines[place]))
        for place in places
        if (other := world.cities[place]).geonameid != city.geonameid
    ]
    return MappedCity(city.geonameid, city.name, city.countrycode, people, near[:NEAREST])


async def mapped_chunk(chunk: Chunk, world: World) -> MappedChunk:
    """Do it for a chunk, in a thread: the event loop has the connection to look after."""
    work = asyncio.to_thread(lambda: [mapped(city, world) for city in chunk.cities])
    cities, _ = await asyncio.gather(work, asyncio.sleep(SERVICE_TIME))
    return MappedChunk(chunk.number, cities)
