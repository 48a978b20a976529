"""Says what is in the database: `python check.py`, with the environment that the pipeline had."""

import hashlib
import sys
from typing import NamedTuple

from cities import OBJECTS, first_cities
from database import database

from meshkit import ConfigError, Unavailable


class Report(NamedTuple):
    """What is in the database.

    Attributes:
        rows: How many rows there are.
        objects: How many different objects they are of.
        missing: How many of the first `PIPELINE_OBJECTS` are not there.
        checksum: SHA-256 of all that is saved, in the order of the objects' numbers, whoever saved it when.
    """

    rows: int
    objects: int
    missing: int
    checksum: str

    @property
    def ok(self) -> bool:
        """Whether each object is there once, and nothing else."""
        return self.rows == self.objects == OBJECTS and not self.missing


def check() -> Report:
    """Read the whole database.

    Raises:
        Unavailable: There is none.
        ConfigError: `DATABASE_URL` is wrong, or psycopg is not installed.
    """
    with database() as db:
        rows = db.execute("SELECT * FROM cities ORDER BY geonameid").fetchall()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(tuple(row)).encode())
    saved = {row[0] for row in rows}
    missing = sum(city.geonameid not in saved for city in first_cities())
    return Report(len(rows), len(saved), missing, digest.hexdigest())


if __name__ == "__main__":
    try:
        report = check()
    except (Unavailable, ConfigError) as error:
        sys.exit(f"check.py: {getattr(error, 'message', error)}")
    print(
        f"{report.rows} objects saved, {report.missing} missing; each once: {'ok' if report.ok else 'NOT OK'}"
    )
    print(f"checksum {report.checksum}")
    sys.exit(not report.ok)
