"""Streams, the producer's half: what a handler yields is sent, as far as its reader has room for it."""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator
from typing import Any

from meshkit import codec
from meshkit.errors import BadRequest, Cancelled, InternalError, MeshError, Unavailable, shortened
from meshkit.headers import find, line, whole
from meshkit.message import CREDIT, END, SEQUENCE, Request, Response
from meshkit.transport import Message, Transport

# Seconds without a word from a reader that has no room, after which it counts as gone.
_PATIENCE = 30.0
# Items after which a producer that waits for nothing lets others have the event loop.
_TURN = 64
_CREDIT_LINE = f"\r\n{CREDIT}:".encode()


async def produce(
    items: AsyncGenerator[Any, None], request: Request, kind: str, transport: Transport
) -> Response:
    """Send what a generator yields.

    Args:
        items: What the handler gives.
        request: The request that opened the stream; it counts what was sent.
        kind: Content type of the items.
        transport: The connection.

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
    allowance = Allowance(_room(request.head))
    credit = transport.attach(request.reply, allowance)
    try:
        # A timeout that passes when the reader is lost: it stops the generator wherever it is.
        async with asyncio.timeout(None) as allowance.scope, contextlib.aclosing(items):
            async for item in items:
                payload = codec.encode(item, kind)
                if request.sent >= allowance.granted:
                    await allowance.wait(request.sent)
                await _send(transport, request, payload, credit)
                if request.sent % _TURN == 0:
                    await asyncio.sleep(0)
    except TimeoutError:
        if allowance.failure is None:
            raise  # the handler's own
        raise allowance.failure from None
    finally:
        transport.detach(credit)
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
    """Up to which item a producer may send.

    It is what a `meshkit.transport.Sink` is: what the reader grants arrives here.

    Args:
        granted: The number of that item at first.

    Attributes:
        granted: The number of that item.
        scope: What ends if the reader is lost.
        failure: Why it is.
    """

    def __init__(self, granted: float) -> None:
        self.granted = granted
        self.scope: asyncio.Timeout | None = None
        self.failure: MeshError | None = None
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[None] | None = None

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
            self.granted = max(self.granted, number)
            if self._heard is not None and not self._heard.done():
                self._heard.set_result(None)

    def set_exception(self, exception: BaseException, /) -> None:
        """Be told that nothing reaches the reader."""
        self._lose(
            Unavailable(f"items of the stream may be lost: {getattr(exception, 'message', exception)}")
        )

    def _lose(self, failure: MeshError) -> None:
        self.failure = failure
        assert self.scope is not None
        self.scope.reschedule(self._loop.time())

    async def wait(self, sent: int) -> None:
        """Wait until one more item may be sent.

        Raises:
            Cancelled: The reader keeps silent.
        """
        while sent >= self.granted:
            self._heard = self._loop.create_future()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._heard
            except TimeoutError:
                raise Cancelled(f"the reader has said nothing for {_PATIENCE:g} s") from None
