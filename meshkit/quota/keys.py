"""What a rate limit counts by: from a request to a text of bounded length."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from meshkit.codec import Decoder, content_type
from meshkit.errors import BadRequest
from meshkit.headers import find
from meshkit.message import CALLER, Request

# Characters. Whatever a key is made of was sent by somebody.
_LONGEST = 64

# A field may hold anything; what counts is one value, and what holds none counts as if it were missing.
_VALUE = str | int | float | bool | None


def key_of(by: str) -> Callable[[Request], str]:
    """How a limit's key is read from a request; a request that has none counts under the empty key.

    Args:
        by: As `RateLimit.by` says.
    """
    kind, _, name = by.partition(":")
    if kind == "header":
        return _header(name)
    if kind == "caller":
        caller = _header(CALLER)
        return lambda request: caller(request).partition("/")[0]
    if kind == "field":
        return _field(name.split("."))
    return lambda _: ""


def _header(name: str) -> Callable[[Request], str]:
    start = f"\r\n{name}:".lower().encode()

    def key(request: Request) -> str:
        head = request.head
        at = head.lower().rfind(start)
        if at < 0:
            return ""
        return bounded(find(head, head[at : at + len(start)]) or "")

    return key


def _field(path: list[str]) -> Callable[[Request], str]:
    """A value of the message; of all else only the syntax is looked at."""
    type_: Any = _VALUE
    for name in reversed(path):
        type_ = msgspec.defstruct("Message", [(name, type_, None)], gc=False)
    decode = Decoder(type_)

    def key(request: Request) -> str:
        try:
            value = decode(request.payload, content_type(request.head))
            for name in path:
                value = getattr(value, name)
        except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
            return ""
        # 1.0 is 1: an endpoint that takes a whole number takes both.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return "" if value is None else bounded(str(value))

    return key


def bounded(key: str) -> str:
    """The key, or a digest of it if it is long."""
    if len(key) <= _LONGEST:
        return key
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
