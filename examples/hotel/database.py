"""A SQLite file for each service that keeps something: its state survives it, and its instances share it."""

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

FOLDER = Path(os.environ.get("HOTEL_DATA", Path(__file__).parent))


@contextmanager
def database(name: str, schema: str) -> Generator[sqlite3.Connection]:
    """Open a service's database."""
    # A `def` handler runs in a thread, and not always in the same one.
    with closing(sqlite3.connect(FOLDER / f"{name}.sqlite", check_same_thread=False)) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {schema}")
        yield db
