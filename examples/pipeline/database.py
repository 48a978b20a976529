"""The database: SQLite, or PostgreSQL if `DATABASE_URL` names one. It has each city once."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from messages import MappedChunk

from meshkit import ConfigError, Unavailable

FOLDER = Path(os.environ.get("PIPELINE_DATA", "pipeline-data"))
URL = os.environ.get("DATABASE_URL", "")

SCHEMA = """
CREATE TABLE IF NOT EXISTS cities (
    geonameid INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    countrycode TEXT NOT NULL,
    population_100km INTEGER NOT NULL,
    nearest TEXT NOT NULL
)
"""
INSERT = "INSERT INTO cities VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


@contextmanager
def database() -> Iterator[Any]:
    """A connection of `sqlite3` or `psycopg`; what the block does is committed at its end, or not at all.

    One for each chunk: when the database was away, there is nothing to mend.

    Raises:
        Unavailable: The database cannot be reached, or does not do what is asked.
        ConfigError: `DATABASE_URL` is no URL of PostgreSQL's, or psycopg is not installed.
    """
    connect, errors = _driver()
    try:
        with closing(connect()) as connection:
            yield connection
            connection.commit()
    except errors as error:
        raise Unavailable(f"the database: {' '.join(str(error).split())}") from error


def _driver() -> tuple[Any, Any]:
    if not URL:
        FOLDER.mkdir(parents=True, exist_ok=True)
        return lambda: sqlite3.connect(FOLDER / "cities.sqlite", timeout=30), sqlite3.OperationalError
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise ConfigError("DATABASE_URL needs psycopg: pip install 'psycopg[binary]'") from None
    try:
        conninfo_to_dict(URL)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"DATABASE_URL is no URL of a PostgreSQL database: {str(error).strip()}") from None
    return lambda: psycopg.connect(URL, connect_timeout=5), psycopg.OperationalError


def prepare() -> None:
    """Make the table if there is none."""
    with database() as db:
        # PostgreSQL refuses one of two who make a table at once; in SQLite nobody is to wait for readers.
        db.execute("SELECT pg_advisory_xact_lock(827)" if URL else "PRAGMA journal_mode = WAL")
        db.execute(SCHEMA)


def save(chunk: MappedChunk) -> None:
    """Save a chunk, all of it or nothing; what is there already stays as it is."""
    rows = [
        (city.geonameid, city.name, city.countrycode, city.population_100km, _json(city.nearest))
        for city in chunk.cities
    ]
    with database() as db:
        db.cursor().executemany(INSERT.replace("?", "%s") if URL else INSERT, rows)


def answers() -> None:
    """The health check: healthy is who can read."""
    with database() as db:
        db.execute("SELECT 1 FROM cities LIMIT 1")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
