"""The failure drills: `python -m benchmarks.faults`. Exits with 1 and their names if drills miss a bound."""

import argparse
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command, report
from benchmarks.faults.bounds import Bound
from benchmarks.faults.players import Outcome, Pace
from benchmarks.faults.rows import ROWS, Row

_COLUMNS = (
    "sent",
    "answered",
    "lost",
    "executed twice",
    "wrong",
    "errors",
    "p50 ms",
    "p99 ms",
    "detected s",
    "recovered s",
)
_SHOWN = ("meshkit", "CPython", "nats-server", "nats-py", "uvloop")
_FULL = Pace(before=1.5, during=4, after=3, instances=8, rate=300, is_quick=False, seed=0)
_QUICK = Pace(before=0.5, during=1.5, after=1.5, instances=4, rate=150, is_quick=True, seed=0)


class Settings(NamedTuple):
    """What was asked for."""

    quick: bool
    seed: int
    only: tuple[str, ...]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    names = ", ".join(ROWS)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"some of: {names}")
    parser.add_argument("--quick", action="store_true", help="some of them, shortened, in less than a minute")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="what chance begins with; 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the tables for a page")
    return parser.parse_args()


def drill(row: Row, pace: Pace) -> Outcome:
    """A drill; one that fails does not keep the others from being held."""
    try:
        return row.drill(pace)
    except Exception as error:  # noqa: BLE001 # whatever it is
        traceback.print_exc()
        said = str(error).strip().splitlines() or [""]
        return Outcome({}, [Bound(f"{type(error).__name__}: {said[-1]}", None, "to be held", is_kept=False)])


def calls(came: dict[str, Outcome]) -> report.Table:
    """What became of the calls of each drill."""
    rows = [
        [
            ROWS[name].title,
            kind,
            *(_shown(figures[column]) for column in _COLUMNS),
            "ok" if kept(outcome) else "MISSED",
        ]
        for name, outcome in came.items()
        for kind, figures in outcome.kinds.items()
    ]
    return {
        "title": "What became of the calls",
        "columns": ["fault", "calls", *_COLUMNS, "bounds"],
        "rows": rows,
        "notes": [
            "p50 and p99 are of answered calls: before / during / after the fault.",
        ],
    }


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {name}" for name, count in value.items())
    return " / ".join(map(report.shown, value)) if isinstance(value, list) else value


def bounds(came: dict[str, Outcome]) -> report.Table:
    """What had to hold, and whether it did."""
    return {
        "title": "What must hold",
        "columns": ["fault", "what", "reached", "bound", "verdict"],
        "rows": [
            [ROWS[name].title, bound.what, bound.reached, bound.limit, "ok" if bound.is_kept else "MISSED"]
            for name, outcome in came.items()
            for bound in outcome.bounds
        ],
    }


def kept(outcome: Outcome) -> bool:
    """Whether all did."""
    return all(bound.is_kept for bound in outcome.bounds)


def main() -> None:
    """Hold the drills, one after the other."""
    given = arguments()
    wanted = given.only or [name for name, row in ROWS.items() if row.is_quick or not given.quick]
    settings = Settings(given.quick, given.seed, tuple(wanted))
    pace = (_QUICK if given.quick else _FULL)._replace(seed=given.seed)
    about = {"machine": report.machine(), "versions": report.versions()}
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in _SHOWN)
    print(f"{versions}; seed {given.seed}", flush=True)
    came: dict[str, Outcome] = {}
    for name in wanted:
        began = time.monotonic()
        came[name] = drill(ROWS[name], pace)
        said = "ok" if kept(came[name]) else "MISSED"
        print(f"{ROWS[name].title}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
    tables = [calls(came), bounds(came)]
    for table in tables:
        print(report.text(table))
    if given.json:
        parts = {
            name: {"kinds": one.kinds, "bounds": [bound._asdict() for bound in one.bounds]}
            for name, one in came.items()
        }
        report.write(given.json, settings=settings, about=about, parts=parts)
    if given.markdown:
        given.markdown.write_text("\n".join(map(report.markdown, tables)), encoding="utf-8")
    if missed := [name for name, one in came.items() if not kept(one)]:
        sys.exit(f"bounds are missed: {', '.join(missed)}")


if __name__ == "__main__":
    command.run(main)
