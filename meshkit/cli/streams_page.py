"""What `meshkit streams` shows on a terminal, and what it says of a stream anywhere."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from meshkit.cli.bars import Columns, Row
from meshkit.cli.figures import lasting, short
from meshkit.cli.output import clean, console
from meshkit.durable.overview import Overview, Progress
from meshkit.knobs import in_units

_UNLIMITED = -1
# What goes first where there is no room for all; an empty heading is the bar's.
_LEAST = ("waiting", "redelivered", "", "rate/s", "unacked", "left")
_LEAST_OF_TITLE = ("subjects", "bytes", "limits", "unusual", "last")


class Seen(NamedTuple):
    """A consumer as it was seen: how far it is, and how fast.

    Attributes:
        progress: How far.
        rate: Deliveries a second that ended.
        left: Seconds until nothing is left at that rate.
    """

    progress: Progress
    rate: float | None = None
    left: float | None = None


def nothing(left_out: int) -> str:
    """What is said where there is no stream to show."""
    others = f" of a service; --all shows {left_out} others" if left_out else ""
    return f"There is no stream{others}."


def last_message(one: Overview) -> datetime | None:
    """When the last message came, if one ever did."""
    return one.stream.state.last_ts if one.stream.state.last_seq else None


def subjects(one: Overview) -> list[str]:
    """Which subjects a stream keeps; none if it has its messages from other streams."""
    return one.stream.config.get("subjects") or []


def limit(one: Overview, name: str) -> int | None:
    """A number that limits a stream, by its name in the configuration."""
    most = one.stream.config.get(name, _UNLIMITED)
    return most if most > 0 else None


def limits(one: Overview) -> list[str]:
    """What limits a stream, in words."""
    config = one.stream.config
    said: list[str] = []
    if age := config.get("max_age"):
        said.append(in_units(age / 1e9))
    if most := limit(one, "max_bytes"):
        said.append(decimal(most))
    if most := limit(one, "max_msgs"):
        said.append(f"{most:,} messages")
    if most := limit(one, "max_msgs_per_subject"):
        said.append(f"{most:,} for each subject")
    return said


def unusual(one: Overview) -> list[str]:
    """What is unusual about how a stream keeps messages, in words."""
    config = one.stream.config
    pairs = (("retention", "limits"), ("storage", "file"))
    return [str(config[key]) for key, usual in pairs if config.get(key, usual) != usual]


def render(seen: Sequence[tuple[Overview, list[Seen]]], left_out: int) -> Group:
    """Each stream with its consumers below it, in columns that stand below each other.

    Args:
        seen: The streams.
        left_out: How many more there are.
    """
    if not seen:
        return Group(Text(nothing(left_out)))
    rows = [[_row(each) for each in consumers] for _, consumers in seen]
    columns = Columns("consumer", "done", [row for each in rows for row in each], _LEAST)
    parts: list[RenderableType] = [columns.grid([], heading=True)] if any(rows) else []
    for (one, _), below in zip(seen, rows, strict=True):
        parts.append(_title(one))
        if below:
            parts.append(columns.grid(below, heading=False))
    if left_out:
        parts.append(Text(f"… {left_out} more that others need; --all shows them", "dim"))
    return Group(*parts)


def _title(one: Overview) -> Text:
    """A stream in one line: where there is no room for all, what matters least is not said."""
    state, last = one.stream.state, last_message(one)
    said = {"messages": f"{state.messages:,} message{'' if state.messages == 1 else 's'}"}
    said["bytes"] = decimal(state.bytes)
    if last is not None:
        said["last"] = f"last {lasting(max(0.0, (datetime.now(UTC) - last).total_seconds()))} ago"
    if most := limits(one):
        said["limits"] = f"at most {', '.join(most)}"
    if unlike := unusual(one):
        said["unusual"] = " · ".join(unlike)
    if kept := subjects(one):
        said["subjects"] = ", ".join(kept)
    title = _joined(one, said)
    for part in _LEAST_OF_TITLE:
        if title.cell_len > console.width:
            said.pop(part, None)
            title = _joined(one, said)
    return title


def _joined(one: Overview, said: Mapping[str, str]) -> Text:
    title = Text(clean(one.stream.name), "bold", no_wrap=True, overflow="ellipsis")
    return title.append(f"  {clean(' · '.join(said.values()))}", "not bold")


def _row(seen: Seen) -> Row:
    progress, rate, left = seen
    name = f"  {progress.name} ({progress.partitions})" if progress.partitions else f"  {progress.name}"
    share = None
    if progress.matching and progress.done is not None:
        share = (progress.matching, progress.done)
    figures = {
        "lag": f"{progress.pending:,}",
        "unacked": f"{progress.unacknowledged:,}",
        "redelivered": f"{progress.redelivered:,}",
        "waiting": f"{progress.waiting:,}",
        "rate/s": "" if rate is None else short(rate),
        "left": "" if left is None else lasting(left),
    }
    return Row(name, share, figures)
