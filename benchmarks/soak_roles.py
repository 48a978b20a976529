"""What the soak runs in processes of its own: a service, and a client that makes every kind of call."""

import asyncio
import gc
import itertools
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.work import Answer, Ask
from meshkit import Context, DeadlineExceeded, Mesh, NotFound, Service, connect

IN_FLIGHT = 64
# Every so many calls one of another kind; the latency that is shown is that of the echoes.
OTHERS = 20

service = Service("soak")


@service.endpoint()
async def echo(ask: Ask) -> Answer:
    """Answer."""
    return Answer(f"hello {ask.name}", ask.n + 1)


@service.endpoint()
async def nested(ask: Ask, ctx: Context) -> Answer:
    """Have another call answer."""
    return await ctx.mesh.call(echo, ask)


@service.endpoint()
async def refused() -> None:
    """Raise."""
    raise NotFound("there is none")


@service.endpoint()
async def late() -> None:
    """Take longer than anybody waits."""
    await asyncio.sleep(10)


@service.subscribe("soak.event")
async def event(_: Ask) -> None:
    """Take it."""


async def collected() -> int:
    """How many objects the collector has ever found in cycles, up to now."""
    gc.collect()
    return sum(generation["collected"] for generation in gc.get_stats())


async def look() -> dict[str, int]:
    """What there is while nothing is in flight."""
    generations = gc.get_stats()
    return {
        "tasks": len(asyncio.all_tasks()),
        "collections": sum(generation["collections"] for generation in generations),
        "collected": sum(generation["collected"] for generation in generations),
    }


@asynccontextmanager
async def serve(url: str) -> AsyncGenerator[dict[str, Any]]:
    """The process of the service."""
    async with connect(url) as mesh, mesh.serve(service):
        yield {"look": look, "collected": collected}


@asynccontextmanager
async def client(url: str) -> AsyncGenerator[dict[str, Any]]:
    """The process that calls it."""
    async with connect(url) as mesh:
        kinds = calls(mesh)

        async def cycles(kind: str, count: int) -> int:
            """Objects in cycles that so many calls left behind here."""
            before = await collected()
            await side_by_side(kinds[kind], iter(range(count)))
            return await collected() - before

        # Made once: what measures must not be what grows.
        took = array("Q", bytes(8 * 100_000))

        async def load(seconds: float) -> dict[str, float]:
            return await under_load(kinds, seconds, took)

        yield {"look": look, "load": load, "cycles": cycles, "collected": collected}


def calls(mesh: Mesh) -> dict[str, Callable[[int], Awaitable[object]]]:
    """Every kind of call; each checks what comes of it."""

    async def call_echo(n: int) -> None:
        assert (await mesh.call(echo, Ask("world", n))).n == n + 1

    async def call_nested(n: int) -> None:
        assert (await mesh.call(nested, Ask("world", n))).n == n + 1

    async def call_refused(_: int) -> None:
        try:
            await mesh.call(refused)
        except NotFound:
            return
        raise AssertionError("it was not refused")

    async def call_late(_: int) -> None:
        try:
            await mesh.call(late, timeout=0.01)
        except DeadlineExceeded:
            return
        raise AssertionError("it was not late")

    async def publish(n: int) -> None:
        await mesh.publish("soak.event", Ask("world", n))

    return {
        "echo": call_echo,
        "nested": call_nested,
        "refused": call_refused,
        "late": call_late,
        "event": publish,
    }


async def side_by_side(call: Callable[[int], Awaitable[object]], numbers: Iterator[int]) -> None:
    """Make a call for each number, so many in flight."""

    async def caller() -> None:
        for n in numbers:
            await call(n)

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))


async def under_load(
    kinds: dict[str, Callable[[int], Awaitable[object]]], seconds: float, took: "array[int]"
) -> dict[str, float]:
    """Calls of all kinds for so long; `took` counts the echoes by the hundredths of a millisecond taken."""
    took[:] = array("Q", bytes(8 * len(took)))
    others = itertools.cycle(kind for kind in kinds if kind != "echo")
    started = time.perf_counter()
    numbers = itertools.takewhile(lambda _: time.perf_counter() < started + seconds, itertools.count())
    made = 0

    async def call(n: int) -> None:
        nonlocal made
        if n % OTHERS == 0:
            await kinds[next(others)](n)
        else:
            began = time.perf_counter()
            await kinds["echo"](n)
            took[min(int((time.perf_counter() - began) * 1e5), len(took) - 1)] += 1
        made += 1

    await side_by_side(call, numbers)
    rate = made / (time.perf_counter() - started)
    return {"calls/s": rate, "p50 ms": percentile(took, 0.5), "p99 ms": percentile(took, 0.99)}


def percentile(took: "array[int]", part: float) -> float:
    """Milliseconds within which that part of the calls was answered."""
    wanted = sum(took) * part
    within = itertools.accumulate(took)
    return next(index + 1 for index, count in enumerate(within) if count >= wanted) / 100
