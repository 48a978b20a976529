"""What the drills call: a service that does as it is told, and notes every execution as it happens."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from benchmarks.work import Ask
from meshkit import CallPolicy, Context, RateLimit, Service

ATTEMPT_TIMEOUT = 0.5  # seconds, of calls that may be repeated
LIMIT = 100  # a day, for all instances together

service = Service("drill")
limits = Service("limits")


class Done(msgspec.Struct):
    """A reply: whose, and of which process."""

    n: int
    pid: int


class Behaviour:
    """What an instance is told to do.

    Attributes:
        work: Seconds that a call takes.
        fails: Whether it fails then.
    """

    work = 0.005
    fails = False


class Notes:
    """A file to which each execution adds a line, at once: a process that is killed loses none of them."""

    def __init__(self) -> None:
        self._file = -1

    def open(self, directory: str) -> None:
        """Begin."""
        name = Path(directory) / f"{os.getpid()}.notes"
        self._file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, n: int, attempt: str) -> None:
        """Add a line.

        Args:
            what: `begin`, `end`, `fail` or `stop`.
            n: The call's number.
            attempt: Which attempt it is, from 1.
        """
        os.write(self._file, f"{what} {n} {attempt} {time.perf_counter():.6f}\n".encode())


behaviour = Behaviour()
notes = Notes()


async def perform(ask: Ask, ctx: Context) -> Done:
    """An execution."""
    attempt = ctx.headers.get("Mesh-Attempt", "1")
    if not attempt.isdecimal() or len(attempt) > 4:
        attempt = "0"  # anybody may write anything there
    notes.write("begin", ask.n, attempt)
    ends = "stop"
    try:
        await asyncio.sleep(behaviour.work)
        ends = "fail" if behaviour.fails else "end"
    finally:
        notes.write(ends, ask.n, attempt)
    if behaviour.fails:
        raise RuntimeError("as told")
    return Done(ask.n, os.getpid())


@service.endpoint(idempotent=True, call=CallPolicy(attempt_timeout=ATTEMPT_TIMEOUT))
async def read(ask: Ask, ctx: Context) -> Done:
    """Work that may be done twice."""
    return await perform(ask, ctx)


@service.endpoint()
async def write(ask: Ask, ctx: Context) -> Done:
    """Work that must not be done twice."""
    return await perform(ask, ctx)


@service.endpoint()
async def chain(ask: Ask, ctx: Context) -> Done:
    """Have another instance do it."""
    return await ctx.mesh.call(write, ask)


@service.endpoint()
async def many(ask: Ask) -> AsyncGenerator[Done]:
    """Answer a hundred times."""
    for _ in range(100):
        yield Done(ask.n, os.getpid())


@limits.endpoint(rate_limit=RateLimit(f"{LIMIT}/day", scope="mesh"))
async def limited(ask: Ask, ctx: Context) -> Done:
    """Work of which there is only so much."""
    return await perform(ask, ctx)
