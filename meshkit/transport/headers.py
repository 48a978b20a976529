"""Message headers on the wire: `NATS/1.0`, an optional status, then `Name: value` lines (NATS ADR-4)."""

import re
from collections.abc import Mapping

# What nats-py calls an inline status: `NATS/1.0 503` of no-responders, for one.
STATUS = "Status"
DESCRIPTION = "Description"

_VERSION = len(b"NATS/1.0")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_BREAK = re.compile(r"[\r\n\x00]")


def parse(raw: bytes) -> dict[str, str] | None:
    """Headers of a received message; whatever the bytes, this returns.

    Bytes that are no UTF-8 become U+FFFD, lines without a colon are passed over, and of a name that comes
    twice the last value counts.
    """
    first, _, rest = raw.partition(b"\r\n")
    headers: dict[str, str] = {}
    status, _, description = first[_VERSION:].strip().partition(b" ")
    if status:
        headers[STATUS] = status.decode("ascii", "replace")
        if description:
            headers[DESCRIPTION] = description.strip().decode("utf-8", "replace")
    for line in rest.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers or None


def check(headers: Mapping[str, str]) -> None:
    """Refuse headers that would not arrive as they are, or would smuggle in others.

    Raises:
        TypeError: A name or value is not a string.
        ValueError: A name has characters that RFC 9110 does not allow in a token, or a value a line break.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] # who calls may not use a type checker
            raise TypeError(f"header {name!r}: {value!r}: names and values are strings")
        if not _NAME.fullmatch(name):
            raise ValueError(f"header name {name!r} may hold letters, digits and !#$%&'*+-.^_`|~ only")
        if _LINE_BREAK.search(value):
            raise ValueError(f"header {name} has a line break or NUL in its value: {value!r}")


def size(headers: Mapping[str, str]) -> int:
    """How many bytes the headers are on the wire."""
    return 12 + sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
