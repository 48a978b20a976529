"""What changed between two runs of the suite: `python -m benchmarks.compare A.json B.json`.

Each figure that both have: what is marked first, and of that the largest change first. A change is marked if
it is larger than what the rounds of one run differ by; that of a figure that was taken once, if it is larger
than what they usually do.
"""

import argparse
import json
import math
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import Table, shown, tables, text

# No change below this is marked, however close the rounds were.
LEAST = 0.02
LESS_IS_BETTER = {"µs", "ms", "MiB", "%", "ms/s"}

Key = tuple[str, ...]


class Change(NamedTuple):
    """Of a figure.

    Attributes:
        key: Part, table, row and column.
        before: In A: its rounds, or the one number that there is.
        after: In B.
    """

    key: Key
    before: list[float]
    after: list[float]

    @property
    def ratio(self) -> float:
        """B's median to A's."""
        before, after = statistics.median(self.before), statistics.median(self.after)
        return after / before if before else math.inf if after else 1.0

    @property
    def size(self) -> float:
        """How much it changed, up or down alike."""
        return abs(math.log(self.ratio)) if 0 < self.ratio < math.inf else math.inf

    @property
    def spread(self) -> float | None:
        """How far the rounds of a run lie apart, as a part of their median; None if there is but one."""
        apart = [
            (max(rounds) - min(rounds)) / statistics.median(rounds)
            for rounds in (self.before, self.after)
            if len(rounds) > 1 and statistics.median(rounds) > 0
        ]
        return max(apart, default=None)

    def judgement(self, usual: float) -> str:
        """What to call a change that is larger than the rounds' differences, or those that are usual."""
        if math.expm1(self.size) <= max(LEAST, usual if self.spread is None else self.spread):
            return ""
        units = self.key[-1].replace(",", "").split()
        if not LESS_IS_BETTER.isdisjoint(units):
            return "better" if self.ratio < 1 else "worse"
        if any(unit.endswith("/s") for unit in units):
            return "better" if self.ratio > 1 else "worse"
        return "changed"

    def row(self, usual: float) -> list[Any]:
        """In the table."""
        spread = None if self.spread is None else self.spread * 100
        medians = statistics.median(self.before), statistics.median(self.after)
        return [self.ratio, spread, self.judgement(usual), *map(float, medians), " | ".join(self.key)]


def figures(run: dict[str, Any]) -> Iterator[tuple[Key, list[float]]]:
    """The figures of a run. A row's name is all before its first figure, which has rounds or is a float."""
    for name, part in run["parts"].items():
        for table in tables(part):
            for row in table["rows"]:
                first = next((at for at, cell in enumerate(row) if isinstance(cell, dict | float)), len(row))
                label = ", ".join(shown(cell) for cell in row[:first] if cell != "")
                for column, cell in zip(table["columns"][first:], row[first:], strict=True):
                    rounds = cell["rounds"] if isinstance(cell, dict) else [cell]
                    if rounds and all(isinstance(number, int | float) for number in rounds):
                        yield (name, table["title"], label, column), rounds


def about(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run says of itself."""
    waiting = [("", {key: value for key, value in run.items() if key != "parts"})]
    while waiting:
        name, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting += [(f"{name} {key}".strip(), inner) for key, inner in value.items()]
        else:
            yield name, str(value)


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Table]:
    """What the runs say of themselves, where it differs; and their figures."""
    told = dict(about(before)), dict(about(after))
    differing = [name for name in {**told[0], **told[1]} if told[0].get(name) != told[1].get(name)]
    of_before, of_after = dict(figures(before)), dict(figures(after))
    changes = [Change(key, rounds, of_after[key]) for key, rounds in of_before.items() if key in of_after]
    usual = statistics.median([c.spread for c in changes if c.spread is not None] or [math.inf])
    changes.sort(key=lambda change: (not change.judgement(usual), -change.size))
    only = len(of_before.keys() - of_after.keys()), len(of_after.keys() - of_before.keys())
    return [
        {
            "title": "The runs",
            "columns": ["what differs", "A", "B"],
            "rows": [[name, told[0].get(name), told[1].get(name)] for name in differing],
        },
        {
            "title": "The figures",
            "columns": ["B / A", "rounds %", "", "A", "B", "figure"],
            "rows": [change.row(usual) for change in changes],
            "notes": [f"Figures that only A has: {only[0]}; that only B has: {only[1]}."],
        },
    ]


def read(file: Path) -> dict[str, Any]:
    """The run in a file."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        dict(figures(run))
    except OSError as error:
        sys.exit(f"{file}: {error.strerror}")
    except (ValueError, LookupError, TypeError, AttributeError):
        sys.exit(f"{file} is no run of the suite, as `python -m benchmarks --json FILE` writes them")
    return run


def main() -> None:
    """Compare two files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A.json", help="the run before")
    parser.add_argument("b", type=Path, metavar="B.json", help="the run after")
    given = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough
    for table in compare(read(given.a), read(given.b)):
        print(text(table))


if __name__ == "__main__":
    main()
