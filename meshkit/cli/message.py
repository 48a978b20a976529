"""What the commands share that send a message: its JSON and its headers."""

import sys
from collections.abc import Sequence

import click
import msgspec

from meshkit.headers import check as check_headers
from meshkit.subject import check

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

message_argument = click.argument("message", metavar="[JSON]", required=False)
header_option = click.option(
    "--header", "-H", "headers", metavar="NAME:VALUE", multiple=True, help="Send a header; repeatable."
)


def encoded(message: str | None, *, raw: bool = False) -> bytes:
    """The message as it is sent; `-` is what standard input has.

    Args:
        message: What the command line says.
        raw: Whether it may be other than JSON.

    Raises:
        click.UsageError: It is not JSON.
    """
    payload = sys.stdin.buffer.read() if message == "-" else (message or "").encode()
    if payload and not raw:
        try:
            msgspec.json.decode(payload)
        except NOT_JSON as error:
            raise click.UsageError(
                f"the message is not JSON: {error}; "
                "a string has quotes of its own, within the shell's: '\"Ann\"'"
            ) from None
    return payload


def addressed(subject: str, headers: Sequence[str]) -> dict[str, str]:
    """The headers of a message to a subject.

    Args:
        subject: Where to.
        headers: Each as `NAME:VALUE`.

    Raises:
        click.UsageError: A header is none, or the subject is not one that can be sent to.
    """
    given = dict(map(_header, headers))
    try:
        check(subject)
        check_headers(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return given


def _header(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon:
        raise click.UsageError(f"--header {header!r} has no colon; write NAME:VALUE")
    return name.strip(), value.strip()
