"""How many objects a second examples/pipeline saves with so many mappers."""

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.pipeline_run import CHUNK, Run, Size
from benchmarks.report import Table

MAPPERS = (1, 2, 4, 10)
# Shares of the objects between which the rate is taken: neither the start nor the last chunks are in it.
_FROM, _TO = 0.1, 0.9
# Objects for each mapper: for a quarter of a minute, or seconds, of work.
_WORK, _WORK_QUICK = 6_000, 1_000
# Seconds that each mapper waits in all where it does not work.
_WAIT, _WAIT_QUICK = 15, 2


def measure(variants: Sequence[str], service_time: float, *, quick: bool) -> tuple[Table, dict[str, Any]]:
    """A table, and the plot of it.

    Args:
        variants: Of the example.
        service_time: Seconds that a mapper waits for each chunk where there are more mappers than cores.
        quick: Far less of it.

    Raises:
        Stuck: Nothing more is saved.
    """
    cores = len(os.sched_getaffinity(0))
    counts = MAPPERS[:2] if quick else MAPPERS
    real = _WORK_QUICK if quick else _WORK
    waited = max(10, round((_WAIT_QUICK if quick else _WAIT) / service_time)) * CHUNK
    rows: list[list[Any]] = []
    series: dict[str, list[tuple[int, float]]] = {}
    for variant in variants:
        rows += _rows(variant, "as it is", [Size(real * n, n) for n in counts if n <= cores])
        waiting = _rows(
            variant, f"{service_time:g} s wait", [Size(waited * n, n, service_time) for n in counts]
        )
        rows += waiting
        if not series:
            series[f"ideal: {variant} with one, times their number"] = _points(waiting, 4)
        series[variant] = _points(waiting, 3)
    title = "Objects per second by mappers"
    table = {
        "title": title,
        "columns": ["variant", "work", "mappers", "objects/s", "ideal", "share of it"],
        "rows": rows,
        "notes": [
            f"As it is: mappers do the heavy work. There are {cores} cores, and no more mappers that do.",
            f"{service_time:g} s wait: that long for each {CHUNK} objects, in place of most of the work.",
            "It shows what messages and savers keep up with; these cores could not compute as much.",
            "Ideal: what one mapper reaches, times their number.",
        ],
    }
    waits = f"{title}, each waits {service_time:g} s for {CHUNK}"
    return table, {"title": waits, "x": "mappers", "y": "objects/s", "series": series}


def _points(rows: list[list[Any]], column: int) -> list[tuple[int, float]]:
    return [(row[2], row[column]) for row in rows]


def _rows(variant: str, work: str, sizes: Sequence[Size]) -> list[list[Any]]:
    """A row for each number of mappers, printed as it comes."""
    rows: list[list[Any]] = []
    for size in sizes:
        reached = rate(variant, size)
        ideal = (rows[0][3] if rows else reached) * size.mappers
        rows.append([variant, work, size.mappers, reached, ideal, reached / ideal])
        print(f"{variant}, {work}, mappers: {size.mappers}, objects/s: {reached:,.0f}", flush=True)
    return rows


def rate(variant: str, size: Size) -> float:
    """Objects saved in a second, in a run of its own.

    Raises:
        Stuck: Nothing more is saved.
    """
    looked: list[tuple[float, int]] = []
    with Run(variant, size) as run:
        for saved in run.wait():
            if saved >= size.objects * _FROM:
                looked.append((time.monotonic(), saved))
            if saved >= size.objects * _TO:
                break
    (began, first), (ended, last) = looked[0], looked[-1]
    return (last - first) / (ended - began)
