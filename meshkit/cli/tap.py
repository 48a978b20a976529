"""`meshkit tap`: calls as they happen."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime

import click
import msgspec
from rich.text import Text

from meshkit.cli.discover import ask
from meshkit.cli.figures import NumberRange
from meshkit.cli.output import clean, console, escaped, json_option, nats_option
from meshkit.errors import ConnectionLost, DeclarationError, NotFound
from meshkit.headers import NO_RESPONDERS
from meshkit.layers.statistics import OK
from meshkit.subject import Pattern
from meshkit.telemetry.live.changes import is_fault
from meshkit.telemetry.live.tap import MOST_PAYLOAD, MOST_RATE, TAP, Record, Tapped, TapRequest
from meshkit.transport import Message, Transport

# Seconds for which an instance sends records, and between two requests to go on: more than two may be lost.
_LEASE, _RENEW = 10.0, 3.0
# Seconds until whoever is there has answered.
_PATIENCE = 1.0

_COLUMNS = (
    *("time", "outcome", "ms", "subject", "instance", "caller", "trace", "error"),
    *("headers", "reply headers", "payload", "reply"),
)
# Instances whose answers are remembered: those that were heard last.
_MOST_HEARD = 1000
# Of an instance's id on a terminal.
_ID = 6


@click.command()
@click.argument("subject")
@click.option(
    "--rate",
    metavar="N",
    type=NumberRange(0, MOST_RATE, min_open=True),
    default=10.0,
    show_default=True,
    help="Calls a second of one instance, at most.",
)
@click.option("--count", metavar="N", type=click.IntRange(1), help="End after so many calls.")
@click.option("--errors", is_flag=True, help="Leave out calls that succeed.")
@click.option(
    "--headers", is_flag=True, help="Show the headers, those masked that are secrets by their name."
)
@click.option(
    "--payloads",
    metavar="BYTES",
    type=click.IntRange(1, MOST_PAYLOAD),
    help="Show so many bytes of each payload and its answer.",
)
@nats_option
@json_option
def tap(
    subject: str,
    *,
    rate: float,
    count: int | None,
    errors: bool,
    headers: bool,
    payloads: int | None,
    nats: str | None,
    as_json: bool,
) -> None:
    """Show calls and events on SUBJECT as they happen, until Ctrl-C.

    SUBJECT may have wildcards: `meshkit tap 'hotel.rooms.>'`. The instances that handle calls tell of them
    when they are over; those that do not run meshkit tell nothing.
    """
    try:
        Pattern(subject)
    except DeclarationError as error:
        raise click.UsageError(str(error)) from None
    wanted = TapRequest(subject, _LEASE, rate=rate, errors=errors, headers=headers, payload=payloads or 0)

    show = _json if as_json else _on_terminal if console.is_terminal else _row

    async def watch(transport: Transport) -> None:
        shown = 0
        async with contextlib.aclosing(_records(transport, wanted)) as records:
            async for record in records:
                if show is _row and not shown:
                    click.echo("\t".join(_COLUMNS))
                show(record)
                shown += 1
                if shown == count:
                    return

    ask(nats, watch)


class _Inbox(asyncio.Queue[Message | BaseException]):
    """Where records arrive, a `meshkit.transport.Sink`."""

    def done(self) -> bool:
        return False

    def set_result(self, result: Message, /) -> None:
        self.put_nowait(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.put_nowait(exception)


async def _records(transport: Transport, wanted: TapRequest) -> AsyncGenerator[Record]:
    """What instances tell, for as long as somebody wants it.

    Raises:
        NotFound: Nobody has anything to tell.
        Forbidden: The connection's user may not ask.
    """
    loop = asyncio.get_running_loop()
    inbox = _Inbox()
    heard: dict[str, None] = {}
    reply, asks = transport.attach(TAP, inbox), loop.time()
    try:
        while True:
            if loop.time() >= asks:
                transport.tell(TAP, msgspec.json.encode(wanted), reply=reply)
                asks = loop.time() + (_RENEW if heard else _PATIENCE)
            try:
                async with asyncio.timeout_at(asks):
                    message = await inbox.get()
            except TimeoutError:
                if not heard:
                    raise _nobody(wanted) from None
                continue
            if isinstance(message, ConnectionLost):
                # Instances that stay connected go on for a while, but to a reply subject that nobody has.
                click.echo("meshkit: the connection to NATS broke; waiting for it", err=True)
                transport.detach(reply)
                await transport.ready(math.inf)
                reply, asks = transport.attach(TAP, inbox), loop.time()
            elif isinstance(message, BaseException):
                raise message
            elif message.head.startswith(NO_RESPONDERS):
                if not heard:
                    raise _nobody(wanted)
            elif isinstance(told := _read(message), Record):
                yield told
            elif told is not None:
                _hear(told, heard)
    finally:
        transport.tell(TAP, msgspec.json.encode(msgspec.structs.replace(wanted, seconds=0)), reply=reply)
        transport.detach(reply)


def _nobody(wanted: TapRequest) -> NotFound:
    return NotFound(
        f"no instance that runs meshkit handles a subject that {wanted.subject!r} matches; "
        "`meshkit ls` shows who is there, `meshkit info NAME` its subjects"
    )


def _read(message: Message) -> Record | Tapped | None:
    try:
        return msgspec.json.decode(message.payload, type=Record | Tapped)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        click.echo(f"meshkit: a record is left out, it cannot be read: {clean(error)}", err=True)
        return None


def _hear(told: Tapped, heard: dict[str, None]) -> None:
    """Say who tells something from now on, and who does not."""
    is_new = told.instance not in heard
    heard.pop(told.instance, None)
    heard[told.instance] = None
    if len(heard) > _MOST_HEARD:
        del heard[next(iter(heard))]
    if not is_new:
        return
    what = (
        f"shows nothing: {told.refused}"
        if told.refused
        else f"shows {', '.join(dict.fromkeys(told.endpoints))}"
    )
    click.echo(clean(f"meshkit: {told.service}/{told.instance} {what}"), err=True)


def _json(record: Record) -> None:
    encoded = msgspec.json.encode(record)
    click.echo(escaped(encoded.decode()) if console.is_terminal else encoded)


def _row(record: Record) -> None:
    cells = (
        datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds"),
        record.outcome,
        f"{record.seconds * 1000:.3f}",
        record.subject,
        f"{record.service}/{record.instance}",
        record.caller,
        record.trace,
        record.error,
        *(json.dumps(each) if each else "" for each in (record.headers, record.reply_headers)),
        record.payload,
        record.reply,
    )
    click.echo("\t".join(map(clean, cells)))


def _on_terminal(record: Record) -> None:
    if record.left_out:
        _print(Text(f"{'':13}… {record.left_out} more of {_short(record.service, record.instance)}", "dim"))
    at = datetime.fromtimestamp(record.time).astimezone()
    text = Text(f"{at:%H:%M:%S}.{at.microsecond // 1000:03} ", "dim")
    colour = "green" if record.outcome == OK else "red" if is_fault(record.outcome) else "yellow"
    text.append(f"{clean(record.outcome):<16} ", f"not dim {colour}")
    text.append(f"{record.seconds * 1000:>9.2f} ms  ", "not dim")
    text.append(clean(record.subject), "not dim bold")
    if record.delivery > 1:
        text.append(f" (delivery {record.delivery})")
    elif record.is_event:
        text.append(" (event)")
    text.append(f"  {_short(*record.caller.split('/', 1))} → " if record.caller else "  → ")
    text.append(_short(record.service, record.instance))
    _print(text)
    for label, value in _details(record):
        _print(Text(f"{'':13}{label} ", "dim").append(clean(value), "not dim"))


def _details(record: Record) -> Iterator[tuple[str, object]]:
    if record.error:
        yield "error", record.error
    if record.trace and record.headers is not None:
        yield "trace", record.trace
    for direction, headers in (("→", record.headers), ("←", record.reply_headers)):
        for name, value in (headers or {}).items():
            yield direction, f"{name}: {value}"
    for direction, payload, size in (
        ("→", record.payload, record.received),
        ("←", record.reply, record.sent),
    ):
        if payload:
            cut = size > len(payload.encode())
            yield direction, f"{payload}… ({size:,} bytes)" if cut else payload


def _short(service: str, instance: str = "") -> str:
    """An instance by the beginning of its id, which tells it from the others."""
    return clean(f"{service}/{instance[:_ID]}" if instance else service)


def _print(text: Text) -> None:
    console.print(text, soft_wrap=True)
