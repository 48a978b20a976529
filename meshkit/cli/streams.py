"""`meshkit streams`: what is in streams, and how far those are that handle it."""

import time
from collections.abc import Sequence
from typing import Any

import anyio
import click
from rich.console import RenderableType
from rich.text import Text

from meshkit.cli.discover import ask
from meshkit.cli.exits import ExitCode
from meshkit.cli.live import live, pause_option, plain, watch_option
from meshkit.cli.output import clean, console, json_option, nats_option, print_json, table
from meshkit.cli.streams_page import Seen, last_message, limit, limits, nothing, render, subjects, unusual
from meshkit.durable.jetstream import JetStream
from meshkit.durable.overview import Overview, Progress, overview
from meshkit.durable.plan import Plan
from meshkit.durable.plan import plan as make_plan
from meshkit.errors import NotFound
from meshkit.launcher import targets as launcher_targets
from meshkit.launcher.fleet import Fleet, LaunchError, muster
from meshkit.transport import Transport


class _Streams(click.Command):
    """The command, and `plan` below it: the first argument is a stream's name otherwise."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] != ["plan"]:
            return super().make_context(info_name, args, parent, **extra)
        extra["auto_envvar_prefix"] = "MESHKIT_STREAMS_PLAN"
        return plan.make_context(f"{info_name} plan", args[1:], parent, **extra)


@click.command(cls=_Streams)
@click.argument("name", required=False, default="")
@click.option("--all", "with_all", is_flag=True, help="Also those that meshkit and NATS make for others.")
@watch_option
@pause_option
@nats_option
@json_option
@click.pass_context
def streams(
    ctx: click.Context,
    name: str,
    *,
    with_all: bool,
    watch: bool,
    interval: float,
    nats: str | None,
    as_json: bool,
) -> None:
    """Show streams, or the stream NAME, and how far its consumers are.

    Lag is what a consumer has not been sent yet, unacknowledged what it has been sent and is not done with.

    `meshkit streams plan TARGET...` shows what would become of streams if these services were started.
    """

    async def show(transport: Transport) -> int:
        looks = _Looks(JetStream(transport), name, with_all=with_all)
        if watch and console.is_terminal and not console.is_dumb_terminal and not as_json:
            return await live(looks.on_terminal, interval, full=True)
        look = looks.as_json if as_json else looks.as_table
        if watch:
            await plain(look, interval)
        else:
            await look()
        return ExitCode.OK

    ctx.exit(ask(nats, show))


@click.command()
@click.argument("targets", metavar="[TARGET]...", nargs=-1, type=click.Path())
@nats_option
@json_option
@click.pass_context
def plan(ctx: click.Context, targets: tuple[str, ...], *, nats: str | None, as_json: bool) -> None:
    """Show what starting services would make or change of streams and consumers; nothing is done.

    A TARGET is one of `meshkit run`; without one it is the current folder. The exit code is 1 if something
    of it would be refused, as it would destroy messages.
    """
    found = launcher_targets.read(targets or (".",))
    url = nats or found.nats
    try:
        fleet = anyio.run(_fleet, found, url or "")
    except LaunchError as error:
        click.echo(f"meshkit: {error}", err=True)
        ctx.exit(ExitCode.FAILURE)
    services = [line.service for line in fleet.lines]

    async def look(transport: Transport) -> Plan:
        return await make_plan(
            JetStream(transport),
            [stream for service in services for stream in service.streams],
            [consumer for service in services for consumer in service.consumers],
        )

    todo = ask(url, look)
    changes = [change.text for change in todo.changes]
    if as_json:
        print_json({"changes": changes, "refusals": todo.refusals})
    else:
        for text in changes:
            console.print(Text(clean(text), "green" if text.startswith("+") else "yellow"), soft_wrap=True)
        for text in todo.refusals:
            console.print(Text(clean(f"! {text}"), "red"), soft_wrap=True)
        if not changes and not todo.refusals:
            click.echo("Nothing has to be made or changed.", err=True)
    ctx.exit(ExitCode.FAILURE if todo.refusals else ExitCode.OK)


async def _fleet(found: launcher_targets.Targets, url: str) -> Fleet:
    return await muster(found, url=url, workers={}, log_level="info", loop=None)


# Looking


class _Looks:
    """Looks at streams one after the other, and what changed between them."""

    def __init__(self, js: JetStream, name: str, *, with_all: bool) -> None:
        self._js = js
        self._name = name
        self._with_all = with_all
        self._left_out = 0
        self._is_first = True
        # Of the look before: when, and how many deliveries had ended, by stream and consumer.
        self._at: float | None = None
        self._deliveries: dict[tuple[str, str], int] = {}

    async def on_terminal(self) -> tuple[RenderableType, bool]:
        """What there is to show; it never ends."""
        seen = await self._look()
        return render(seen, self._left_out), False

    async def as_table(self) -> bool:
        seen = await self._look()
        if console.is_terminal:
            console.print(render(seen, self._left_out))
        elif seen:
            table(_HEADINGS, [line for one, rows in seen for line in _lines(one, rows)])
        elif self._is_first:
            click.echo(nothing(self._left_out), err=True)
        self._is_first = False
        return False

    async def as_json(self) -> bool:
        print_json([_stream(one, rows) for one, rows in await self._look()])
        return False

    async def _look(self) -> list[tuple[Overview, list[Seen]]]:
        found = await overview(self._js)
        shown = [one for one in found if self._is_wanted(one)]
        if self._name and not shown:
            raise NotFound(_unknown(self._name, found))
        self._left_out = 0 if self._name else len(found) - len(shown)
        now = time.monotonic()
        seconds = 0.0 if self._at is None else now - self._at
        seen = [(one, [self._seen(one, each, seconds) for each in one.consumers]) for one in shown]
        self._at = now
        self._deliveries = {
            (one.stream.name, each.name): each.deliveries for one in shown for each in one.consumers
        }
        return seen

    def _is_wanted(self, one: Overview) -> bool:
        if self._name:
            return one.stream.name == self._name
        return self._with_all or not one.is_helper

    def _seen(self, one: Overview, progress: Progress, seconds: float) -> Seen:
        before = self._deliveries.get((one.stream.name, progress.name))
        if before is None or progress.deliveries < before:
            return Seen(progress)
        rate = (progress.deliveries - before) / seconds
        left = None if progress.left else 0.0
        return Seen(progress, rate, progress.left / rate if rate else left)


def _unknown(name: str, found: Sequence[Overview]) -> str:
    names = ", ".join(one.stream.name for one in found if not one.is_helper)
    return f"there is no stream {name!r}, {f'only {names}' if names else 'nor any other'}"


_HEADINGS = (
    *("stream", "subjects", "messages", "bytes", "last", "limits"),
    *("consumer", "consumer subjects", "partitions", "matching", "done"),
    *("lag", "unacknowledged", "redelivered", "waiting", "rate", "seconds left"),
)


def _lines(one: Overview, rows: Sequence[Seen]) -> list[tuple[object, ...]]:
    state, last = one.stream.state, last_message(one)
    at = None if last is None else last.isoformat(timespec="milliseconds")
    head = (one.stream.name, ", ".join(subjects(one)), state.messages, state.bytes, at)
    head += (", ".join(limits(one) + unusual(one)),)
    lines: list[tuple[object, ...]] = [
        (
            *head,
            *(each.name, ", ".join(each.subjects), each.partitions or None, each.matching, each.done),
            *(each.pending, each.unacknowledged, each.redelivered, each.waiting),
            *(None if value is None else round(value, 2) for value in (rate, left)),
        )
        for each, rate, left in rows
    ]
    return lines or [head + (None,) * (len(_HEADINGS) - len(head))]


def _stream(one: Overview, rows: Sequence[Seen]) -> dict[str, Any]:
    """A stream as JSON, durations in seconds."""
    config, state = one.stream.config, one.stream.state
    return {
        "name": one.stream.name,
        "subjects": subjects(one),
        "messages": state.messages,
        "bytes": state.bytes,
        "last": last_message(one),
        "retention": config.get("retention"),
        "storage": config.get("storage"),
        "max_age": (config.get("max_age") or 0) / 1e9 or None,
        "max_bytes": limit(one, "max_bytes"),
        "max_messages": limit(one, "max_msgs"),
        "consumers": [
            {
                "name": each.name,
                "subjects": each.subjects,
                "partitions": each.partitions,
                "matching": each.matching,
                "done": each.done,
                "lag": each.pending,
                "unacknowledged": each.unacknowledged,
                "redelivered": each.redelivered,
                "waiting": each.waiting,
                "rate": rate,
                "seconds_left": left,
            }
            for each, rate, left in rows
        ],
    }
