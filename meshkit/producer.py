"""Streams, the producer's half: what a handler yields is sent, as far as its reader has room for it."""

import asyncio
import contextlib
import contextvars
import math
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from meshkit import codec
from meshkit.errors import BadRequest, Cancelled, InternalError, MeshError, Unavailable, shortened
from meshkit.headers import find, line, whole
from meshkit.layers.statistics import Statistics
from meshkit.message import CREDIT, END, SEQUENCE, Request, Response
from meshkit.transport import PROBE, Message, Transport

# Seconds without a word from a reader that has no room, after which it counts as gone.
_PATIENCE = 30.0
# Seconds without an item, after which the reader's connection is asked whether it is still there.
_QUIET = 10.0
# Bytes of items that may be on their way and not known to be taken; the item that passes it is sent still.
WINDOW_BYTES = 1024 * 1024
# Items after which a producer that waits for nothing lets others have the event loop.
_TURN = 64
_CREDIT_LINE = f"\r\n{CREDIT}:".encode()


async def produce(
    items: AsyncGenerator[Any, None],
    request: Request,
    kind: str,
    transport: Transport,
    statistics: Statistics,
) -> Response:
    """Send what a generator yields.

    Args:
        items: What the handler gives.
        request: The request that opened the stream; it counts what was sent.
        kind: Content type of the items.
        transport: The connection.
        statistics: Where the bytes of the items are counted.

    Returns:
        The end of the stream.

    Raises:
        BadRequest: Nobody can read it.
        Cancelled: The reader is gone.
        InternalError: An item is larger than the server takes.
        Unavailable: The connection broke, and items may be lost.
    """
    if not request.reply:
        raise BadRequest("this is a stream, and without a reply subject nobody reads it")
    task = asyncio.current_task()
    assert task is not None
    allowance = Allowance(request, transport)
    try:
        # A timeout that passes when the reader is lost: it stops the generator wherever it is.
        async with asyncio.timeout(None) as allowance.scope, contextlib.aclosing(items):
            async for item in items:
                if task.cancelling():
                    raise asyncio.CancelledError  # it was told before, and has gone on
                payload = codec.encode(item, kind)
                if request.sent >= allowance.granted or allowance.out >= WINDOW_BYTES:
                    await allowance.wait()
                await _send(transport, request, payload, allowance.credit)
                statistics.sent += len(payload)
                allowance.note(len(payload))
                if request.sent % _TURN == 0:
                    await asyncio.sleep(0)
    except TimeoutError:
        if allowance.failure is None:
            raise  # the handler's own
        raise allowance.failure from None
    finally:
        allowance.leave()
        del allowance  # its failure and this frame would keep each other
    return Response(b"", end(request))


def end(request: Request) -> bytes:
    """What the last message of a stream says of it, as a head."""
    return line(END, str(request.sent))


async def _send(transport: Transport, request: Request, payload: bytes, credit: str) -> None:
    number = request.sent + 1
    try:
        await transport.publish(request.reply, payload, line(SEQUENCE, str(number)), credit)
    except BadRequest as error:
        raise InternalError(f"item {number} cannot be sent: {error.message}") from None
    request.sent = number


def _room(head: bytes) -> float:
    """How many items the reader has room for from the start.

    Raises:
        BadRequest: The header is no number.
    """
    text = find(head, _CREDIT_LINE)
    if text is None:
        return math.inf
    number = whole(text)
    if not number:
        raise BadRequest(f"{CREDIT} {shortened(text, 20)!r} is no number from 1")
    return number


class Allowance:
    """Up to which item a producer may send, and whether anybody reads.

    It is what a `meshkit.transport.Sink` is: what the reader grants arrives here.

    Args:
        request: The request that opened the stream.
        transport: The connection.

    Attributes:
        granted: The number of that item.
        out: Bytes of the items that are not known to be taken.
        credit: The subject on which the reader grants.
        scope: What ends if the reader is lost.
        failure: Why it is.

    Raises:
        BadRequest: The request does not say for how many items there is room.
    """

    def __init__(self, request: Request, transport: Transport) -> None:
        self.granted = self._first = _room(request.head)
        self.out = 0
        self.scope: asyncio.Timeout | None = None
        self.failure: MeshError | None = None
        self._request = request
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[None] | None = None
        # Of the last items that were sent, down to the one that is not known to be taken.
        self._sizes: deque[int] = deque()
        self._taken = 0 if self._first < math.inf else math.inf
        self.credit = transport.attach(request.reply, self)
        # Up to which item it was sent when somebody last looked.
        self._before = 0
        self._timer: asyncio.TimerHandle | None = None
        if self._first < math.inf:
            # Not in the request's context, which the timer would keep beyond the end of a short stream.
            self._timer = self._loop.call_later(_QUIET, self._probe, context=contextvars.Context())

    def leave(self) -> None:
        """Hear nothing more."""
        self._transport.detach(self.credit)
        if self._timer is not None:
            self._timer.cancel()

    def _probe(self) -> None:
        """Ask, after some time without an item: NATS answers if nobody listens any more."""
        if self._request.sent == self._before:
            self._transport.tell(self._request.reply, b"", PROBE, self.credit)
        self._before = self._request.sent
        self._timer = self._loop.call_later(_QUIET, self._probe)

    def done(self) -> bool:
        """Whether the reader is lost."""
        return self.failure is not None

    def set_result(self, result: Message, /) -> None:
        """Hear from the reader."""
        if not result.payload:
            # NATS says that nobody listens any more, or the reader says so itself.
            self._lose(Cancelled("nobody reads the stream any more"))
            return
        number = whole(result.payload[:20].decode(errors="replace"))
        if number is not None:
            self._grant(number)

    def set_exception(self, exception: BaseException, /) -> None:
        """Be told that nothing reaches the reader."""
        self._lose(
            Unavailable(f"items of the stream may be lost: {getattr(exception, 'message', exception)}")
        )

    def _lose(self, failure: MeshError) -> None:
        self.failure = failure
        assert self.scope is not None
        self.scope.reschedule(self._loop.time())

    def note(self, size: int) -> None:
        """Count what was sent.

        Args:
            size: The item's, in bytes.
        """
        if self._request.sent > self._taken:
            self._sizes.append(size)
            self.out += size

    def _grant(self, number: int) -> None:
        self.granted = max(self.granted, number)
        # Its room moves on with what it takes.
        self._taken = max(self._taken, number - self._first)
        while self._sizes and self._request.sent - len(self._sizes) < self._taken:
            self.out -= self._sizes.popleft()
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    async def wait(self) -> None:
        """Wait until one more item may be sent.

        Raises:
            Cancelled: The reader keeps silent.
        """
        while self._request.sent >= self.granted or self.out >= WINDOW_BYTES:
            self._heard = self._loop.create_future()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._heard
            except TimeoutError:
                raise Cancelled(f"the reader has said nothing for {_PATIENCE:g} s") from None
