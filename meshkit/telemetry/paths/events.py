"""What a NATS server publishes of a message that is traced (ADR-41), by the names of its msgtrace.go."""

import gzip
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import msgspec

from meshkit.transport import Message

# Headers of a traced message: where events go, whether it is not delivered, where in the tree it is.
DESTINATION, ONLY, HOP = "Nats-Trace-Dest", "Nats-Trace-Only", "Nats-Trace-Hop"


class Server(msgspec.Struct, frozen=True):
    """Who publishes an event."""

    name: str = ""
    id: str = ""
    cluster: str = ""
    ver: str = ""


class Traced(msgspec.Struct, frozen=True):
    """The message: its headers, and its size in bytes."""

    header: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])
    msgsize: int = 0


class Happened(msgspec.Struct, frozen=True):
    """What happened to the message; which of the fields there are depends on the type.

    Attributes:
        type: `in` ingress, `sm` subject mapping, `se` stream export, `si` service import, `js` JetStream,
            `eg` egress.
        ts: When, by the server's clock.
    """

    type: str
    ts: Annotated[datetime, msgspec.Meta(tz=True)]
    kind: int = -1
    cid: int = 0
    name: str = ""
    acc: str = ""
    subj: str = ""
    to: str = ""
    source: str = msgspec.field(name="from", default="")
    stream: str = ""
    subject: str = ""
    nointerest: bool = False
    hop: str = ""
    sub: str = ""
    queue: str = ""
    error: str = ""


class Event(msgspec.Struct, frozen=True):
    """What one server tells of one message; the first thing that happened is that it came in."""

    server: Server
    request: Traced
    events: list[Happened]

    @property
    def hop(self) -> str:
        """Where in the tree the server is: empty where the message was sent to, else `1`, `1.2`."""
        return (self.request.header.get(HOP) or [""])[0]

    def onward(self) -> Iterator[tuple[Happened, str]]:
        """Where the message went on to other servers, and the places of those in the tree."""
        below = f"{self.hop}." if self.hop else ""
        for one in self.events:
            # Below its own place: whoever gets the message could publish an event that leads in circles.
            if one.type == "eg" and one.hop and one.hop.startswith(below):
                yield one, one.hop


def decode(message: Message) -> Event:
    """What a server tells of a message.

    Raises:
        ValueError: It is no such event, or compressed otherwise than with gzip.
    """
    return parse(content(message))


def parse(payload: bytes) -> Event:
    """The same from JSON.

    Raises:
        ValueError: It is no such event.
    """
    try:
        event = msgspec.json.decode(payload, type=Event)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not event.events or event.events[0].type != "in":
        raise ValueError("it does not say how the message came in")
    return event


def content(message: Message) -> bytes:
    """What a server says: compressed, where the traced message says that its sender reads that.

    Raises:
        ValueError: It is compressed otherwise than with gzip.
    """
    match message.headers.get("Content-Encoding", "") if message.head else "":
        case "":
            return message.payload
        case "gzip":
            try:
                return gzip.decompress(message.payload)
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"it is not the gzip that it says it is: {error}") from None
        case other:
            raise ValueError(f"it is compressed with {other}, as the message's Accept-Encoding asks for")
