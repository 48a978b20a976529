"""`meshkit call`: one call from the command line."""

import asyncio
import math
import sys

import click
import msgspec

from meshkit.cli.output import nats_option, print_json
from meshkit.errors import BadReply
from meshkit.headers import check as check_headers
from meshkit.mesh import connect
from meshkit.subject import check

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter("a number of seconds above 0 is wanted.", ctx, param)
    return value


@click.command()
@click.argument("subject")
@click.argument("message", metavar="[JSON]", required=False)
@click.option("--header", "headers", metavar="NAME:VALUE", multiple=True, help="Send a header; repeatable.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    default=5.0,
    callback=_seconds,
    show_default=True,
    help="How long to wait for the reply.",
)
@click.option("--raw", is_flag=True, help="Send and print bytes as they are, JSON or not.")
@nats_option
def call(
    subject: str,
    message: str | None,
    *,
    headers: tuple[str, ...],
    timeout: float,
    raw: bool,
    nats: str | None,
) -> None:
    """Call the endpoint on SUBJECT and print its reply.

    JSON is the message; `-` reads it from standard input.

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

    async def run() -> bytes:
        async with connect(nats, name="meshkit") as mesh:
            return await mesh.call(subject, payload, returns=bytes, timeout=timeout, headers=given)

    reply = asyncio.run(run())
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
