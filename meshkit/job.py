"""Bounded work: how much of it there is, and how far it is."""

import asyncio
from typing import Annotated

import msgspec

from meshkit.telemetry.distribution import Count

# Until the next millennium; what others report is checked when it is decoded.
_LONGEST = 3.2e10
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST)]


MOST_JOBS = 100
"""Of one instance or client; the oldest are forgotten."""
_LONGEST_NAME = 100


class JobReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a job is; the fields are those of Job.

    Attributes:
        seconds_left: How long it still takes at this rate; None where that is not known.
    """

    name: str
    total: Count
    sent: Count = 0
    done: Count = 0
    failed: Count = 0
    seconds_left: _Seconds | None = None


class Job:
    """Bounded work. Made by `mesh.job`; whoever does it counts.

    Attributes:
        name: What it is called.
        total: Of how many parts it consists.
        sent: How many have been handed out.
        done: How many are done.
        failed: How many never will be.
    """

    __slots__ = ("_began", "_done_before", "_loop", "done", "failed", "name", "sent", "total")

    def __init__(self, name: str, total: int, sent: int, done: int, failed: int) -> None:
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
            raise ValueError(
                f"a job's name is printable text of up to {_LONGEST_NAME} characters, not {name!r}"
            )
        for what, count in (("total", total), ("sent", sent), ("done", done), ("failed", failed)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:  # pyright: ignore[reportUnnecessaryIsInstance] # likewise
                raise ValueError(f"job {name!r}: {what} is a whole number from 0, not {count!r}")
        self.name = name
        self.total = total
        self.sent = sent
        self.done = done
        self.failed = failed
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._done_before = done + failed

    @property
    def left(self) -> int:
        """How many are neither done nor failed."""
        return max(0, self.total - self.done - self.failed)

    @property
    def seconds_left(self) -> float | None:
        """How long it still takes at the rate so far; None while nothing is done, or if it is for ever."""
        if not self.left:
            return 0.0
        finished = self.done + self.failed - self._done_before
        if finished <= 0:
            return None
        seconds = self.left * (self._loop.time() - self._began) / finished
        return seconds if seconds <= _LONGEST else None

    def report(self) -> JobReport:
        """How far it is."""
        # Whatever somebody has counted, the report can be read.
        counts = (max(0, int(count)) for count in (self.total, self.sent, self.done, self.failed))
        return JobReport(self.name, *counts, seconds_left=self.seconds_left)
