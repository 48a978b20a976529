"""`meshkit top`: what happens in the mesh, again and again."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from meshkit.cli.discover import ask
from meshkit.cli.exits import ExitCode
from meshkit.cli.figures import interval_option
from meshkit.cli.jobs import grid, progress
from meshkit.cli.keyboard import keyboard
from meshkit.cli.live import Notes
from meshkit.cli.output import clean, console, json_option, nats_option, print_json, table
from meshkit.cli.top_pages import SORTS, Page, Row, Section, everything, ordered, render, sections
from meshkit.errors import ConnectionLost, DeadlineExceeded, Disconnected
from meshkit.telemetry.live.changes import Change, InstanceChange, changes, observe, read
from meshkit.telemetry.live.rates import Rates, grouped, rates
from meshkit.transport import Transport

_KEYS = "↑↓ ⏎ open  ⌫ back  q quit   sort: n r s 1 2 3 f l  ? help"
_HELP = """\
↑ ↓     select              n       sort by name
⏎       open it             r       by rate
⌫ Esc   back                s       by success, worst first
q       quit                1 2 3   by p50, p95, p99
?       these keys          f       by calls in flight
                            l       by lag of consumers
The same key again sorts the other way round."""

# Of a page: title and blank line above, keys and a line to spare below. Where there are no more than twice as
# many lines, the rows are all there is.
_AROUND = 4
# Jobs that have a line.
_MOST_JOBS = 2


@click.command()
@interval_option
@click.option("--once", is_flag=True, help="Look once, print a table and end; so it does in a pipe.")
@nats_option
@json_option
@click.pass_context
def top(ctx: click.Context, *, interval: float, once: bool, nats: str | None, as_json: bool) -> None:
    """Show services, instances and endpoints live: rates, success, latency, calls in flight, breakers.

    All of it is asked of the services over NATS; none needs a port. Services of other clients show what the
    NATS services protocol has: rates and average times.
    """
    # Without standard input, as in `<&-`, there is no object for it.
    has_keys = sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]
    is_live = console.is_terminal and not console.is_dumb_terminal and has_keys
    if is_live and not once and not as_json:
        ctx.exit(ask(nats, lambda transport: _Screen(transport, interval).run()))
    observed = ask(nats, lambda transport: observe(transport, interval))
    instances = [one for one in observed if one.is_there]
    if as_json:
        print_json([_service(name, group) for name, group in _by_service(instances).items()])
    elif instances and console.is_terminal:
        shown = everything(instances)
        console.print(render(shown, "", "", turned=False, console=console, height=sys.maxsize))
    elif instances:
        table(
            _HEADINGS, [row for name, group in _by_service(instances).items() for row in _rows(name, group)]
        )
    else:
        click.echo("No service answers. `meshkit run` starts those of a folder.", err=True)


def _by_service(instances: Sequence[InstanceChange]) -> dict[str, list[InstanceChange]]:
    return grouped(instances, by=lambda one: one.service)


# Once

_HEADINGS = (
    *("service", "subject", "kind", "instances", "rate", "success"),
    *("p50 ms", "p95 ms", "p99 ms", "avg ms", "in flight", "breakers"),
    *("consumer", "lag", "unacknowledged", "redelivered", "dead letters"),
)


def _rows(service: str, instances: list[InstanceChange]) -> list[tuple[object, ...]]:
    called = [change for one in instances for change in one.called]
    breakers = ", ".join(f"{name} {state}" for name, state in rates([], called).circuits.items())
    served = grouped(
        (change for one in instances for change in one.served),
        by=lambda one: (one.subject, one.is_event, one.consumer and one.consumer.name),
    )
    rows = [
        (
            service,
            subject,
            "messages" if consumer else "events" if is_event else "calls",
            len(instances),
            *_figures(rates(group)),
            breakers,
            consumer,
            *_of_consumer(rates(group)),
        )
        for (subject, is_event, consumer), group in served.items()
    ]
    nothing = rates([])
    of_none = (None, None, len(instances), *_figures(nothing), breakers, None, *_of_consumer(nothing))
    return rows or [(service, *of_none)]


def _figures(seen: Rates) -> tuple[object, ...]:
    seconds = (seen.p50, seen.p95, seen.p99, seen.average)
    return (
        None if seen.rate is None else round(seen.rate, 2),
        None if seen.success is None else round(seen.success, 4),
        *(None if each is None else round(each * 1000, 2) for each in seconds),
        seen.in_flight,
    )


def _of_consumer(seen: Rates) -> tuple[object, ...]:
    again = None if seen.redelivered is None else round(seen.redelivered, 2)
    return (seen.lag, seen.unacknowledged, again, seen.dead)


def _service(name: str, instances: list[InstanceChange]) -> dict[str, Any]:
    """A service as JSON, durations in seconds."""

    def endpoints(served: Sequence[Change]) -> list[dict[str, Any]]:
        groups = grouped(
            served,
            by=lambda one: (one.name, one.subject, one.is_event, one.consumer and one.consumer.stream),
        )
        return [
            {"name": name, "subject": subject, "is_event": is_event, "stream": stream}
            | msgspec.structs.asdict(rates(group))
            for (name, subject, is_event, stream), group in groups.items()
        ]

    def whole(group: list[InstanceChange]) -> dict[str, Any]:
        served = [change for one in group for change in one.served]
        called = [change for one in group for change in one.called]
        targets = grouped(called, by=lambda one: one.name)
        calls = [change for change in served if not change.is_event]
        return {
            **msgspec.structs.asdict(rates(calls, called)),
            "endpoints": endpoints(served),
            "jobs": [msgspec.structs.asdict(job) for one in group for job in one.jobs],
            "calls": [
                {"target": target} | msgspec.structs.asdict(rates(found, found))
                for target, found in targets.items()
            ],
        }

    return {
        "service": name,
        **whole(instances),
        "instances": [{"id": one.id, **whole([one])} for one in instances],
    }


# Live


def _jobs(instances: Sequence[InstanceChange]) -> tuple[list[RenderableType], int]:
    """How far the jobs are that are not over, and how many lines that takes; `meshkit jobs` shows all."""
    reported = [(one.service, job) for one in instances if one.is_there for job in one.jobs]
    under_way = [job for job in progress(reported) if job.left]
    if not under_way:
        return [], 0
    shown = under_way[:_MOST_JOBS]
    # Above and below the rows: heading, rule and a blank line.
    return [grid(shown), Text()], len(shown) + 3


class _Screen:
    """What is shown, and what keys do to it."""

    def __init__(self, transport: Transport, interval: float) -> None:
        self._transport = transport
        self._interval = interval
        self._instances: list[InstanceChange] = []
        self._is_known = False
        self._trouble = ""
        self._notes = Notes(logging.WARNING)
        # From all services down to the one that is open; with the key of the row that is selected in each.
        self._pages: list[Page] = [()]
        self._selected: list[str] = [""]
        self._sort = "name"
        self._is_turned = False
        self._has_help = False

    async def run(self) -> int:
        """Show it until somebody has seen enough; the exit code."""
        happened: asyncio.Queue[Any] = asyncio.Queue()
        logging.getLogger().addHandler(self._notes)
        watching = asyncio.create_task(self._watch(happened))
        watching.add_done_callback(happened.put_nowait)
        try:
            with (
                keyboard(happened.put_nowait, happened.put_nowait),
                Live(
                    console=console,
                    screen=True,
                    auto_refresh=False,
                    redirect_stdout=False,
                    redirect_stderr=False,
                ) as live,
            ):
                while True:
                    shown = self._sections()
                    live.update(self._shown(shown), refresh=True)
                    what = await happened.get()
                    if what is watching:
                        watching.result()
                    elif what in {"q", signal.SIGINT}:
                        return ExitCode.OK
                    elif isinstance(what, str):
                        self._press(what, [row for section in shown for row in section.rows])
                    elif isinstance(what, signal.Signals) and what is not signal.SIGWINCH:
                        return ExitCode.SIGNAL + what
        finally:
            watching.cancel()
            logging.getLogger().removeHandler(self._notes)

    async def _watch(self, happened: asyncio.Queue[Any]) -> None:
        loop = asyncio.get_running_loop()
        before = None
        while True:
            due = loop.time() + self._interval
            self._notes.last = ""
            try:
                now = await read(self._transport)
            except (Disconnected, ConnectionLost, DeadlineExceeded) as error:
                self._trouble = error.message
            else:
                self._instances, before = changes(before, now), now
                self._trouble, self._is_known = "", True
            happened.put_nowait(None)
            await asyncio.sleep(due - loop.time())

    def _press(self, key: str, rows: list[Row]) -> None:
        at = self._at(rows)
        if key == "up" and rows:
            self._selected[-1] = rows[max(0, at - 1)].key
        elif key == "down" and rows:
            self._selected[-1] = rows[min(len(rows) - 1, at + 1)].key
        elif key in {"enter", "right"} and rows and (page := rows[at].opens) is not None:
            self._selected[-1] = rows[at].key
            self._pages.append(page)
            self._selected.append("")
        elif key in {"back", "left"} and len(self._pages) > 1:
            self._pages.pop()
            self._selected.pop()
        elif key in SORTS:
            self._is_turned = self._sort == SORTS[key] and not self._is_turned
            self._sort = SORTS[key]
        elif key == "?":
            self._has_help = not self._has_help

    def _at(self, rows: list[Row]) -> int:
        keys = [row.key for row in rows]
        return keys.index(self._selected[-1]) if self._selected[-1] in keys else 0

    def _sections(self) -> list[Section]:
        return [
            Section(section.title, ordered(section.rows, self._sort, turned=self._is_turned))
            for section in sections(self._pages[-1], self._instances)
        ]

    def _shown(self, shown: list[Section]) -> Group:
        head = Text("meshkit top", "bold", no_wrap=True, overflow="ellipsis")
        path = " / ".join(filter(None, self._pages[-1]))
        head.append(f"  {clean(path) or self._how_many()}", "not bold")
        head.append(f"  every {self._interval:g} s", "dim not bold")
        rows = [row for section in shown for row in section.rows]
        help_ = Text(_HELP if self._has_help else _KEYS, "dim", no_wrap=True, overflow="ellipsis")
        trouble = self._trouble or self._notes.last
        below = [Text(clean(trouble), "red", no_wrap=True, overflow="ellipsis")] if trouble else []
        jobs, lines = _jobs(self._instances)
        is_tiny = console.height <= 2 * _AROUND + lines
        around = 0 if is_tiny else _AROUND + len(below) + lines + help_.plain.count("\n")
        body = render(
            shown,
            rows[self._at(rows)].key if rows else "",
            self._sort,
            turned=self._is_turned,
            console=console,
            height=console.height - around,
        )
        if not rows:
            body = Group(Text(self._nothing()), Text())
        return body if is_tiny else Group(head, Text(), body, *jobs, *below, help_)

    def _how_many(self) -> str:
        there = [one for one in self._instances if one.is_there]
        return f"services: {len(_by_service(there))}, instances: {len(there)}"

    def _nothing(self) -> str:
        if not self._is_known:
            return "asking the services …"
        if self._pages[-1]:
            return "It is not there any more."
        return "No service answers. `meshkit run` starts those of a folder."
