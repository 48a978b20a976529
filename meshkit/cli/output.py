"""What the commands share: one console, tables, JSON, and the options of the same name."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

# Colour, boxes and wrapping are for people: a pipe gets none of them, whatever FORCE_COLOR says.
console = Console(force_terminal=sys.stdout.isatty(), markup=False, emoji=False, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
nats_option = click.option(
    "--nats",
    metavar="URL",
    envvar=["MESHKIT_NATS", "NATS_URL"],
    show_envvar=True,
    help="The NATS server.",
)
monitor_port_option = click.option(
    "--monitor-port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Where the nats-server tells of itself over HTTP, for `meshkit metrics --server`; 0: a free one.",
)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: a table on a terminal, tab-separated lines (the first one names the columns) elsewhere.

    Args:
        columns: The headings.
        rows: One value a column. Numbers stand to the right, None is left empty.
    """
    values = list(rows)
    if not console.is_terminal:
        for row in [columns, *values]:
            click.echo("\t".join(clean(value) for value in row))
        return
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, heading in enumerate(columns):
        numbers = values and all(isinstance(row[index], int | float | None) for row in values)
        grid.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in values:
        grid.add_row(*map(clean, row))
    console.print(grid)


def print_json(value: Any) -> None:
    """Print a value as JSON: indented on a terminal, on one line elsewhere.

    Args:
        value: Anything that msgspec encodes.
    """
    encoded = msgspec.json.encode(value)
    click.echo(escaped(msgspec.json.format(encoded, indent=2).decode()) if console.is_terminal else encoded)


def discard() -> None:
    """Have standard output lead nowhere: what it did not take must not fail again when Python ends."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 1)


def escaped(text: str) -> str:
    """JSON with what drives the terminal, or turns around the text on it, as JSON escapes it."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1] for letter in text
    )


def clean(value: object) -> str:
    """A value in one line that neither breaks a table nor drives the terminal: others' services wrote it."""
    text = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in text)
