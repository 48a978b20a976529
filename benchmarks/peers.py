"""The part peers: the same typed echo on everything that a user would pick instead of meshkit.

In each round every contender has its turn, in one order and then in the other, with processes and a
nats-server of its own. A ratio is to the bare client of the same round and loop; what is shown is the median
of the rounds.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks import bounds
from benchmarks.field import CONTENDERS, Absent, absence, staged
from benchmarks.report import Settings, figure
from benchmarks.stage import memory

IN_FLIGHT = 64
# Warm-up, one after the other, with so many in flight, with handlers that wait.
CALLS = (2_500, 3_000, 20_000, 1_280)
QUICK_CALLS = (500, 300, 2_000, 192)
NAP = 0.005
WAITING = (
    *("nats_py_headers", "nats_py_tasks", "faststream", "faststream_64"),
    *("grpc_aio", "aiohttp_direct", "meshkit"),
)
QUICK = (
    *("nats_py", "nats_py_headers", "nats_py_headers_there", "faststream", "grpc_envoy"),
    *("wire_headers", "meshkit_bare", "meshkit"),
)
BASES = {"/ no headers": "nats_py", "/ three headers": "nats_py_headers"}

# Of each contender and loop, what came of each round.
Measured = dict[tuple[str, str], dict[str, list[float]]]


def measure(settings: Settings) -> dict[str, Any]:
    """All of it."""
    measured: Measured = defaultdict(lambda: defaultdict(list))
    absent: Absent = {}
    # A loop after the other: what is compared has its turns close together.
    turns = [(name, loop, run) for loop in (*settings.loops, "node") for name, run in _turns(settings, loop)]
    for number in range(settings.rounds):
        print(f"peers: round {number + 1} of {settings.rounds}", file=sys.stderr)
        for name, loop, run in turns if number % 2 == 0 else reversed(turns):
            if (name, loop) in absent:
                continue
            try:
                run(measured[name, loop], name, loop, settings)
            except Exception as error:  # noqa: BLE001 # whatever it is, the others go on
                absent[name, loop] = absence(error)
                print(f"{CONTENDERS[name].title}, {loop}: {error}", file=sys.stderr)
    judged = bounds.judge(measured, settings)
    tables = [_calls(measured, absent), _processor(measured), _memory(measured), _waiting(measured)]
    return {
        "tables": [*tables, judged],
        "plots": [plot for loop in settings.loops for plot in _plots(measured, loop)],
        "missed": not settings.quick and not bounds.hold(judged),
    }


_Run = Callable[[dict[str, list[float]], str, str, Settings], None]


def _turns(settings: Settings, loop: str) -> list[tuple[str, _Run]]:
    """Who does what on a loop in a round; Node's is its own."""
    asked = settings.only or (QUICK if settings.quick else CONTENDERS)
    chosen = [name for name in CONTENDERS if name in asked and (name == "node_services") == (loop == "node")]
    working = [(name, _work) for name in chosen]
    waiting = [(name, _wait) for name in chosen if name in WAITING]
    together = [(name, _together) for name in chosen if name == "meshkit"]
    return [*working, *waiting, *together]


def _work(into: dict[str, list[float]], name: str, loop: str, settings: Settings) -> None:
    """Calls that are answered at once."""
    warm_up, alone, many, _ = QUICK_CALLS if settings.quick else CALLS
    with staged(name, loop) as stage:
        _remember(into, "server", stage.server.pid)
        for pid in stage.between.get("proxies", [])[:1]:
            _remember(into, "proxy", pid)
        stage.load("concurrent", count=warm_up, in_flight=IN_FLIGHT)
        one = stage.load("sequential", count=alone)
        all_ = stage.load("concurrent", count=many, in_flight=IN_FLIGHT)
    into["rate"].append(all_["rate"])
    for part in ("p50", "p99"):
        into[part].append(all_[part])
        into[f"alone {part}"].append(one[part])
    into["alone total"].append(one["processor"]["total"])
    for what, spent in all_["processor"].items():
        into[what].append(spent)


def _remember(into: dict[str, list[float]], what: str, pid: int) -> None:
    for kind, size in memory(pid)._asdict().items():
        into[f"{what} {kind}"].append(size)


def _wait(into: dict[str, list[float]], name: str, loop: str, settings: Settings) -> None:
    """Calls to a handler that waits."""
    count = (QUICK_CALLS if settings.quick else CALLS)[3]
    with staged(name, loop, nap=NAP) as stage:
        stage.load("concurrent", count=IN_FLIGHT, in_flight=IN_FLIGHT)
        waited = stage.load("concurrent", count=count, in_flight=IN_FLIGHT)
    into["waiting rate"].append(waited["rate"])
    into["waiting p50"].append(waited["p50"])


def _together(into: dict[str, list[float]], name: str, loop: str, _: Settings) -> None:
    """Ten calls at once, each of which sleeps for a tenth of a second."""
    with staged(name, loop, nap=0.1) as stage:
        stage.load("concurrent", count=10, in_flight=10)
        into["together"].append(10 / stage.load("concurrent", count=10, in_flight=10)["rate"])


# Tables


def ratio(measured: Measured, key: tuple[str, str], what: str, base: str) -> dict[str, Any] | None:
    """To another contender, round by round; Node's to uvloop's."""
    loop = "uvloop" if key[1] == "node" else key[1]
    others = measured[base, loop][what] if (base, loop) in measured else []
    # Who failed in a later round has fewer.
    rounds = [one / other for one, other in zip(measured[key][what], others, strict=False)]
    return figure(rounds) if rounds else None


def _cells(measured: Measured, key: tuple[str, str], *whats: str) -> list[Any]:
    found = measured[key]
    return [figure(found[what]) if found.get(what) else None for what in whats]


def _spread(rounds: list[float]) -> float | None:
    """How far the rounds lie apart, in percent; None if there is one."""
    if len(rounds) < 2:
        return None
    return (max(rounds) - min(rounds)) / statistics.median(rounds) * 100


def _keys(measured: Measured, what: str) -> list[tuple[str, str]]:
    """Who has such a figure, loop by loop."""
    order = list(CONTENDERS)
    found = [key for key, figures in measured.items() if figures.get(what)]
    return sorted(found, key=lambda key: (key[1], order.index(key[0])))


def _calls(measured: Measured, absent: Absent) -> dict[str, Any]:
    keys = _keys(measured, "rate")
    rows = [
        [
            *(key[1], CONTENDERS[key[0]].title),
            *_cells(measured, key, "rate"),
            _spread(measured[key]["rate"]),
            *(ratio(measured, key, "rate", base) for base in BASES.values()),
            *_cells(measured, key, "p50", "p99", "alone p50", "alone p99"),
            *(ratio(measured, key, "alone p50", base) for base in BASES.values()),
        ]
        for key in keys
    ]
    rows += [
        [loop, f"{CONTENDERS[name].title}: {how}", *[None] * 10]
        for (name, loop), (how, _) in absent.items()
        if (name, loop) not in keys
    ]
    return {
        "title": f"Calls, {IN_FLIGHT} in flight and one after the other",
        "columns": [
            *("loop", "contender", "calls/s", "spread %", *BASES, "p50 µs", "p99 µs"),
            *("alone p50 µs", "alone p99 µs", *(f"alone p50 {base}" for base in BASES)),
        ],
        "rows": rows,
        "notes": [
            "Ratios are to bare nats-py without headers and with three, there and back; Node's to uvloop's.",
            "The spread is between the slowest and the fastest round, to their median.",
            "meshkit's calls carry three headers (trace, caller, time left), its replies none.",
            "A bare callback takes one message at a time; meshkit, gRPC and aiohttp take them side by side.",
            "The calls of meshkit are made in a handler, as a service makes them, but all in one call of it.",
            "So it reads the trace that it passes on only once; the others write another for each call.",
            "An Envoy here is the cheapest there is: one worker, one route, no log, no tracing, no policy.",
            "FastStream logs nothing here; by default it writes a line for each message.",
            *(
                f"{CONTENDERS[name].title}, {loop}: {how}: {why}"
                for (name, loop), (how, why) in absent.items()
            ),
        ],
    }


def _processor(measured: Measured) -> dict[str, Any]:
    whats = ("client", "server", "nats-server", "proxies", "total")
    rows = [
        [
            *(key[1], CONTENDERS[key[0]].title),
            *_cells(measured, key, *whats),
            *(ratio(measured, key, "total", base) for base in BASES.values()),
            *_cells(measured, key, "alone total"),
        ]
        for key in _keys(measured, "rate")
    ]
    return {
        "title": f"Processor time for a call, {IN_FLIGHT} in flight",
        "columns": ["loop", "contender", *(f"{what} µs" for what in whats), *BASES, "alone total µs"],
        "rows": rows,
        "notes": ["User and system time of each process, by its own clock."],
    }


def _memory(measured: Measured) -> dict[str, Any]:
    kinds = ("rss", "pss", "private")
    rows = [
        [key[1], CONTENDERS[key[0]].title, *_cells(measured, key, *(f"server {kind}" for kind in kinds))]
        for key in _keys(measured, "rate")
    ]
    rows += [
        [
            *(key[1], f"one Envoy of {CONTENDERS[key[0]].title}"),
            *_cells(measured, key, *(f"proxy {kind}" for kind in kinds)),
        ]
        for key in _keys(measured, "proxy rss")
    ]
    return {
        "title": "Memory of a service's process before its first call",
        "columns": ["loop", "contender", "resident MiB", "proportional MiB", "private MiB"],
        "rows": rows,
        "notes": [
            "Proportional: what is shared is divided among those that share it, so other processes matter.",
            "Private: what it alone has written to. Most of an Envoy's resident memory is its binary.",
        ],
    }


def _waiting(measured: Measured) -> dict[str, Any]:
    rows = [
        [
            *(key[1], CONTENDERS[key[0]].title),
            *_cells(measured, key, "waiting rate"),
            ratio(measured, key, "waiting rate", "faststream"),
            *_cells(measured, key, "waiting p50"),
        ]
        for key in _keys(measured, "waiting rate")
    ]
    return {
        "title": f"Handlers that wait {NAP * 1000:.0f} ms, {IN_FLIGHT} in flight",
        "columns": ["loop", "contender", "calls/s", "/ FastStream", "p50 µs"],
        "rows": rows,
        "notes": [
            f"No more than {IN_FLIGHT / NAP:,.0f} calls/s are possible with handlers that wait that long.",
            "By default nats-py and FastStream run one handler at a time.",
        ],
    }


def _plots(measured: Measured, loop: str) -> list[dict[str, Any]]:
    shown = {
        "rate": ("Calls", "calls/s"),
        "total": ("Processor time for a call", "µs"),
        "alone p50": ("p50 alone", "µs"),
    }
    return [
        {
            "title": f"{what}, {loop}",
            "x": unit,
            "bars": {
                CONTENDERS[key[0]].title: statistics.median(measured[key][name])
                for key in _keys(measured, name)
                if key[1] in {loop, "node"}
            },
        }
        for name, (what, unit) in shown.items()
    ]
