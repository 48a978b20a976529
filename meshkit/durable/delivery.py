"""What JetStream says of a message that it delivers, and what it is told of it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from meshkit.headers import find, line

ACK = "$JS.ACK."
"""How the reply subjects of messages begin that JetStream delivers."""
ID = "Nats-Msg-Id"
"""The header with a message's id."""
ORIGINAL_ID = "Mesh-Id"
"""The header with the id that a message had before it became a dead letter."""
ONLY = "Mesh-Consumer"
"""The header of a message that is for one consumer of a stream alone: `stream.consumer`."""

# Reply subjects of newer servers name a domain and an account first:
# https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-15.md
_TOKENS = 9
_FORM = (
    r"\$JS\.ACK\.(?:{names}(?:\.[0-9]{{1,19}}){{5}}"
    r"|[^.]+\.[^.]+\.{names}(?:\.[0-9]{{1,19}}){{5}}(?:\..+)?)"
)
_is_delivery = re.compile(_FORM.format(names=r"[^.]+\.[^.]+")).fullmatch
_ORIGINAL_ID = f"\r\n{ORIGINAL_ID}:".encode()
_ID = re.compile(f"\r\n{ID}:([^\r\n]*)".encode(), re.IGNORECASE)

# What JetStream is told: https://docs.nats.io/reference/reference-protocols/nats_api_reference
DONE = b"+ACK"
WORKING = b"+WPI"
NEVER = b"+TERM"


def later(seconds: float) -> bytes:
    """That a message is to be delivered again, after so many seconds."""
    return b'-NAK {"delay":%d}' % round(seconds * 1e9) if seconds > 0 else b"-NAK"


class Delivery(msgspec.Struct, frozen=True):
    """A message that was delivered by JetStream.

    Attributes:
        stream: The stream that it is from.
        consumer: The consumer.
        sequence: Its number in the stream.
        attempt: Which delivery this is, from 1.
        time: When the stream stored it.
        pending: How many more the consumer has to deliver.
        id: The id that its publisher gave it, else its place in the stream: the same with every delivery.
    """

    stream: str
    consumer: str
    sequence: int
    attempt: int
    time: datetime
    pending: int
    id: str


def is_delivery(reply: str) -> bool:
    """Whether a reply subject is one of a message that JetStream delivers."""
    return _is_delivery(reply) is not None


def of_consumer(stream: str, consumer: str) -> Callable[[str], object]:
    """What tells whether a reply subject is one of a message of that consumer."""
    return re.compile(_FORM.format(names=re.escape(f"{stream}.{consumer}"))).fullmatch


def attempt(reply: str) -> int:
    """Which delivery of a message its reply subject is of, from 1."""
    tokens = reply.split(".")
    return int(tokens[4 if len(tokens) == _TOKENS else 6])


def delivery(reply: str, head: bytes) -> Delivery:
    """What the reply subject of a message says, and its id."""
    tokens = reply.split(".")
    stream, consumer, number, sequence, _, time, pending = tokens[2 if len(tokens) == _TOKENS else 4 :][:7]
    return Delivery(
        stream=stream,
        consumer=consumer,
        sequence=int(sequence),
        attempt=int(number),
        time=datetime.fromtimestamp(int(time) / 1e9, UTC),
        pending=int(pending),
        id=message_id(head) or f"{stream}.{sequence}.{time}",
    )


def message_id(head: bytes) -> str:
    """The id that a message's publisher gave it; empty if none."""
    if original := find(head, _ORIGINAL_ID):
        return original
    found = _ID.search(head)
    return found[1].strip().decode("utf-8", "replace") if found else ""


def with_id(head: bytes, id: str) -> bytes:  # noqa: A002 # what it is called everywhere
    """A head with the id of its message."""
    return head + line(ID, id)


def has_id(head: bytes) -> bool:
    """Whether a head has one."""
    return bool(head) and _ID.search(head) is not None
