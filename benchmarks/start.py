"""The part start: how long starting takes, and what a service holds that nobody calls.

`python -m benchmarks.start` measures the first alone, and exits with 1 if a bound is exceeded.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
from nats.aio.msg import Msg

from benchmarks import command, environments, report
from benchmarks.environments import Missing
from benchmarks.field import CONTENDERS, Staged, absence, staged
from benchmarks.report import Settings, Table, figure
from benchmarks.stage import memory, processor_time
from meshkit import Service, connect
from meshkit.transport.server import EmbeddedServer

ROUNDS = 15
# Milliseconds.
IMPORT_BOUND = 150
SERVER_BOUND = 500
# A process at rest: seconds until it is, and for which it is then watched; and the calls that come after.
SETTLE, WATCH = 0.3, 1.0
CALLS = 2_500
HELD = ["RSS MiB", "PSS MiB", "private MiB", "processor ms/s", f"RSS MiB after {CALLS:,} calls"]
# Which process of which contender.
SERVICES: dict[str, tuple[str, Callable[[Staged], int]]] = {
    f"service: {CONTENDERS[name].title}": (name, lambda on: on.server.pid)
    for name in ("nats_py", "meshkit", "faststream", "grpc_aio")
}
OTHERS: dict[str, tuple[str, Callable[[Staged], int]]] = {
    "one Envoy": ("grpc_envoy", lambda on: on.between["proxies"][0]),
    "nats-server": ("nats_py", lambda on: on.between["nats-server"][0]),
}

Samples = dict[str, list[float]]


def measure(settings: Settings) -> dict[str, Any]:
    """Both."""
    steps = starting(2 if settings.quick else ROUNDS)
    return {"tables": [steps, idle(settings)], "missed": not settings.quick and exceeded(steps)}


def starting(rounds: int) -> Table:
    """What each step takes; the bounds are in its rows."""
    taken, missing = imports(rounds)
    added = [
        one - bare for one, bare in zip(taken["import meshkit"], taken["a bare interpreter"], strict=True)
    ]
    rows: list[list[Any]] = [[what, figure(values), None] for what, values in taken.items()]
    rows += [[f"{what}: missing", None, None] for what in missing]
    rows += [
        ["what import meshkit adds to the interpreter", figure(added), IMPORT_BOUND],
        ["embedded nats-server, until clients can connect", figure(server(rounds)), SERVER_BOUND],
    ]
    first = asyncio.run(first_calls(rounds))
    rows += [[what, figure(values), None] for what, values in first.items()]
    return {
        "title": "Starting",
        "columns": ["step", "ms", "bound"],
        "rows": rows,
        "notes": [
            "Imports are whole processes, with compiled modules; the rest is on asyncio.",
            *missing.values(),
        ],
    }


def exceeded(table: Table) -> bool:
    """Whether a step takes longer than it may."""
    return any(bound is not None and taken["median"] > bound for _, taken, bound in table["rows"])


# How long it takes


def milliseconds(work: Callable[[], object]) -> float:
    """Milliseconds that something takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def process(python: Path | str, code: str, bytecode: str) -> float:
    """Milliseconds that an interpreter takes for some code, with compiled modules in a folder of ours."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    return milliseconds(lambda: subprocess.run([python, "-c", code], check=True, env=environment))  # noqa: S603 # ours


def imports(rounds: int) -> tuple[Samples, dict[str, str]]:
    """What imports take, each in a process of its own; and what could not be measured, and why."""
    codes: dict[str, tuple[Path | str, str]] = {
        "a bare interpreter": (sys.executable, "pass"),
        "import nats": (sys.executable, "import nats"),
        "import meshkit": (sys.executable, "import meshkit"),
        "import meshkit, and all that a connection needs": (
            sys.executable,
            "import meshkit, meshkit.transport.nats, meshkit.transport.options",
        ),
    }
    missing: dict[str, str] = {}
    try:
        codes["import faststream.nats"] = (environments.python("faststream"), "import faststream.nats")
    except Missing as error:
        missing["import faststream.nats"] = f"import faststream.nats: missing: {error}"
    taken: Samples = {what: [] for what in codes}
    with tempfile.TemporaryDirectory() as bytecode:
        for python, code in codes.values():
            process(python, code, bytecode)
        for _ in range(rounds):
            for what, (python, code) in codes.items():
                taken[what].append(process(python, code, bytecode))
    return taken, missing


def server(rounds: int) -> list[float]:
    """What the embedded server takes until clients can connect."""
    taken: list[float] = []
    for _ in range(rounds):
        one = EmbeddedServer()
        taken.append(milliseconds(one.start))
        one.stop()
    return taken


async def first_calls(rounds: int) -> Samples:
    """What connecting, serving and the first call take, beside bare nats-py."""
    taken: Samples = {}
    with EmbeddedServer() as running:
        for n in range(rounds + 1):
            for who, steps in (("meshkit", meshkit_steps), ("bare nats-py", nats_steps)):
                for what, seconds in (await steps(running.url)).items():
                    if n:  # the first imports what is imported late
                        taken.setdefault(f"{who}: {what}", []).append(seconds * 1000)
    return taken


async def meshkit_steps(url: str) -> dict[str, float]:
    """Seconds for each."""
    service = Service("start")

    @service.endpoint()
    async def hello() -> str:
        return "hello"

    started = time.perf_counter()
    async with connect(url) as mesh:
        connected = time.perf_counter()
        async with mesh.serve(service):
            served = time.perf_counter()
            await mesh.call(hello)
            called = time.perf_counter()
    return {"connect": connected - started, "serve": served - connected, "first call": called - served}


async def nats_steps(url: str) -> dict[str, float]:
    """The same: a subscription that the server knows of is what serving comes to."""

    async def hello(msg: Msg) -> None:
        await msg.respond(b'"hello"')

    started = time.perf_counter()
    client = await nats.connect(url)
    connected = time.perf_counter()
    await client.subscribe("start.hello", cb=hello)
    await client.flush()
    served = time.perf_counter()
    await client.request("start.hello", b"")
    called = time.perf_counter()
    await client.close()
    return {"connect": connected - started, "serve": served - connected, "first call": called - served}


# What is held


def idle(settings: Settings) -> Table:
    """What processes hold that nobody calls, and what those of services hold after some calls."""
    runs = [(loop, what, *where) for loop in settings.loops for what, where in SERVICES.items()]
    runs += [("", what, *where) for what, where in OTHERS.items()]
    rows: list[list[Any]] = []
    absent: list[str] = []
    for loop, what, name, find in runs:
        try:
            rounds = [
                held(name, loop or settings.loops[-1], find)
                for _ in range(1 if settings.quick else settings.rounds)
            ]
        except Exception as error:  # noqa: BLE001 # whatever it is, the others go on
            how, why = absence(error)
            rows.append([loop, f"{what}: {how}", *[None] * len(HELD)])
            absent.append(f"{what}, {loop}: {how}: {why}")
        else:
            rows.append([loop, what, *(figure(each) for each in zip(*rounds, strict=True))])
    return {
        "title": "Held by a process at rest",
        "columns": ["loop", "process", *HELD],
        "rows": rows,
        "notes": [
            "RSS is all that is in memory, PSS divides what is shared, private is what one more would cost.",
            "Each has an environment with what it needs, and the few modules of the suite that drive it.",
            *absent,
        ],
    }


def held(name: str, loop: str, find: Callable[[Staged], int]) -> list[float]:
    """Memory and processor time of one of a contender's processes, at rest and after calls."""
    with staged(name, loop) as on:
        pid = find(on)
        time.sleep(SETTLE)
        at_rest, before = memory(pid), processor_time(pid)
        time.sleep(WATCH)
        spent = processor_time(pid) - before
        on.load("concurrent", count=CALLS, in_flight=64)
        return [*at_rest, spent / WATCH * 1000, memory(pid).rss]


def main() -> None:
    """Measure and judge."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.start", description="How long starting takes."
    ).parse_args()
    table = starting(ROUNDS)
    print(report.text(table))
    if exceeded(table):
        sys.exit("a bound is exceeded")


if __name__ == "__main__":
    command.run(main)
