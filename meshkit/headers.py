"""Message headers as bytes: found, read and written (NATS ADR-4).

On the wire they are `NATS/1.0`, an optional status, then lines `Name: value`. What is passed around is the
*head*: all that stands behind `NATS/1.0`, as bytes, in which each header begins with a line break. It is
parsed only when somebody reads headers, and one header is found in it without parsing the others.
"""

import re
from collections.abc import Mapping

# What nats-py calls an inline status: `NATS/1.0 503` of no-responders, for one.
STATUS = "Status"
DESCRIPTION = "Description"

VERSION = b"NATS/1.0"
# Bytes around a head: the version before it, a blank line after it.
FRAME = len(VERSION) + 4
# Of an answer that NATS itself gives: nobody listens on the subject.
NO_RESPONDERS = b" 503"

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_BREAK = re.compile(r"[\r\n\x00]")


def line(name: str, value: str) -> bytes:
    """A header as part of a head."""
    return f"\r\n{name}: {value}".encode()


def render(headers: Mapping[str, str]) -> bytes:
    """Headers as a head."""
    return b"".join(line(name, value) for name, value in headers.items())


def find(head: bytes, start: bytes) -> str | None:
    """One header's value, white space around it stripped; the last, if the name comes twice.

    Args:
        head: Where to look.
        start: How the header's line starts: a line break, the exact name, a colon.
    """
    at = head.rfind(start)
    if at < 0:
        return None
    at += len(start)
    end = head.find(b"\r\n", at)
    return (head[at:] if end < 0 else head[at:end]).strip().decode("utf-8", "replace")


def whole(text: str) -> int | None:
    """A header's value as a whole number; None if it is none, or has more than twelve digits."""
    return int(text) if len(text) <= 12 and text.isascii() and text.isdigit() else None


def parse(head: bytes) -> dict[str, str]:
    """All headers of a head, and its status as if it were one; whatever the bytes, this returns.

    Bytes that are no UTF-8 become U+FFFD, lines without a colon are passed over, and of a name that comes
    twice the last value counts.
    """
    first, *lines = head.split(b"\r\n")
    headers: dict[str, str] = {}
    status, _, description = first.strip().partition(b" ")
    if status:
        headers[STATUS] = status.decode("ascii", "replace")
        if description:
            headers[DESCRIPTION] = description.strip().decode("utf-8", "replace")
    for text in lines:
        name, colon, value = text.partition(b":")
        if colon:
            headers[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


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


def size(head: bytes) -> int:
    """How many bytes a head takes on the wire."""
    return len(head) + FRAME if head else 0
