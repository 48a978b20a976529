"""Bytes to typed values and back: JSON and MessagePack, by content type.

JSON carries no header, so that every NATS client can call every endpoint; MessagePack is named by
`Content-Type: application/msgpack`. A type of `bytes` means the payload as it is, whatever the content type.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from meshkit.errors import BadRequest, shortened
from meshkit.headers import find

CONTENT_TYPE = "Content-Type"
JSON = "application/json"
MSGPACK = "application/msgpack"

_LINE = f"\r\n{CONTENT_TYPE}:".encode()
_LOWER_LINE = _LINE.lower()
# What both have, to pass by most heads with one look.
_MARK = b"ontent-"

CODECS = {"json": JSON, "msgpack": MSGPACK}

_NULL = {JSON: b"null", MSGPACK: b"\xc0"}
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    JSON: msgspec.json.Encoder().encode,
    MSGPACK: msgspec.msgpack.Encoder().encode,
}


def content_type(head: bytes, *, any_if_raw: "Decoder | None" = None, usual: str = JSON) -> str:
    """The content type that the headers name.

    Args:
        head: Headers of a request, an event or a reply.
        any_if_raw: What decodes the payload: if that takes it as it is, any type will do, and counts as JSON.
        usual: What it is if they name none.

    Raises:
        BadRequest: It is neither JSON nor MessagePack.
    """
    if head.find(_MARK) < 0:
        return usual
    named = find(head, _LINE) or find(head, _LOWER_LINE)
    if not named:
        return usual
    kind = named.partition(";")[0].strip().lower()
    if kind in _ENCODERS:
        return kind
    if any_if_raw is not None and any_if_raw.raw:
        return JSON
    raise BadRequest(
        f"Content-Type {shortened(named, 50)!r} is not understood; send {JSON} (or no header) or {MSGPACK}"
    )


def encode(value: Any, kind: str = JSON) -> bytes:
    """A value as bytes; `bytes` stay as they are.

    Raises:
        TypeError: msgspec does not know how to encode the value's type.
    """
    if isinstance(value, bytes):
        return value
    return _ENCODERS[kind](value)


class Decoder:
    """Decodes payloads of one type, in every content type.

    Args:
        type_: What a payload decodes to; `bytes` is the payload itself.
    """

    __slots__ = ("_decoders", "raw", "type")

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self.raw = type_ is bytes
        self._decoders: dict[str, Callable[[bytes], Any]] = {
            JSON: msgspec.json.Decoder(type_).decode,
            MSGPACK: msgspec.msgpack.Decoder(type_).decode,
        }

    def __call__(self, payload: bytes, kind: str = JSON) -> Any:
        """The value in a payload; an empty one, which clients without a message send, means null.

        Raises:
            msgspec.DecodeError: It is no valid JSON or MessagePack, or not of the type; the path is named.
        """
        if self.raw:
            return payload
        return self._decoders[kind](payload or _NULL[kind])
