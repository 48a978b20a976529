"""What a rate limit counts by: from a request to a text of bounded length."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

from meshkit.codec import Decoder, content_type
from meshkit.errors import BadRequest, ConfigError
from meshkit.headers import find
from meshkit.knobs import RateLimit
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
        value = _header(name)
        return lambda request: bounded(value(request))
    if kind == "caller":
        caller = _header(CALLER)
        return lambda request: bounded(caller(request).partition("/")[0])
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
        return find(head, head[at : at + len(start)]) or ""

    return key


def _field(path: list[str]) -> Callable[[Request], str]:
    """A value of the message; of all else only the syntax is looked at."""
    type_: Any = _VALUE
    for name in reversed(path):
        # Under a name of its own: the message's may be one that a class has already.
        field = msgspec.field(default=None, name=name)
        type_ = msgspec.defstruct("Message", [("value", type_, field)], gc=False)
    decode = Decoder(type_)

    def key(request: Request) -> str:
        try:
            value = decode(request.payload, content_type(request.head))
            for _ in path:
                value = value.value
        except (BadRequest, msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
            return ""
        # 1.0 is 1: an endpoint that takes a whole number takes both.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return "" if value is None else bounded(str(value))

    return key


def check_field(limit: RateLimit | None, message: Decoder | None, what: str) -> None:
    """Check that messages may have what a limit counts by.

    Args:
        limit: The limit, if there is one.
        message: What decodes them, or None if there are none.
        what: Whose messages, for the error's text.

    Raises:
        ConfigError: They never have it; the text names the fields that they have.
    """
    kind, _, path = limit.by.partition(":") if limit else ("", "", "")
    if kind != "field":
        return
    start = f"{what}: its rate limit counts by field:{path}, but "
    if message is None or message.raw:
        raise ConfigError(f"{start}it takes {'bytes as they are' if message else 'no message'}")
    at = inspect.type_info(message.type)
    for name in path.split("."):
        while isinstance(at, inspect.Metadata):
            at = at.type
        if not isinstance(at, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
            return  # anything, one of several, or a value, which is never found
        fields = {field.encode_name: field.type for field in at.fields}
        if name not in fields:
            raise ConfigError(
                f"{start}{at.cls.__name__} has no {name!r}; it has {', '.join(fields) or 'none'}"
            )
        at = fields[name]


def bounded(key: str) -> str:
    """The key, or a digest of it if it is long."""
    if len(key) <= _LONGEST:
        return key
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
