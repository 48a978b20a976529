"""Rows with a bar and figures that fit on the terminal, in columns that stand below each other."""

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from meshkit.cli.output import clean, console

# Columns: a bar, and what names are cut to at most.
_BAR, _LONGEST_BAR, _SHORTEST_NAME = 10, 30, 16
_OF_BAR = ""
# What rich puts between columns.
_GAP = 3


class Row(NamedTuple):
    """A row.

    Attributes:
        name: What it is about.
        share: How much there is to do and how much of it is done; None for no bar.
        figures: More columns, by heading.
    """

    name: str
    share: tuple[int, int] | None
    figures: dict[str, str]


class Columns:
    """The columns that there is room for.

    Args:
        first: The heading of the names.
        share: The heading of how much is done, in percent.
        rows: All rows; a column in which none has anything is left out.
        least: The headings of what goes first where there is no room for all; an empty one is the bar's.
    """

    def __init__(self, first: str, share: str, rows: Sequence[Row], least: Sequence[str]) -> None:
        self._first = first
        self._share = share
        widths = {first: max([len(first), *(cell_len(clean(row.name)) for row in rows)])}
        if any(row.share for row in rows):
            widths |= {_OF_BAR: _BAR, share: len("100%")}
        for heading in rows[0].figures if rows else ():
            cells = [row.figures[heading] for row in rows]
            if any(cells):
                widths[heading] = max(map(cell_len, [heading, *cells]))
        self._widths = widths
        for heading in least:
            if self._room() < 0:
                widths.pop(heading, None)
        widths[first] += max(min(0, self._room()), min(0, _SHORTEST_NAME - widths[first]))

    def _room(self) -> int:
        return console.width - sum(self._widths.values()) - _GAP * (len(self._widths) - 1)

    def stretch(self) -> None:
        """Let the bar have what room there is."""
        if _OF_BAR in self._widths:
            self._widths[_OF_BAR] += min(_LONGEST_BAR - _BAR, max(0, self._room()))

    def grid(self, rows: Sequence[Row], *, heading: bool) -> Table:
        """Rows.

        Args:
            rows: Which.
            heading: Whether the headings are above them.
        """
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=heading)
        for name, width in self._widths.items():
            justify = "left" if name == self._first else "right"
            grid.add_column(name, width=width, justify=justify, no_wrap=True, overflow="ellipsis")
        for row in rows:
            grid.add_row(*(self._cell(name, row) for name in self._widths))
        return grid

    def _cell(self, heading: str, row: Row) -> RenderableType:
        if heading == self._first:
            return clean(row.name)
        if heading not in (_OF_BAR, self._share):
            return row.figures[heading]
        if row.share is None:
            return ""
        total, done = row.share
        if heading == self._share:
            return f"{100 * done // total}%" if done < total else "100%"
        return ProgressBar(
            # Nothing to do is all done.
            total=total or 1,
            completed=done if total else 1,
            width=self._widths[_OF_BAR],
            style="bright_black",
            complete_style="cyan",
            finished_style="green",
        )
