"""`meshkit call`: one call from the command line."""

import asyncio
import contextlib
from collections.abc import Sequence

import click
import msgspec

from meshkit.cli.message import NOT_JSON, addressed, encoded, header_option, message_argument
from meshkit.cli.output import nats_option, print_json
from meshkit.cli.quantity import duration
from meshkit.connecting import connect
from meshkit.errors import BadReply, MeshError
from meshkit.launcher.config import policies_here


@click.command()
@click.argument("subject")
@message_argument
@header_option
@click.option(
    "--timeout",
    metavar="DURATION",
    type=duration,
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
    headers: Sequence[str],
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
    payload = encoded(message, raw=raw)
    given = addressed(subject, headers)

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
        except NOT_JSON as error:
            raise BadReply(f"the reply is not JSON: {error}; --raw prints it as it is") from None
