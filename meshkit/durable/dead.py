"""Dead letters: messages that could not be handled, kept until somebody replays or drops them."""

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec

from meshkit.durable.declaration import nanoseconds
from meshkit.durable.delivery import ID, ONLY, ORIGINAL_ID, delivery, message_id
from meshkit.durable.jetstream import JetStream, StoredMessage
from meshkit.durable.publisher import Publisher
from meshkit.errors import BadRequest, DeclarationError, NotFound, shortened
from meshkit.headers import line, parse, render, size
from meshkit.message import Request
from meshkit.subject import Pattern, check, covers

STREAM = "MESH_DEAD"
_PREFIX = "_MESH.dead."
DEAD: dict[str, Any] = {
    "name": STREAM,
    "description": "meshkit: messages that could not be handled; see `meshkit dead`",
    "subjects": [f"{_PREFIX}>"],
    "retention": "limits",
    "storage": "file",
    "allow_direct": True,
    "duplicate_window": nanoseconds(3600),
}
"""The stream that they are in. What is changed in it by hand stays."""

# What is written to them.
_SUBJECT = "Mesh-Dead-Subject"
_STREAM = "Mesh-Dead-Stream"
_SEQUENCE = "Mesh-Dead-Sequence"
_CONSUMER = "Mesh-Dead-Consumer"
_ERROR = "Mesh-Dead-Error"
_ATTEMPTS = "Mesh-Dead-Attempts"
_INSTANCE = "Mesh-Dead-Instance"
_CUT = "Mesh-Dead-Cut"
_ALL = (_CUT, _SUBJECT, _STREAM, _SEQUENCE, _CONSUMER, _ERROR, _ATTEMPTS, _INSTANCE)
# Bytes of a message's id, as a header, at most.
_ID_ROOM = 700
# What NATS wrote to the message, or to a copy of it, is not the publisher's.
_NATS = re.compile(rb"\r\nNats-[^\r\n]*", re.IGNORECASE)


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that could not be handled.

    Attributes:
        number: Its number among the dead letters.
        time: When it became one.
        subject: Where it was published.
        stream: The stream that it came from, and may still be in.
        sequence: Its number there.
        consumer: Who could not handle it.
        instance: `service/instance` that tried last.
        error: The last error.
        attempts: How often it was delivered.
        id: The id that its publisher gave it; empty if none.
        headers: As they were, without NATS's own.
        payload: As it was.
        cut: How many bytes that had, if it is cut: there was no room for it and for all that stands here, and
            neither for its headers. 0 if it is whole.
    """

    number: int
    time: datetime
    subject: str
    stream: str
    sequence: int
    consumer: str
    instance: str
    error: str
    attempts: int
    id: str
    headers: dict[str, str]
    payload: bytes
    cut: int = 0


def subject_of(stream: str, consumer: str) -> str:
    """Where the dead letters of a consumer are; `*` for any."""
    return f"{_PREFIX}{stream}.{consumer}"


async def bury(
    publisher: Publisher, js: JetStream, request: Request, source: str, consumer: str, error: str
) -> int:
    """Put a message to the dead letters. The same delivered twice becomes one.

    Args:
        publisher: Publishes it.
        js: Where they are.
        request: The message, as it was delivered.
        source: The stream that it came from.
        consumer: Who could not handle it.
        error: Why.

    Returns:
        Its number among them.

    Raises:
        MeshError: It is not known to be stored there.
    """
    known = delivery(request.reply, request.head)
    told = {
        _SUBJECT: request.subject,
        _STREAM: source,
        _SEQUENCE: str(known.sequence),
        _CONSUMER: consumer,
        _ERROR: shortened(" ".join(error.split())).encode("utf-8", "replace").decode(),
        _ATTEMPTS: str(known.attempt),
        _INSTANCE: request.handler,
    }
    head = _NATS.sub(b"", request.head)
    if (given := message_id(request.head)) and ORIGINAL_ID not in parse(head):
        told[ORIGINAL_ID] = given
    payload, head = _fitting(request.payload, head, render(told), publisher.max_payload)
    subject = subject_of(source, consumer)
    # Delivered once more, as the instance was killed before it said so, it becomes no second dead letter.
    once = f"{known.stream}.{known.consumer}.{known.sequence}.{known.time.timestamp():.6f}"
    letter = await publisher.send_bytes(subject, payload, head, once)
    if letter.duplicate and await js.message(STREAM, letter.seq) is None:
        # That one was replayed or dropped, and this is another failure of a message that came again.
        letter = await publisher.send_bytes(subject, payload, head)
    return letter.seq


def _fitting(payload: bytes, head: bytes, told: bytes, most: int) -> tuple[bytes, bytes]:
    """Payload and head of a dead letter, cut where the server would not take them."""
    if len(payload) + size(head + told) + _ID_ROOM <= most:
        return payload, head + told
    told += line(_CUT, str(len(payload)))
    return payload[: max(0, most - size(told) - _ID_ROOM)], told


async def dead_letters(
    js: JetStream, stream: str = "*", consumer: str = "*", *, first: int = 1, last: int | None = None
) -> AsyncIterator[DeadLetter]:
    """Dead letters, the oldest first.

    Args:
        js: Where they are.
        stream: Those of the messages of one stream.
        consumer: Those of one consumer.
        first: Those from this number on.
        last: And up to this one.

    Raises:
        MeshError: They cannot be read.
    """
    async for message in js.messages(STREAM, subject_of(stream, consumer), first):
        if last is not None and message.seq > last:
            return
        yield _read(message)


async def how_many(js: JetStream, stream: str, consumer: str) -> tuple[int, int]:
    """How many dead letters there are, and the last number that was given to one.

    Args:
        js: Where they are.
        stream: As in `dead_letters`.
        consumer: Likewise.

    Raises:
        MeshError: They cannot be read.
    """
    if (info := await js.stream(STREAM)) is None:
        return 0, 0
    count = await js.count(STREAM, subject_of(stream, consumer))
    return info.state.messages if count is None else count, info.state.last_seq


async def newest(js: JetStream, stream: str, consumer: str, most: int) -> tuple[list[DeadLetter], int]:
    """The last dead letters, the oldest of them first, and how many there are before them.

    Args:
        js: Where they are.
        stream: As in `dead_letters`.
        consumer: Likewise.
        most: How many.

    Raises:
        MeshError: They cannot be read.
    """
    subject, info = subject_of(stream, consumer), await js.stream(STREAM)
    if info is None:
        return [], 0
    total = await js.count(STREAM, subject)
    first, last = info.state.first_seq, info.state.last_seq
    # The number from which on there are just enough.
    while total is not None and first < last:
        middle = (first + last + 1) // 2
        if (await js.count(STREAM, subject, middle) or 0) >= min(most, total):
            first = middle
        else:
            last = middle - 1
    letters = [letter async for letter in dead_letters(js, stream, consumer, first=first)]
    return letters[-most:], max(total or 0, len(letters)) - len(letters[-most:])


async def dead_letter(js: JetStream, number: int) -> DeadLetter:
    """One dead letter.

    Raises:
        NotFound: There is none of that number.
        MeshError: It cannot be read.
    """
    message = await js.message(STREAM, number)
    if message is None or not covers(subject_of("*", "*"), message.subject):
        raise NotFound(f"there is no dead letter {number}")
    return _read(message)


def _read(message: StoredMessage) -> DeadLetter:
    headers = parse(message.head)
    told = {name: headers.pop(name, "") for name in _ALL}
    _, _, stream, consumer = message.subject.split(".", 3)
    return DeadLetter(
        number=message.seq,
        time=message.time,
        subject=told[_SUBJECT],
        stream=told[_STREAM] or stream,
        sequence=_number(told[_SEQUENCE]),
        consumer=told[_CONSUMER] or consumer,
        instance=told[_INSTANCE],
        error=told[_ERROR],
        attempts=_number(told[_ATTEMPTS]),
        id=headers.pop(ORIGINAL_ID, ""),
        headers={name: value for name, value in headers.items() if name not in (ID, ONLY)},
        payload=message.payload,
        cut=_number(told[_CUT]),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 20 else 0


async def replay(js: JetStream, publisher: Publisher, letter: DeadLetter) -> None:
    """Publish a dead letter again, for the consumer that could not handle it alone, and take it out.

    Raises:
        BadRequest: It does not say where it was published, or nobody publishes there.
        MeshError: It is not known to be stored; then it still is a dead letter.
    """
    if letter.cut:
        raise BadRequest(
            f"dead letter {letter.number} has {len(letter.payload):,} of its {letter.cut:,} bytes; "
            f"the message is, or was, number {letter.sequence} of stream {letter.stream}"
        )
    # Who may write dead letters must not have who replays them speak to NATS itself.
    try:
        Pattern(check(letter.subject))
    except (ValueError, DeclarationError) as error:
        raise BadRequest(f"it cannot be published where it says: {error}") from None
    head = render(letter.headers | {ONLY: f"{letter.stream}.{letter.consumer}"})
    if letter.id:
        head += render({ORIGINAL_ID: letter.id})
    # Replayed twice at the same time it is stored once.
    once = f"{STREAM}.{letter.number}.{letter.time.timestamp():.6f}"
    await publisher.send_bytes(letter.subject, letter.payload, head, once)
    await js.delete(STREAM, letter.number)


async def drop(js: JetStream, letter: DeadLetter) -> None:
    """Take a dead letter out.

    Raises:
        MeshError: JetStream cannot be reached.
    """
    await js.delete(STREAM, letter.number)
