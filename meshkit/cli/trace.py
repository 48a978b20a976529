"""`meshkit trace`: which way a message takes through the NATS servers."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import click

from meshkit.cli.message import addressed, encoded, header_option, message_argument
from meshkit.cli.output import clean, json_option, nats_option, print_json
from meshkit.cli.quantity import duration
from meshkit.connecting import reach
from meshkit.errors import DeadlineExceeded, MeshError, NoResponders
from meshkit.headers import render
from meshkit.telemetry.paths import path
from meshkit.telemetry.paths.hops import (
    Egress,
    Hop,
    Kind,
    Mapping,
    ServiceImport,
    Step,
    Stored,
    hidden_in,
    is_unheard,
)
from meshkit.telemetry.paths.path import Path, check

# As the `nats` command has them: the arrow, the name, what a connection's number is called.
_KINDS: dict[Kind, tuple[str, str, str]] = {
    "client": ("--C", "Client", "cid"),
    "router": ("-->", "Router", "rid"),
    "gateway": ("==>", "Gateway", "gid"),
    "leafnode": ("~~>", "Leafnode", "lid"),
    "jetstream": ("--J", "JetStream", "jid"),
    "system": ("--S", "System", "sid"),
    "account": ("--A", "Account", "aid"),
    "unknown": ("--?", "Unknown", "id"),
}
_LEGEND = ("client", "router", "gateway", "leafnode", "jetstream")
_ERROR = "--X"
_TIME_WIDTH = 10

# Seconds, how many servers were passed before, and the text.
_Line: TypeAlias = tuple[float | None, int, str]


@click.command()
@click.argument("subject")
@message_argument
@header_option
@click.option("--deliver", is_flag=True, help="Deliver the message, too; without it, it only is traced.")
@click.option(
    "--timeout",
    metavar="DURATION",
    default="2",
    show_default=True,
    type=duration,
    help="How long the servers may take to tell, in seconds or as 250ms.",
)
@nats_option
@json_option
def trace(
    subject: str,
    message: str | None,
    *,
    headers: Sequence[str],
    deliver: bool,
    timeout: float,
    nats: str | None,
    as_json: bool,
) -> None:
    """Show which way a message to SUBJECT takes through the NATS servers, and whom it reaches.

    JSON is the message; `-` reads it from standard input. The message is not delivered, unless --deliver says
    so: the servers, of version 2.11 or later, only tell what they would do with it.

    Times are those since a server got the message, by its clock. That of a server itself is how long the
    message was on its way from the server before; where their clocks differ by more, it is left out.
    """
    payload = encoded(message)
    given = addressed(subject, headers)
    try:
        check(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    async def run() -> Path:
        async with reach(nats, name="meshkit") as transport:
            return await path.trace(
                transport, subject, payload, render(given), deliver=deliver, timeout=timeout
            )

    found = asyncio.run(run())
    if as_json:
        print_json(found)
    else:
        how = "which is delivered" if deliver else "which is not delivered"
        click.echo(f"Path of a message to {clean(subject)}, {how}\n")
        print_hop(found.origin)
        click.echo()
        _print_summary(found)
    _judge(found)


def print_hop(hop: Hop) -> None:
    """Print a server that a message passed, and those behind it.

    Args:
        hop: The server.
    """
    for seconds, depth, text in _described(hop, 0):
        time = "" if seconds is None or seconds < 0 else f"{seconds * 1000:.3f} ms"
        click.echo(f"{time:>{_TIME_WIDTH}} {'    ' * depth}{clean(text)}".rstrip())


def _print_summary(path: Path) -> None:
    legend = " ".join(f"{arrow} {name}" for arrow, name, _ in (_KINDS[kind] for kind in _LEGEND))
    click.echo(f"Legend: {legend} {_ERROR} Error")
    if path.egress:
        click.echo("\nEgress count:")
        for kind, count in path.egress.items():
            click.echo(f"{_KINDS[kind][1]:>{_TIME_WIDTH}}: {count}")


def _judge(path: Path) -> None:
    """Whether the message arrives, by the exit code too."""
    if path.errors:
        raise MeshError("; ".join(path.errors))
    if not path.complete:
        raise DeadlineExceeded("not every server told in time where the message went")
    if not path.reached and not path.hidden:
        raise NoResponders(f"nobody listens on {path.subject!r}")


def _described(hop: Hop, depth: int) -> Iterator[_Line]:
    _, name, number = _KINDS[hop.kind]
    named = f"{name} {_quoted(hop.name)}" + (f"{number}:{hop.cid} " if hop.cid else "")
    where = {"cluster": hop.cluster if hop.kind in {"client", "gateway"} else "", "server": hop.server}
    yield hop.transit, depth, named + _pairs({**where, "version": hop.version})
    if hop.error:
        yield None, depth, f"{_ERROR} {hop.error}"
    for step in hop.steps:
        yield from _step(step, depth)
    if account := hidden_in(hop):
        text = f'account "{account}" does not let the trace in (allow_trace), or nobody listens there'
        yield None, depth, f"    {text}"
    elif is_unheard(hop):
        yield None, depth, f"{_ERROR} nobody listens"


def _step(step: Step, depth: int) -> Iterator[_Line]:
    error = ""
    match step:
        case Egress():
            arrow, name, number = _KINDS[step.kind]
            text = f"{arrow} {name} {_quoted(step.name)}" + (f"{number}:{step.cid} " if step.cid else "")
            text += _pairs({"account": step.account, "subject": step.subscription, "queue": step.queue})
            error = step.error
        case Stored():
            action = "refused" if step.error else "no interest" if step.no_interest else "stored"
            text = "--J JetStream " + _pairs(
                {"action": action, "stream": step.stream, "subject": step.subject}
            )
            error = step.error
        case Mapping():
            text = "    Mapping " + _pairs({"subject": step.to})
        case ServiceImport():
            text = "    Service Import " + _pairs(
                {"from": step.source, "to": step.to, "account": step.account}
            )
        case _:
            text = "    Stream Export " + _pairs({"subject": step.to, "account": step.account})
    yield step.after, depth, text
    if error:
        yield None, depth, f"    {_ERROR} {error}"
    if isinstance(step, Egress) and step.hop is not None:
        yield from _described(step.hop, depth + 1)


def _quoted(name: str) -> str:
    return f'"{name}" ' if name else ""


def _pairs(pairs: dict[str, str]) -> str:
    return " ".join(f'{name}:"{value}"' for name, value in pairs.items() if value)
