"""The work that every contender does, a typed echo, and the load that is put on it.

Times are in microseconds and taken in the process that calls; so are percentiles, and only they travel on.
"""

import asyncio
import collections
import ctypes
import functools
import itertools
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

Call = Callable[[int], Awaitable[object]]
Figures = dict[str, Any]

# Calls that may wait for their answers in an open loop; Envoy admits 1,024 by default.
OUTSTANDING = 1_000
# Microseconds after which a call of an open loop was sent late.
LATE = 1_000

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_libc = ctypes.CDLL(None, use_errno=True)


class Ask(msgspec.Struct):
    """A request."""

    name: str
    n: int


class Answer(msgspec.Struct):
    """Its reply."""

    greeting: str
    n: int


def answer(ask: Ask) -> Answer:
    """What every service does."""
    return Answer(f"hello {ask.name}", ask.n + 1)


def check(number: int, n: int) -> None:
    """Whether call `n` got its own answer and nobody else's."""
    if number != n + 1:
        raise ValueError(f"call {n} got the answer {number}")


def check_bytes(got: bytes, sent: bytes) -> None:
    """Whether bytes came back as they were."""
    if got != sent:
        raise ValueError(f"{len(sent)} bytes came back as {len(got)} others")


def headers(n: int) -> dict[str, str]:
    """What a mesh sends along: the trace (55 bytes), who calls, and the time left."""
    return {
        "traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{n:016x}-01",
        "Mesh-Caller": "driver/5k2mmp8vbvdzcd0h2QwZ9f",
        "Mesh-Timeout": "5000",
    }


def loads(call: Call) -> dict[str, Callable[..., Awaitable[Figures]]]:
    """The loads, as commands."""
    return {load.__name__: functools.partial(load, call) for load in (sequential, concurrent, paced)}


async def sequential(call: Call, count: int) -> Figures:
    """One after the other."""
    taken: list[float] = []
    processor = time.process_time()
    for n in range(count):
        started = time.perf_counter()
        await call(n)
        taken.append(time.perf_counter() - started)
    return {
        "calls": count,
        "processor": (time.process_time() - processor) / count * 1e6,
        **percentiles(taken),
    }


async def concurrent(call: Call, count: int, in_flight: int) -> Figures:
    """So many in flight: each caller sends its next call when its last is answered."""
    taken: list[float] = []
    numbers = iter(range(count))

    async def caller() -> None:
        for n in numbers:
            began = time.perf_counter()
            await call(n)
            taken.append(time.perf_counter() - began)

    processor, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    seconds = time.perf_counter() - started
    processor = time.process_time() - processor
    return {
        "calls": count,
        "rate": count / seconds,
        "processor": processor / count * 1e6,
        **percentiles(taken),
    }


async def paced(call: Call, rate: float, seconds: float) -> Figures:
    """An open loop: calls are sent at their times, whatever became of those before.

    A call's latency counts from when it should have been sent, not from when it was: else a stall would hide
    all calls that it delayed (coordinated omission). Beyond a bound on those outstanding a call is dropped
    and counted, and so is one that fails; neither is among the latencies.
    """
    taken: list[float] = []
    errors: collections.Counter[str] = collections.Counter()
    running: set[asyncio.Task[None]] = set()
    late = dropped = 0

    async def one(n: int, due: float) -> None:
        try:
            await call(n)
        except Exception as error:  # noqa: BLE001 # counted and reported, whatever it is
            errors[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            taken.append(time.perf_counter() - due)

    def send(n: int, due: float) -> None:
        nonlocal late, dropped
        if len(running) >= OUTSTANDING:
            dropped += 1
            return
        late += (time.perf_counter() - due) * 1e6 > LATE
        task = asyncio.create_task(one(n, due))
        running.add(task)
        task.add_done_callback(running.discard)

    processor, count = time.process_time(), round(rate * seconds)
    await pace(send, rate, count)
    if running:
        await asyncio.wait(running)
    return {
        "calls": count - dropped,
        "dropped": dropped,
        "late": late,
        "failed": errors.total(),
        "error": errors.most_common(1)[0][0] if errors else None,
        "processor": (time.process_time() - processor) / max(1, count - dropped) * 1e6,
        **percentiles(taken),
    }


async def pace(send: Callable[[int, float], None], rate: float, count: int) -> None:
    """Have numbers sent, each at its time. By a timerfd: event loops' own timers are a millisecond coarse."""
    loop, timer = asyncio.get_running_loop(), _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    done = loop.create_future()
    interval = round(1e9 / rate)
    started = time.perf_counter_ns() + interval  # the same clock
    numbers = iter(range(count))

    def tick() -> None:
        for n in itertools.islice(numbers, int.from_bytes(os.read(timer, 8), sys.byteorder)):
            send(n, (started + n * interval) / 1e9)
            if n == count - 1:
                done.set_result(None)

    times = struct.pack("4l", *divmod(interval, 1_000_000_000), *divmod(started, 1_000_000_000))
    if _libc.timerfd_settime(timer, _ABSOLUTE, times, None):
        raise OSError(ctypes.get_errno(), "timerfd_settime")
    loop.add_reader(timer, tick)
    try:
        await done
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def percentiles(taken: list[float]) -> Figures:
    """p50, p99 and p99.9, in microseconds."""
    taken = sorted(taken) or [float("nan")]
    return {
        name: taken[min(len(taken) - 1, int(len(taken) * part))] * 1e6
        for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }
