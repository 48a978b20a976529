"""A trace on the terminal: its tree, with a bar for each span that shows when in the trace it was."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from meshkit.cli.output import clean
from meshkit.telemetry.traces.tree import MOST, Row, Span, duration, rows

_DURATION = 8
# Columns of a bar, and of who did it; names get the rest.
_BAR_LEAST, _BAR_MOST, _WHERE_MOST = 8, 40, 16


def drawn(spans: Sequence[Span], left_out: int, width: int) -> Iterator[Text]:
    """The lines of a trace.

    Args:
        spans: Its spans, at least one.
        left_out: How many more it has.
        width: Columns of the terminal.
    """
    lines = rows(spans)
    start, end = _bounds(spans)
    text = Text(f"trace {spans[0].trace} ", "dim").append(duration(end - start), "not dim bold")
    yield text.append(f" {_many(len(spans) + left_out, len(lines))}", "dim")
    where = min(_WHERE_MOST, max((len(clean(row.span.where)) for row in lines), default=0), width // 5)
    longest = max((len(_name(row)) for row in lines), default=0)
    bar = min(_BAR_MOST, max(_BAR_LEAST, width - longest - where - _DURATION - 3))
    name = max(1, width - bar - where - _DURATION - 3)
    for row in lines:
        span = row.span
        colour = "red" if span.has_failed else "yellow" if span.error else "green"
        style = "red" if span.has_failed else ""
        line = Text().append(row.guide, "dim").append(clean(row.label), style)
        line.truncate(min(name, longest), overflow="ellipsis", pad=True)
        line.append(" ").append(f"{_fit(clean(span.where), where):{where}}", "dim")
        line.append(f" {duration(span.end - span.start):>{_DURATION}} ")
        yield line.append_text(_bar(span, start, end, bar, colour))
        for note, look in _notes(row):
            below = Text().append(row.below, "dim").append(note, look)
            below.truncate(width, overflow="ellipsis")
            yield below


def plain(spans: Sequence[Span], left_out: int) -> Iterator[str]:
    """The same for a pipe: indented, with tabs, and when each span began in place of the bar.

    Args:
        spans: Its spans, at least one.
        left_out: How many more it has.
    """
    lines = rows(spans)
    start, end = _bounds(spans)
    yield f"trace {spans[0].trace}\t{duration(end - start)}\t{_many(len(spans) + left_out, len(lines))}"
    for row in lines:
        span = row.span
        indent = "  " * (1 + len(row.guide) // 2)
        cells = [
            f"{indent}{clean(row.label)}",
            clean(span.where),
            f"+{duration(span.start - start)}",
            duration(span.end - span.start),
        ]
        yield "\t".join([*cells, *(note for note, _ in _notes(row))])


def _bounds(spans: Sequence[Span]) -> tuple[int, int]:
    return min(span.start for span in spans), max(span.end for span in spans)


def _many(spans: int, lines: int) -> str:
    text = "1 span" if spans == 1 else f"{spans} spans"
    # Attempts that have no line of their own are seen in that of their call.
    return f"{text}, {lines} shown" if lines == MOST < spans else text


def _name(row: Row) -> str:
    return row.guide + clean(row.label)


def _notes(row: Row) -> Iterator[tuple[str, str]]:
    """What stands below a span, and in which style."""
    span = row.span
    if row.note:
        yield clean(row.note), "red" if span.has_failed else "yellow"
    for when, event in span.events:
        yield f"+{duration(when - span.start)} {clean(event)}", "dim"


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _bar(span: Span, start: int, end: int, width: int, colour: str) -> Text:
    """Where in the trace's time a span was, one column at least."""
    whole = max(1, end - start)
    first = min(width - 1, (span.start - start) * width // whole)
    last = max(first + 1, min(width, -((start - span.end) * width // whole)))
    return Text(" " * first).append("━" * (last - first), colour)
