"""Bytes to typed values and back: JSON and MessagePack, by content type.

JSON carries no header, so that every NATS client can call every endpoint; MessagePack is named by
`Content-Type: application/msgpack`. A type of `bytes` means the payload as it is, whatever the content type.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from meshkit.errors import BadRequest, shortened

CONTENT_TYPE = "Content-Type"
JSON = "application/json"
MSGPACK = "application/msgpack"

CODECS = {"json": JSON, "msgpack": MSGPACK}

_NULL = {JSON: b"null", MSGPACK: b"\xc0"}
_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    JSON: msgspec.json.Encoder().encode,
    MSGPACK: msgspec.msgpack.Encoder().encode,
}


def content_type(headers: Mapping[str, str] | None, *, any_if_raw: "Decoder | None" = None) -> str:
    """The content type that the headers name; JSON if they name none.

    Args:
        headers: Of a request, an event or a reply.
        any_if_raw: What decodes the payload: if that takes it as it is, any type will do, and counts as JSON.

    Raises:
        BadRequest: It is neither JSON nor MessagePack.
    """
    headers = headers or {}
    named = headers.get(CONTENT_TYPE) or headers.get(CONTENT_TYPE.lower())
    if not named:
        return JSON
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
