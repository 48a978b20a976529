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
SQLITE = "cities.sqlite"

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
        where = f"the database{'' if URL else f' {FOLDER / SQLITE}'}"
        raise Unavailable(f"{where}: {' '.join(str(error).split())}") from error


def which() -> str:
    """Which database it is, without user and password.

    Raises:
        ConfigError: As in `database`.
    """
    if not URL:
        return "SQLite"
    named = _psycopg()[1]
    keys = [key for key in ("service", "host", "hostaddr", "port", "dbname") if key in named]
    return " ".join(["PostgreSQL", *(f"{key}={named[key]}" for key in keys)])


def data_file(name: str) -> Path:
    """A file in the folder `PIPELINE_DATA`; made, and empty, if there is none.

    Raises:
        ConfigError: That cannot be.
    """
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).touch()
    except OSError as error:
        raise ConfigError(f"PIPELINE_DATA is a folder to write to, not {FOLDER}: {error.strerror}") from None
    return FOLDER / name


def _driver() -> tuple[Any, Any]:
    if URL:
        psycopg, _ = _psycopg()
        errors = (psycopg.OperationalError, psycopg.errors.UndefinedTable)
        return lambda: psycopg.connect(URL, connect_timeout=5), errors
    # To look is not to make one.
    file = f"{(FOLDER / SQLITE).absolute().as_uri()}?mode=rw"
    return lambda: sqlite3.connect(file, timeout=30, uri=True), sqlite3.OperationalError


def _psycopg() -> tuple[Any, dict[str, Any]]:
    """The package, and what the URL says."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise ConfigError("DATABASE_URL needs psycopg: pip install 'psycopg[binary]'") from None
    try:
        return psycopg, conninfo_to_dict(URL)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"DATABASE_URL is no URL of a PostgreSQL database: {str(error).strip()}") from None


def prepare() -> None:
    """Make the table if there is none.

    Raises:
        Unavailable: As in `database`.
        ConfigError: As in `database`, or there is no folder for SQLite's file.
    """
    if not URL:
        data_file(SQLITE)
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
