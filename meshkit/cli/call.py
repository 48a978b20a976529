"""`meshkit call`: one call from the command line."""

import asyncio
import contextlib
import sys

import click
import msgspec

from meshkit.cli.output import nats_option, print_json
from meshkit.connecting import connect
from meshkit.errors import BadReply, MeshError
from meshkit.headers import check as check_headers
from meshkit.knobs import seconds
from meshkit.launcher.config import policies_here
from meshkit.subject import check

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    duration: float | str = value
    with contextlib.suppress(ValueError):
        duration = float(value)
    try:
        return seconds(duration)
    except ValueError:
        raise click.BadParameter("seconds above 0, or text such as 250ms, is wanted.", ctx, param) from None


@click.command()
@click.argument("subject")
@click.argument("message", metavar="[JSON]", required=False)
@click.option("--header", "headers", metavar="NAME:VALUE", multiple=True, help="Send a header; repeatable.")
@click.option(
    "--timeout",
    metavar="DURATION",
    callback=_seconds,
    help="How long the reply or an item may take, in seconds or as 250ms.  "
    "[default: meshkit.toml's, else what the service announces, else 5]",
)
@click.option("--stream", is_flag=True, help="Read a stream: print its items as they come.")
@click.option("--raw", is_flag=True, help="Send and print bytes as they are, JSON or not.")
@nats_option
def call(
    subject: str,
    message: str | None,
    *,
    headers: tuple[str, ...],
    timeout: float | None,
    stream: bool,
    raw: bool,
    nats: str | None,
) -> None:
    """Call the endpoint on SUBJECT and print its reply.

    JSON is the message; `-` reads it from standard input. If there is a meshkit.toml in the current folder,
    its [call] tables hold. Without --timeout it first asks what the service announces of such calls.

    \b
      meshkit call hotel.rooms.book '{"room": 12, "guest": "Ann"}'
      meshkit call hotel.rooms.greet '"Ann"'
    """  # noqa: D301 - the backspace character keeps click from wrapping the lines
    payload = _payload(message, raw=raw)
    given = dict(_header(header) for header in headers)
    try:
        check(subject)
        check_headers(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    async def run() -> None:
        async with connect(nats, name="meshkit", policies=policies_here()) as mesh:
            if timeout is None:
                # A first call otherwise goes by the defaults. Without that, as where it is not allowed.
                with contextlib.suppress(MeshError):
                    await mesh.directory.learn()
            if stream:
                items = mesh.stream(subject, payload, returns=bytes, message_timeout=timeout, headers=given)
                async for item in items:
                    _print(item, raw=raw)
            else:
                reply = await mesh.call(subject, payload, returns=bytes, timeout=timeout, headers=given)
                _print(reply, raw=raw)

    asyncio.run(run())


def _print(reply: bytes, *, raw: bool) -> None:
    if raw:
        click.echo(reply, nl=False)
    elif reply:
        try:
            print_json(msgspec.Raw(msgspec.json.format(reply, indent=-1)))
        except _NOT_JSON as error:
            raise BadReply(f"the reply is not JSON: {error}; --raw prints it as it is") from None


def _payload(message: str | None, *, raw: bool) -> bytes:
    payload = sys.stdin.buffer.read() if message == "-" else (message or "").encode()
    if payload and not raw:
        try:
            msgspec.json.decode(payload)
        except _NOT_JSON as error:
            raise click.UsageError(
                f"the message is not JSON: {error}; "
                "a string has quotes of its own, within the shell's: '\"Ann\"'"
            ) from None
    return payload


def _header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon:
        raise click.UsageError(f"--header {header!r} has no colon; write NAME:VALUE")
    return name.strip(), value.strip()
