"""The part latency: calls at a fixed rate, whatever became of those before, and calls with large payloads.

At a fixed rate a latency counts from the time at which the call was to be sent, as `work.paced` has it: who
cannot keep up shows how far they fall behind, and how many calls had to be dropped.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.field import CONTENDERS, Absent, Staged, absence, staged
from benchmarks.report import Settings, Table, figure
from benchmarks.work import LATE, OUTSTANDING

# At fixed rates, in calls per second.
PACED = ("nats_py_headers", "meshkit", "faststream", "grpc_envoy")
RATES = (500, 2_000, 10_000)
# With payloads, in KiB.
LADEN = ("nats_py_headers", "meshkit", "grpc_aio")
SIZES = (1, 10, 100)
MODERATE = 500
IN_FLIGHT = 64

Columns = dict[str, float]
# Of a contender, on a loop, at a rate or size.
Measure = Callable[[str, str, int], Columns]


def measure(settings: Settings) -> dict[str, Any]:
    """Both, on every loop."""

    def paced(name: str, loop: str, rate: int) -> Columns:
        with staged(name, loop) as on:
            return at_rate(on, rate, quick=settings.quick)

    def laden(name: str, loop: str, kib: int) -> Columns:
        with staged(name, loop, payload=kib * 1024) as on:
            return with_payload(on, kib, quick=settings.quick)

    rates = table(settings, "Calls at a fixed rate", "calls/s", RATES, PACED, paced, "p50 µs")
    rates["notes"] += [
        "Latency counts from when a call was to be sent: a stall counts for all calls that it delays.",
        f"Late: sent more than {LATE / 1000:g} ms after its time, by a client that was busy.",
        f"Dropped: not sent, because {OUTSTANDING:,} had no answer yet. Failed: an error, or no answer.",
        "Neither dropped nor failed calls are among the latencies.",
        "Ratios, here and below, are to bare nats-py in the same round.",
    ]
    sizes = table(settings, "Bytes there and back", "KiB", SIZES, LADEN, laden, "calls/s")
    sizes["notes"] += [
        f"p50 and p99 at {MODERATE} calls/s, as above; calls/s and processor time with {IN_FLIGHT} in flight."
    ]
    loop = settings.loops[-1]
    return {
        "tables": [rates, sizes],
        "plots": [plot(rates, loop, "p50 µs"), plot(rates, loop, "p99 µs"), plot(sizes, loop, "p50 µs")],
    }


def at_rate(on: Staged, rate: int, *, quick: bool) -> Columns:
    """An open loop of enough calls for a p99.9 to be more than the slowest of them."""
    seconds = 0.5 if quick else max(3.0, 5_000 / rate)
    on.load("concurrent", count=250 if quick else 2_500, in_flight=IN_FLIGHT)  # to warm up
    got = on.load("paced", rate=rate, seconds=seconds)
    return {
        **{f"{name} µs": got[name] for name in ("p50", "p99", "p99.9")},
        **{f"{name} %": got[name] / (rate * seconds) * 100 for name in ("late", "dropped", "failed")},
    }


def with_payload(on: Staged, kib: int, *, quick: bool) -> Columns:
    """Bytes, at a moderate rate and many in flight."""
    seconds = 0.4 if quick else 3.0
    count = 200 if quick else 10_000 if kib < 10 else 3_000 if kib < 100 else 1_500
    on.load("concurrent", count=count // 4, in_flight=IN_FLIGHT)
    paced = on.load("paced", rate=MODERATE, seconds=seconds)
    many = on.load("concurrent", count=count, in_flight=IN_FLIGHT)
    lost = paced["dropped"] + paced["failed"]
    return {
        "p50 µs": paced["p50"],
        "p99 µs": paced["p99"],
        "dropped, failed %": lost / (MODERATE * seconds) * 100,
        "calls/s": many["rate"],
        "processor µs": many["processor"]["total"],
    }


def table(
    settings: Settings,
    title: str,
    axis: str,
    sizes: tuple[int, ...],
    names: tuple[str, ...],
    one: Measure,
    compared: str,
) -> Table:
    """A row for each loop, size and contender, the first of whom the others are compared with in a column."""
    base = names[0]
    absent: Absent = {}
    rows: list[list[Any]] = []
    columns: list[str] = []
    for loop in settings.loops:
        for size in sizes[::2] if settings.quick else sizes:
            repeat = range(1 if settings.quick else settings.rounds)
            # In one order and then in the other: what the machine does meanwhile is not always the same.
            rounds = [once(names[:: -1 if n % 2 else 1], loop, size, one, absent) for n in repeat]
            for name in names:
                who = CONTENDERS[name].title
                if (name, loop) in absent:
                    rows.append([loop, size, f"{who}: {absent[name, loop][0]}"])
                    continue
                columns = list(rounds[0][name])
                cells = [figure(each[name][column] for each in rounds) for column in columns]
                ratios = [
                    each[name][compared] / each[base][compared]
                    for each in rounds
                    if (base, loop) not in absent
                ]
                rows.append([loop, size, who, *cells, figure(ratios) if ratios else None])
    heads = ["loop", axis, "contender", *columns, f"{compared}, ratio"]
    return {
        "title": title,
        "columns": heads,
        "rows": [[*row, *[None] * (len(heads) - len(row))] for row in rows],
        "notes": [
            f"{CONTENDERS[name].title}, {loop}: {how}: {why}" for (name, loop), (how, why) in absent.items()
        ],
    }


def once(names: tuple[str, ...], loop: str, size: int, one: Measure, absent: Absent) -> dict[str, Columns]:
    """A round of all contenders at one size; who fails is left out from then on."""
    measured: dict[str, Columns] = {}
    for name in names:
        if (name, loop) not in absent:
            try:
                measured[name] = one(name, loop, size)
            except Exception as error:  # noqa: BLE001 # whatever it is, the others go on
                absent[name, loop] = absence(error)
    return measured


def plot(table: Table, loop: str, column: str) -> dict[str, Any]:
    """A column of a table, on one loop, as a line for each contender."""
    series: dict[str, list[list[float]]] = {}
    for row in table["rows"]:
        cell = dict(zip(table["columns"], row, strict=True)).get(column)
        if row[0] == loop and cell and cell["median"] is not None:
            series.setdefault(row[2], []).append([row[1], cell["median"]])
    return {
        "title": f"{table['title']}: {column}, {loop}",
        "x": table["columns"][1],
        "y": column,
        "series": series,
    }
