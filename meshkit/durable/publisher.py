"""Publishing that is acknowledged: many messages under way at a time, each until a stream has stored it."""

import asyncio
import contextvars
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from meshkit.deadlines import Deadlines
from meshkit.durable.delivery import has_id, message_id, with_id
from meshkit.durable.jetstream import TEMPORARY, ApiError, JetStreamError
from meshkit.errors import DeadlineExceeded, Forbidden, MeshError, NoResponders
from meshkit.headers import NO_RESPONDERS
from meshkit.message import CURRENT
from meshkit.transport import Message, Sender, Transport

# Seconds that storing a message may take in all, and after which it is sent again.
_PATIENCE = 30.0
_AGAIN = 5.0
# Seconds between attempts while JetStream starts.
_PAUSE = 0.1
_LONGEST_ID = 500
# Subjects that are known to be kept.
_MOST_KEPT = 1000
# Messages after which the event loop has a turn: with a window's at once, server and client waited for each
# other, and it took half as long again.
_TURN = 16


class Stored(msgspec.Struct, frozen=True, gc=False):
    """What JetStream says of a message that it has stored.

    Attributes:
        stream: The stream that has it.
        seq: Its number there.
        duplicate: Whether the stream had a message of that id already, and this one was dropped.
    """

    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class _Answer(Stored, frozen=True, gc=False):
    error: ApiError | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class NotStored(MeshError):
    """Messages were not stored.

    Attributes:
        failures: The id of each that was not, and why.
    """

    code = 503

    def __init__(self, message: str, failures: "list[tuple[str, MeshError]]") -> None:
        super().__init__(message)
        self.failures = failures


Prepare = Callable[[Sender, str, object, Any], Awaitable[None]]
"""Encodes a message and hands it to a sender: `(sender, subject, message, headers)`."""


class _Unstored:
    """A message under way; it takes its answer itself, as a `meshkit.transport.Sink`."""

    __slots__ = (
        *("deadline", "future", "head", "id", "is_over", "payload", "publisher", "reply", "slot", "subject"),
    )

    def __init__(
        self,
        publisher: "Publisher",
        id: str | None,  # noqa: A002
        future: "asyncio.Future[Stored] | None" = None,
    ) -> None:
        self.publisher = publisher
        self.id = id
        self.future = future
        self.reply = ""
        self.slot: dict[_Unstored, float] = {}
        self.is_over = False
        self.deadline = 0.0

    async def publish(self, subject: str, payload: bytes, head: bytes = b"") -> None:
        """Send it, now that it is encoded."""
        self.subject = subject
        self.payload = payload
        self.head = head
        await self.publisher.send(self)
        if self.future is not None:
            # In here, so that a span around it lasts until then, and says how it ends.
            await self.publisher.stored(self)

    def done(self) -> bool:
        """Whether it wants no answer any more."""
        return self.is_over

    def set_result(self, result: Message, /) -> None:
        """Take JetStream's answer."""
        self.publisher.answered(self, result)

    def set_exception(self, exception: BaseException, /) -> None:
        """Be told that none will come."""
        self.publisher.lost(self, exception)


class Publisher:
    """Publishes to streams; made by `mesh.publisher()`.

    Leaving its `async with` block waits until all is stored. What a broken connection leaves open is sent
    again with the same id, so that the stream has it once.

    Args:
        transport: The connection.
        prepare: Encodes messages.
        window: How many may be under way at a time.
    """

    def __init__(self, transport: Transport, prepare: Prepare, window: int) -> None:
        self._transport = transport
        self._prepare = prepare
        self._window = window
        self._loop = asyncio.get_running_loop()
        self._under_way: set[_Unstored] = set()
        self._deadlines = Deadlines(self._late)
        self._lost: deque[_Unstored] = deque()
        self._resending: asyncio.Task[None] | None = None
        # Who waits until fewer than so many are under way.
        self._waiting: asyncio.Future[None] | None = None
        self._enough = 0
        self._failures: list[tuple[str, MeshError]] = []
        self._published = 0
        self._has_ended = False
        # Subjects on which something was stored, the latest.
        self._kept: dict[str, None] = {}
        self._ids = f"{secrets.token_hex(8)}-"

    async def publish(
        self,
        subject: str,
        message: object = None,
        *,
        id: str | None = None,  # noqa: A002 # what it is called everywhere
        headers: Any = None,
    ) -> None:
        """Publish a message; returns when it is under way, not yet stored.

        Args:
            subject: Where to.
            message: What, as in `mesh.call`.
            id: A stream stores one message of an id only; by default each has one of its own.
            headers: To send along.

        Raises:
            NotStored: One that was published before was not stored.
            BadRequest: The message is larger than the server takes.
            ValueError: The subject, the id or a header is none.
            TypeError: msgspec cannot encode the message.
        """
        if self._has_ended:
            raise RuntimeError("the publisher's `async with` block has ended; publish within it")
        if self._failures:
            raise self._not_stored()
        if self._published % _TURN == 0:
            # What was published goes out, and is stored while the next ones are encoded.
            await asyncio.sleep(0)
        while len(self._under_way) >= self._window:
            await self._fewer_than(max(1, self._window // 2))
        await self._prepare(_Unstored(self, id), subject, message, headers)

    async def store(self, subject: str, message: object, id: str | None, headers: Any) -> Stored:  # noqa: A002
        """Publish a message and wait until it is stored.

        Raises:
            NoResponders: No stream keeps messages of this subject.
            MeshError: It was not stored, or nobody knows.
        """
        entry = await self._entry(id)
        await self._prepare(entry, subject, message, headers)
        assert entry.future is not None
        return entry.future.result()

    async def send_bytes(
        self,
        subject: str,
        payload: bytes = b"",
        head: bytes = b"",
        id: str | None = None,  # noqa: A002
    ) -> Stored:
        """The same with what is encoded already.

        Raises:
            NoResponders: No stream keeps messages of this subject.
            MeshError: It was not stored, or nobody knows.
        """
        entry = await self._entry(id)
        await entry.publish(subject, payload, head)
        assert entry.future is not None
        return entry.future.result()

    async def _entry(self, id: str | None) -> _Unstored:  # noqa: A002
        while len(self._under_way) >= self._window:
            await self._fewer_than(self._window)
        return _Unstored(self, id, self._loop.create_future())

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, headers included, in bytes."""
        return self._transport.max_payload

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended = True
        if isinstance(error, asyncio.CancelledError):
            return
        await self._fewer_than(1)
        if not self._failures:
            return
        if error is None:
            raise self._not_stored()
        if isinstance(error, NotStored):
            error.failures.extend(self._failures)
        error.add_note(str(self._not_stored()))

    async def _fewer_than(self, enough: int) -> None:
        """Wait until fewer messages than that are under way."""
        while len(self._under_way) >= enough:
            self._enough = enough if self._waiting is None else max(self._enough, enough)
            self._waiting = self._waiting or self._loop.create_future()
            # Several may wait.
            await asyncio.shield(self._waiting)

    def _not_stored(self) -> NotStored:
        failures, self._failures = self._failures, []
        first, why = failures[0]
        return NotStored(
            f"{len(failures):,} of {self._published:,} messages published here were not stored; "
            f"the first has the id {first}: {why}",
            failures,
        )

    # What is under way

    async def send(self, entry: _Unstored) -> None:
        """Send a message for the first time.

        Raises:
            BadRequest: It is larger than the server takes.
            Disconnected: There was no connection in time.
        """
        self._published += 1
        if entry.id is not None:
            _check_id(entry.id)
        elif not has_id(entry.head):
            entry.id = f"{self._ids}{self._published}"
        if entry.id is not None:
            entry.head = with_id(entry.head, entry.id)
        now, current = self._loop.time(), CURRENT.get()
        entry.deadline = now + _PATIENCE
        if current is not None:
            entry.deadline = min(entry.deadline, current.deadline)
        self._under_way.add(entry)
        if self._resending is not None:
            # Behind those that were published before it.
            self.lost(entry, None)
            return
        try:
            await self._transmit(entry)
        except BaseException:
            self._forget(entry)
            raise

    async def stored(self, entry: _Unstored) -> None:
        """Wait until a message is.

        Raises:
            MeshError: It was not, or nobody knows.
        """
        assert entry.future is not None
        try:
            await entry.future
        finally:
            self._forget(entry)  # who waits may be cancelled

    async def _transmit(self, entry: _Unstored) -> None:
        if not self._transport.is_connected:
            await self._transport.ready(entry.deadline)
        if entry.reply:
            self._transport.detach(entry.reply)
        entry.reply = self._transport.attach(entry.subject, entry)
        entry.slot = self._deadlines.add(entry, min(entry.deadline, self._loop.time() + _AGAIN))
        await self._transport.publish(entry.subject, entry.payload, entry.head, entry.reply)

    def answered(self, entry: _Unstored, message: Message) -> None:
        """Take JetStream's answer."""
        if message.head.startswith(NO_RESPONDERS):
            self._refused(entry)
            return
        try:
            answer = _decode(message.payload)
        except msgspec.DecodeError:
            answer = _Answer()
        if answer.error is not None and answer.error.err_code in TEMPORARY:
            self._again(entry)
        elif answer.error is not None:
            error = JetStreamError(f"JetStream: {answer.error.description}", answer.error.err_code)
            error.code = answer.error.code
            self._end(entry, error)
        elif not answer.stream:
            self._end(entry, MeshError(f"what answers on {entry.subject!r} is not JetStream"))
        else:
            if entry.subject not in self._kept:
                self._kept[entry.subject] = None
                if len(self._kept) > _MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
            self._end(entry, answer)

    def _refused(self, entry: _Unstored) -> None:
        # Where there was a stream there will be one: its servers choose a leader.
        may_come = entry.subject in self._kept or not self._transport.is_settled
        if not may_come or entry.deadline <= self._loop.time():
            error = NoResponders(
                f"no stream keeps {entry.subject!r}, or NATS has no JetStream; declare a stream with that "
                "subject, such as Service(..., streams=[StreamConfig(...)])"
            )
            self._end(entry, error)
        else:
            self._again(entry)

    def _again(self, entry: _Unstored) -> None:
        """Send it once more soon: JetStream starts after its server does, or has no leader yet."""
        entry.slot.pop(entry, None)
        entry.slot = self._deadlines.add(entry, entry.deadline)
        self._loop.call_later(_PAUSE, self.lost, entry, None)

    def lost(self, entry: _Unstored, error: BaseException | None) -> None:
        """What is not known to be stored is sent again, when that can be done."""
        if entry.is_over:
            return
        if isinstance(error, Forbidden):
            self._end(entry, error)
            return
        entry.slot.pop(entry, None)
        entry.slot = self._deadlines.add(entry, entry.deadline)
        self._lost.append(entry)
        if self._resending is None:
            # In a context of its own: it is for the messages of many.
            self._resending = self._loop.create_task(self._resend(), context=contextvars.Context())

    async def _resend(self) -> None:
        try:
            while self._lost:
                entry = self._lost.popleft()
                if entry.is_over:
                    continue
                entry.slot.pop(entry, None)
                try:
                    await self._transmit(entry)
                except MeshError as error:
                    self._end(entry, error)
        finally:
            self._resending = None

    def _late(self, entry: _Unstored) -> None:
        if entry.deadline > self._loop.time():
            self.lost(entry, None)
        else:
            self._end(entry, DeadlineExceeded(f"no stream has acknowledged the message to {entry.subject!r}"))

    def _end(self, entry: _Unstored, outcome: Stored | MeshError) -> None:
        if entry.is_over:
            return
        entry.is_over = True
        self._forget(entry)
        if isinstance(outcome, MeshError):
            outcome.target = entry.subject
            if entry.future is None:
                self._failures.append((entry.id or message_id(entry.head), outcome))
        if entry.future is not None and not entry.future.done():
            if isinstance(outcome, MeshError):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(Stored(outcome.stream, outcome.seq, outcome.duplicate))

    def _forget(self, entry: _Unstored) -> None:
        """A message is under way no more."""
        entry.is_over = True
        if entry.reply:
            self._transport.detach(entry.reply)
        entry.slot.pop(entry, None)
        self._under_way.discard(entry)
        if self._waiting is not None and len(self._under_way) < self._enough:
            waiting, self._waiting = self._waiting, None
            waiting.set_result(None)


def _check_id(id: str) -> None:  # noqa: A002
    if not isinstance(id, str) or not 0 < len(id) <= _LONGEST_ID or not id.isprintable() or id.strip() != id:  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
        raise ValueError(f"a message's id is printable text of up to {_LONGEST_ID} characters, not {id!r}")
