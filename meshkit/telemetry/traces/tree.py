"""A trace as a tree: what is part of what, and in which order, for whoever draws it."""

from collections.abc import Iterator, Sequence

import msgspec

# Spans of one trace that are drawn; all others are counted.
MOST = 200


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A span that has ended.

    Attributes:
        trace: Id of its trace.
        id: Its own.
        parent: That of the span that it is part of; empty for none.
        is_remote: Whether that is another process's.
        name: What it is called.
        kind: Such as `CLIENT`.
        where: Whose it is.
        start: When it began, in nanoseconds since 1970.
        end: When it ended, likewise.
        attempt: Which attempt of a call it is; 0 for what is none.
        has_failed: Whether that is a failure.
        error: The kind of error that it ended with; empty for none. It need not be its own failure.
        text: What the error says.
        events: What happened meanwhile, and when.
    """

    trace: str
    id: str
    parent: str = ""
    is_remote: bool = False
    name: str
    kind: str = "INTERNAL"
    where: str = ""
    start: int
    end: int
    attempt: int = 0
    has_failed: bool = False
    error: str = ""
    text: str = ""
    events: list[tuple[int, str]] = []


class Row(msgspec.Struct, frozen=True):
    """A line of the tree.

    Attributes:
        guide: What leads to it from the line of the span that it is part of.
        below: What stands there in lines that belong to it.
        label: What it is.
        span: The span.
        note: What went wrong, where a line below does not say it.
    """

    guide: str
    below: str
    label: str
    span: Span
    note: str


def rows(spans: Sequence[Span]) -> list[Row]:
    """The lines of a trace, at most MOST.

    The only attempt of a call stands for the call, and is no line of its own.

    Args:
        spans: Those that are known of one trace, at least one.
    """
    parts: dict[str, list[Span]] = {}
    known = {span.id for span in spans}
    for span in sorted(spans, key=lambda span: span.start):
        parts.setdefault(span.parent if span.parent in known else "", []).append(span)
    for span in spans:
        its = parts.get(span.id, [])
        attempts = [part for part in its if part.attempt]
        if len(attempts) == 1 and not attempts[0].events:
            inner = parts.pop(attempts[0].id, [])
            rest = [part for part in its if part is not attempts[0]]
            parts[span.id] = sorted([*rest, *inner], key=lambda part: part.start)
    found: list[Row] = []
    for root in parts.get("", []):
        found += _lines(root, "", "", _label(root), _note(root, parts), parts)
        if len(found) >= MOST:
            break
    return found[:MOST]


def _lines(
    span: Span, guide: str, below: str, label: str, note: str, parts: dict[str, list[Span]]
) -> Iterator[Row]:
    its = parts.get(span.id, [])
    yield Row(guide, below + ("│ " if its else "  "), label, span, note)
    before = None
    for part in its:
        name = _label(part)
        if part.attempt:
            is_hedge = before is not None and part.start < before.end
            name = f"attempt {part.attempt}{' (hedge)' if is_hedge else ''}"
            before = part
        # Who answers with what is wrong with the call has no text of it: the call has.
        its_note = "" if note and not part.text and part.error == span.error else _note(part, parts)
        corner, line = ("└ ", "  ") if part is its[-1] else ("├ ", "│ ")
        yield from _lines(part, below + corner, below + line, name, its_note, parts)


def _note(span: Span, parts: dict[str, list[Span]]) -> str:
    """What a span ended with, if that is not what a part of it ended with: there it stands already."""
    if _is_said(span, parts.get(span.id, []), parts):
        return ""
    return f"{span.error}: {span.text}" if span.error and span.text else span.error or span.text


def _is_said(span: Span, its: Sequence[Span], parts: dict[str, list[Span]]) -> bool:
    """Whether what a span ended with is that of a part of it, where it stands already."""
    return any(
        (part.text == span.text if span.text else part.error == span.error)
        or _is_said(span, parts.get(part.id, []), parts)
        for part in its
    )


def _label(span: Span) -> str:
    if span.attempt:
        return f"attempt {span.attempt} of {span.name.removesuffix(' attempt')}"
    return f"call {span.name}" if span.kind == "CLIENT" else span.name


def duration(nanoseconds: int) -> str:
    """A time, for a person, in seven letters at most where it is below a thousand seconds."""
    if nanoseconds < 10_000_000:
        return f"{nanoseconds / 1e6:.2f} ms"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.0f} ms"
    return f"{nanoseconds / 1e9:.2f} s"
