"""What the parts measure, as text, as Markdown and as JSON.

A part gives tables: a title, columns, rows and notes. A cell is a text, a number, None, or a figure that was
taken in several rounds, which is shown as their median.
"""

import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environments
from benchmarks.stage import ROOT
from meshkit.transport.server import EmbeddedServer

Table = dict[str, Any]
Figure = dict[str, Any]


class Settings(NamedTuple):
    """How to measure.

    Attributes:
        quick: Far less of everything, to see that it works; no figure for others.
        loops: asyncio, uvloop or both.
        rounds: How often.
        only: Contenders of the part peers; all of them if it is empty.
    """

    quick: bool
    loops: tuple[str, ...]
    rounds: int
    only: tuple[str, ...] = ()


def figure(values: Iterable[float]) -> Figure:
    """Of several rounds; None for what is no number, as the latency of calls that all failed."""
    rounds = [None if math.isnan(value) else value for value in values]
    return {"median": None if None in rounds else statistics.median(rounds), "rounds": rounds}


def tables(part: dict[str, Any]) -> list[Table]:
    """The tables of what a part gave."""
    return part.get("tables", [part])


def shown(cell: Any) -> str:
    """A cell as text, with as many digits as say something."""
    value = cell["median"] if isinstance(cell, dict) else cell
    if value is None:
        return "-"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def text(table: Table) -> str:
    """For a terminal: texts to the left, numbers to the right."""
    rows = [[shown(cell) for cell in row] for row in table["rows"]]
    widths = [max(map(len, column)) for column in zip(table["columns"], *rows, strict=True)]
    is_text = [any(isinstance(row[at], str) for row in table["rows"]) for at in range(len(table["columns"]))]

    def line(cells: Iterable[str]) -> str:
        pairs = zip(cells, widths, is_text, strict=True)
        cells = (cell.ljust(width) if left else cell.rjust(width) for cell, width, left in pairs)
        return "  ".join(cells).rstrip()

    notes = (f"- {note}" for note in table.get("notes", ()))
    return "\n".join(["", table["title"], line(table["columns"]), *map(line, rows), *notes])


def markdown(table: Table) -> str:
    """For a page."""
    lines = [
        table["columns"],
        ["---"] * len(table["columns"]),
        *([shown(c) for c in r] for r in table["rows"]),
    ]
    notes = (f"- {note}" for note in table.get("notes", ()))
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([f"### {table['title']}", "", body, "", *notes, ""])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = {line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{total / 2**30:.0f} GiB",
        "system": platform.platform(),
        "load before": os.getloadavg()[0],
    }


def versions() -> dict[str, Any]:
    """What was measured."""
    ours = ("meshkit", "nats-py", "msgspec", "anyio", "uvloop")
    return {
        "commit": _commit(),
        "CPython": sys.version.split()[0],
        "nats-server": EmbeddedServer().version,
        **{name: version(name) for name in ours},
        "aiohttp beside them": importlib.util.find_spec("aiohttp") is not None,
        "environments": environments.versions(),
    }


def _commit() -> str | None:
    """The state of the repository, if it is one and git is there to ask."""
    if not (git := shutil.which("git")):
        return None
    command = [git, "describe", "--always", "--dirty"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 # git
    return said.stdout.strip() or None


def write(file: Path, *, settings: Settings, about: dict[str, Any], parts: dict[str, Any]) -> None:
    """All of it as JSON."""
    whole = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings._asdict(),
        **about,
        "parts": parts,
    }
    file.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
