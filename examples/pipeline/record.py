"""The fetcher's record of the chunks that are not saved: a SQLite file, so that it survives the fetcher."""

import asyncio
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from cities import CHUNKS, OBJECTS
from database import data_file, which

from meshkit import ConfigError

PATIENCE = 10.0  # seconds; a chunk that is not saved by then may be sent again


class Record:
    """The chunks that are not saved: first those that never were sent, then in the order of sending.

    Args:
        db: The file.
        unsaved: The chunks' numbers.
    """

    def __init__(self, db: sqlite3.Connection, unsaved: list[int]) -> None:
        self._db = db
        self._sent = dict.fromkeys(unsaved, -math.inf)

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def unsent(self) -> int:
        """How many have not been sent since the record was opened."""
        return sum(math.isinf(when) for when in self._sent.values())

    def take(self, now: float) -> int | None:
        """The chunk to be sent now, in seconds of the event loop; None if all are under way or saved."""
        number = next(iter(self._sent), None)
        if number is None or self._sent[number] > now - PATIENCE:
            return None
        del self._sent[number]
        self._sent[number] = now
        return number

    async def cross_off(self, number: int) -> bool:
        """A chunk is saved. Returns whether that was news, and by then it is on the disk."""
        if number not in self._sent:
            return False
        await asyncio.to_thread(self._db.execute, "DELETE FROM unsaved WHERE chunk = ?", (number,))
        del self._sent[number]
        return True


@contextmanager
def record() -> Iterator[Record]:
    """Open the record, or begin one with all chunks in it.

    Raises:
        ConfigError: Another fetcher has it; it is of another number of objects, or of another database;
            or there is no folder for it.
    """
    wanted = OBJECTS, which()
    file = data_file("record.sqlite")
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # until it is closed: there is one fetcher
        try:
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ConfigError(f"{file}: {error}; there can be only one fetcher") from None
        if not db.execute("SELECT * FROM sqlite_master").fetchall():
            db.execute("CREATE TABLE work (objects INTEGER, place TEXT)")
            db.execute("INSERT INTO work VALUES (?, ?)", wanted)
            db.execute("CREATE TABLE unsaved (chunk INTEGER PRIMARY KEY)")
            db.executemany("INSERT INTO unsaved VALUES (?)", ((number,) for number in range(CHUNKS)))
        [found] = db.execute("SELECT * FROM work")
        if found != wanted:
            one, other = ("{} objects in {}".format(*each) for each in (found, wanted))
            raise ConfigError(f"{file} is of {one}, not of {other}; to begin anew remove {file.parent}")
        db.execute("COMMIT")
        yield Record(db, [number for (number,) in db.execute("SELECT chunk FROM unsaved ORDER BY chunk")])
