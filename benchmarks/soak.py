"""Whether anything grows: `python -m benchmarks.soak [--minutes M]`. Exits with 1 if something does.

A service and a client, a process each, under a load of every kind of call, errors and events among them. At
the end of each window both are looked at while nothing is in flight, so that tasks and file descriptors are
exact.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from benchmarks import command
from benchmarks.stage import Process, memory, nats_server

WINDOW = 5.0  # seconds of load between two looks
SETTLE = 0.2  # seconds until what the last late calls left at the service has ended
LEAST_WINDOWS = 5
PROCESSES = ("service", "client")
DIGITS = {"ms": 2, "MiB": 2}
# What may be found at the end, beside what there was after the warm-up.
MOST_GROWTH = 1.0  # MiB
MOST_SLOWER = 1.5  # times p50
MOST_CYCLES = 0.01  # objects a call
CYCLE_CALLS = {"echo": 5_000, "nested": 5_000, "refused": 5_000, "late": 500, "event": 5_000}


def observe(minutes: float, service: Process, client: Process) -> list[dict[str, float]]:
    """A window after the other, each with a line of its own."""
    columns = ["second", "calls/s", "p50 ms", "p99 ms"]
    columns += [
        f"{who} {what}" for who in PROCESSES for what in ("MiB", "tasks", "files", "gc runs", "gc found")
    ]
    print("  ".join(columns), flush=True)
    seen: list[dict[str, float]] = []
    for n in range(max(LEAST_WINDOWS, round(minutes * 60 / WINDOW))):
        one = {"second": (n + 1) * WINDOW, **client.ask("load", seconds=WINDOW)}
        time.sleep(SETTLE)
        for who, process in zip(PROCESSES, (service, client), strict=True):
            there = process.ask("look")
            one[f"{who} MiB"] = memory(process.pid).rss
            one[f"{who} tasks"] = there["tasks"]
            one[f"{who} files"] = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            one[f"{who} gc runs"] = there["collections"]
            one[f"{who} gc found"] = there["collected"]
        seen.append(one)
        cells = (f"{one[name]:>{len(name)},.{DIGITS.get(name.split()[-1], 0)}f}" for name in columns)
        print("  ".join(cells), flush=True)
    return seen


def cycles(service: Process, client: Process) -> dict[str, float]:
    """Objects in reference cycles that a call of each kind leaves to the collector, at either end."""
    found: dict[str, float] = {}
    for kind, count in CYCLE_CALLS.items():
        before = service.ask("collected")
        at_client = client.ask("cycles", kind=kind, count=count)
        time.sleep(SETTLE)
        at_service = service.ask("collected") - before
        found[f"client: objects in cycles, {kind}, per call"] = at_client / count
        found[f"service: objects in cycles, {kind}, per call"] = at_service / count
    return found


def verdict(seen: list[dict[str, float]], found: dict[str, float]) -> list[tuple[str, float, float]]:
    """What was looked at, what it came to, and the most that it may be."""
    rest = seen[max(1, len(seen) // 5) :]  # after the warm-up
    halves = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    judged: list[tuple[str, float, float]] = []
    for who in PROCESSES:
        before, after = (statistics.median(one[f"{who} MiB"] for one in part) for part in halves)
        judged.append((f"{who}: MiB more in the second half", after - before, MOST_GROWTH))
        for what in ("tasks", "files"):
            more = rest[-1][f"{who} {what}"] - rest[0][f"{who} {what}"]
            judged.append((f"{who}: more {what} at the end", more, 0))
    # The best windows, which other work on the machine slows least; what grows slows all that follow.
    before, after = (min(one["p50 ms"] for one in part) for part in halves)
    judged.append(("least p50 of the second half, times the first's", after / before, MOST_SLOWER))
    judged.extend((what, each, MOST_CYCLES) for what, each in found.items())
    return judged


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Whether anything grows.")
    least = LEAST_WINDOWS * WINDOW
    what = f"how long to put a load on it; 10 by default, {least:g} seconds at least"
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help=what)
    minutes = parser.parse_args().minutes
    with (
        nats_server() as server,
        Process("benchmarks.soak_roles", "serve", url=server.url) as service,
        Process("benchmarks.soak_roles", "client", url=server.url) as client,
    ):
        seen = observe(minutes, service, client)
        judged = verdict(seen, cycles(service, client))
    for what, value, most in judged:
        print(f"{what:<48}{value:>9.3f}  (at most {most:g}){'' if value <= most else '  GROWS'}")
    if any(value > most for _, value, most in judged):
        sys.exit("something grows")
    print("flat")


if __name__ == "__main__":
    command.run(main)
