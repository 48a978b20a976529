"""The pages of `meshkit top`: what is in the rows, and how they fit on a terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from meshkit.cli.figures import percent, short
from meshkit.cli.output import clean
from meshkit.layers.statistics import OK
from meshkit.telemetry.live.changes import Change, InstanceChange
from meshkit.telemetry.live.graph import edges
from meshkit.telemetry.live.rates import Rates, grouped, rates, worst

Page: TypeAlias = tuple[str, ...]
"""Which page: none for all services, a service, its instance; with its subject an endpoint."""


class Row(NamedTuple):
    """A row.

    Attributes:
        key: Tells it from the others of its page.
        label: What it is about.
        rates: Its figures.
        instances: How many instances they are of, where that is of interest.
        opens: The page below it.
    """

    key: str
    label: str
    rates: Rates
    instances: int | None = None
    opens: Page | None = None


class Section(NamedTuple):
    """Rows under a title."""

    title: str
    rows: list[Row]


# Columns


class _Column(NamedTuple):
    """A column: its heading, what it is sorted by, and what it shows."""

    heading: str
    value: Callable[[Row], float | None]
    show: Callable[[Row], str | Text]


def _figure(name: str, show: Callable[[Any], str], scale: float = 1) -> Callable[[Row], str]:
    def shown(row: Row) -> str:
        value = getattr(row.rates, name)
        return "" if value is None else show(value * scale)

    return shown


def _no_value(_: Row) -> None:
    """Of a column by which nothing is sorted."""


def _value(name: str) -> Callable[[Row], float | None]:
    return lambda row: getattr(row.rates, name)


def _instances(row: Row) -> str:
    return str(row.instances or "")


def _median(row: Row) -> str:
    if row.rates.p50 is None and row.rates.average is not None:
        return f"avg {short(row.rates.average * 1000)}"  # all that other clients tell
    return _figure("p50", short, 1000)(row)


def _success(row: Row) -> Text:
    share = row.rates.success
    if share is None:
        return Text()
    return Text(percent(share), "red" if share < 0.99 else "yellow" if share < 0.999 else "green")


def _breaker(row: Row) -> Text:
    states = list(row.rates.circuits.values())
    shown = worst(states)
    if len(states) > 1:
        shown = [f"{states.count(state)} {state}" for state in shown]
    return Text(", ".join(shown), "red")


def _dead(row: Row) -> Text:
    return Text(_count("dead")(row), "red" if row.rates.dead else "")


def _count(name: str) -> Callable[[Row], str]:
    return _figure(name, "{:,}".format)


_COLUMNS = {
    "instances": _Column("inst", _no_value, _instances),
    "rate": _Column("rate/s", _value("rate"), _figure("rate", short)),
    "success": _Column("success", _value("success"), _success),
    "lag": _Column("lag", _value("lag"), _count("lag")),
    "unacknowledged": _Column("unacked", _no_value, _count("unacknowledged")),
    "redelivered": _Column("again/s", _no_value, _figure("redelivered", short)),
    "dead": _Column("dead", _no_value, _dead),
    "p50": _Column("p50 ms", _value("p50"), _median),
    "p95": _Column("p95 ms", _value("p95"), _figure("p95", short, 1000)),
    "p99": _Column("p99 ms", _value("p99"), _figure("p99", short, 1000)),
    "in flight": _Column("in flight", _value("in_flight"), _figure("in_flight", str)),
    "breaker": _Column("breaker", _no_value, _breaker),
    "retries": _Column("retries/s", _value("retries"), _figure("retries", short)),
    "refused": _Column("refused/s", _value("refusals"), _figure("refusals", short)),
}
# What goes first where there is no room for all.
_LEAST = (
    *("refused", "retries", "instances", "p99", "in flight", "unacknowledged", "p50", "breaker", "p95"),
    *("redelivered", "success", "dead", "lag"),
)

_SORTS = ("name", "rate", "success", "p50", "p95", "p99", "in flight", "lag")
SORTS = dict(zip("nrs123fl", _SORTS, strict=True))
"""Keys, and the column that each sorts by."""
# Where the least is what one looks for.
_UPWARDS = ("name", "success")


# What is in a page


def sections(page: Page, instances: Sequence[InstanceChange]) -> list[Section]:
    """What a page shows.

    Args:
        page: Which one.
        instances: What happened in each instance.
    """
    there = [one for one in instances if one.is_there]
    if not page:
        return [Section("services", _services(there))]
    of_service = [one for one in there if one.service == page[0]]
    if len(page) == 3:
        return _endpoint(page, of_service, instances)
    if len(page) == 2:
        of_service = [one for one in of_service if one.id == page[1]]
    instance = page[1] if len(page) == 2 else ""
    found = [
        Section("endpoints", _endpoints(of_service, instance)),
        Section("consumers", _endpoints(of_service, instance, consumers=True)),
    ]
    if len(page) == 1:
        rows = [
            Row(one.id, one.id, rates(_calls(one.served) or one.served, one.called), opens=(page[0], one.id))
            for one in of_service
        ]
        found.append(Section("instances", rows))
    return [*found, Section("calls", _targets(of_service))]


def everything(instances: Iterable[InstanceChange]) -> list[Section]:
    """A section of each service: what there is to print once."""
    found: list[Section] = []
    for service, group in grouped(instances, by=lambda one: one.service).items():
        called = [change for one in group for change in one.called]
        nothing = Row(service, "(no endpoints)", rates([], called))
        endpoints, consumers = _endpoints(group), _endpoints(group, consumers=True)
        if endpoints or not consumers:
            found.append(Section(service, endpoints or [nothing]))
        if consumers:
            found.append(Section(f"{service} (consumers)", consumers))
    return found


def _services(instances: Iterable[InstanceChange]) -> list[Row]:
    rows: list[Row] = []
    for service, group in grouped(instances, by=lambda one: one.service).items():
        served = [change for one in group for change in one.served]
        called = [change for one in group for change in one.called]
        events = [change for change in served if change.is_event]
        calls = _calls(served)
        if calls or not events:
            rows.append(Row(service, service, rates(calls, called), len(group), (service,)))
        if events:
            label = f"{service} (events)"
            rows.append(Row(label, label, rates(events, () if calls else called), len(group), (service,)))
    return rows


def _calls(served: Iterable[Change]) -> list[Change]:
    return [change for change in served if not change.is_event]


def _label(change: Change) -> str:
    """Tells an endpoint, a subscription or a consumer from the others of its service."""
    if change.consumer is not None:
        return f"{change.subject} ({change.consumer.name})"
    return f"{change.subject} (events)" if change.is_event else change.subject


def _endpoints(
    instances: Iterable[InstanceChange], instance: str = "", *, consumers: bool = False
) -> list[Row]:
    rows: list[Row] = []
    pairs = [
        (one.service, change)
        for one in instances
        for change in one.served
        if (change.consumer is not None) == consumers
    ]
    for (service, label), group in grouped(pairs, by=lambda pair: (pair[0], _label(pair[1]))).items():
        changes = [change for _, change in group]
        rows.append(Row(label, label, rates(changes), opens=(service, instance, label)))
    return rows


def _targets(instances: Iterable[InstanceChange]) -> list[Row]:
    called = grouped((change for one in instances for change in one.called), by=lambda change: change.name)
    return [Row(f"> {target}", target, rates(changes, changes)) for target, changes in called.items()]


def _endpoint(
    page: Page, of_service: Iterable[InstanceChange], instances: Iterable[InstanceChange]
) -> list[Section]:
    service, instance, label = page
    each = {
        one.id: [change for change in one.served if _label(change) == label]
        for one in of_service
        if instance in {"", one.id}
    }
    changes = [change for found in each.values() for change in found]
    outcomes = sorted(
        {outcome for change in changes for outcome in change.outcomes}, key=lambda o: (o != OK, o)
    )
    found = [
        Section("outcomes", [Row(outcome, outcome, _of_outcome(changes, outcome)) for outcome in outcomes])
    ]
    streams = sorted({change.consumer.stream for change in changes if change.consumer is not None})
    if streams:
        found.insert(0, Section("stream", [Row("=", ", ".join(streams), rates(changes))]))
    if changes and not changes[0].is_event:
        callers = [
            Row(
                f"< {edge.caller}",
                edge.caller,
                Rates(
                    rate=edge.rate,
                    success=edge.success,
                    p95=edge.p95,
                    circuits={} if edge.circuit == "closed" else {edge.subject: edge.circuit},
                ),
                opens=None if edge.caller.startswith("(") else (edge.caller,),
            )
            for edge in edges(instances)
            if (edge.callee, edge.subject) == (service, label)
        ]
        found.append(Section("callers", callers))
    if not instance:
        found.append(Section("instances", [Row(one, one, rates(found)) for one, found in each.items()]))
    return found


def _of_outcome(changes: Iterable[Change], outcome: str) -> Rates:
    """What ended so: how many a second, and how long they took."""
    ended = rates(
        msgspec.structs.replace(
            change,
            requests=change.outcomes[outcome].count,
            finished=0,
            outcomes={outcome: change.outcomes[outcome]},
            consumer=None,
        )
        for change in changes
        if outcome in change.outcomes
    )
    return msgspec.structs.replace(ended, in_flight=None)


# How a page looks


def ordered(rows: Iterable[Row], sort: str, *, turned: bool) -> list[Row]:
    """Rows by a column, what is not known last.

    Args:
        rows: In any order.
        sort: `name`, or a column.
        turned: Whether the other way round than usual.
    """
    rows = sorted(rows, key=lambda row: row.key)
    if sort == "name":
        return rows[::-1] if turned else rows
    value = _COLUMNS[sort].value
    known = [(of, row) for row in rows if (of := value(row)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=(sort in _UPWARDS) == turned)
    return [row for _, row in known] + [row for row in rows if value(row) is None]


def render(
    shown: Sequence[Section], selected: str, sort: str, *, turned: bool, console: Console, height: int
) -> Group:
    """Sections as tables that fit the terminal, those rows around the selected one that do.

    Args:
        shown: The sections, their rows in order.
        selected: The key of the selected row.
        sort: The column that they are sorted by.
        turned: Whether the other way round than usual.
        console: The terminal.
        height: Lines that there are.
    """
    rows = [(row.key, section.title) for section in shown for row in section.rows]
    keys = [key for key, _ in rows]
    window = _window(rows, keys.index(selected) if selected in keys else 0, height)
    visible = set(keys[window])
    arrow = "▲" if (sort in _UPWARDS) != turned else "▼"
    parts: list[Any] = []
    for section in shown:
        inside = [row for row in section.rows if row.key in visible]
        if inside:
            parts += [_fitting(section.title, inside, selected, (sort, arrow), console), Text()]
    if more := len(rows) - len(rows[window]):
        parts[-1] = Text(f"… {more} more", "dim")
    return Group(*parts)


def _window(rows: Sequence[tuple[str, str]], at: int, height: int) -> slice:
    """Which rows fit, around the one at an index; they are given with their section's title."""
    for room in range(min(len(rows), max(1, height)), 0, -1):
        first = max(0, min(at - room // 2, len(rows) - room))
        window = slice(first, first + room)
        # Of each section, beside its rows: heading, rule and a blank line.
        if room + 3 * len({title for _, title in rows[window]}) <= height:
            return window
    return slice(at, at + 1)


def _fitting(title: str, rows: list[Row], selected: str, sort: tuple[str, str], console: Console) -> Table:
    """A table with as many columns as there is room for."""
    names = list(_COLUMNS)
    options = console.options.update(width=10_000)
    for least in _LEAST:
        table = _table(title, names, rows, selected, sort)
        if Measurement.get(console, options, table).maximum <= console.width:
            return table
        names.remove(least)
    return _table(title, names, rows, selected, sort)


def _table(title: str, names: list[str], rows: list[Row], selected: str, sort: tuple[str, str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    by, arrow = sort
    # Columns in which there is nothing are of no use.
    names = [name for name in names if any(str(_COLUMNS[name].show(row)) for row in rows)]
    title = f"{clean(title)} {arrow}" if by == "name" else clean(title)
    grid.add_column(title, no_wrap=True, overflow="ellipsis")
    for name in names:
        heading = _COLUMNS[name].heading
        grid.add_column(f"{heading}{arrow}" if by == name else heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_COLUMNS[name].show(row) for name in names]
        grid.add_row(clean(row.label), *cells, style="reverse" if row.key == selected else "")
    return grid
