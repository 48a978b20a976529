"""Streams, the reader's half: what an endpoint yields, one item after the other.

The reader takes nothing for granted: every item has its number, and the end says how many there were. It
says up to which item it has room, and the producer sends no more. `docs/wire.md` has it for other languages.
"""

import asyncio
import contextlib
import copy
import functools
import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from meshkit.errors import (
    BadReply,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    MeshError,
    NoResponders,
    StreamBroken,
    from_headers,
    shortened,
)
from meshkit.headers import NO_RESPONDERS, find, line, whole
from meshkit.layers.statistics import CallStatistics
from meshkit.message import CREDIT, CURRENT, END, SEQUENCE, Handler, Opening, Request, Response
from meshkit.transport import INBOX, Message, Transport

R = TypeVar("R")

# Items that a reader has room for.
WINDOW = 64
# What a request says that opens a stream.
ROOM = line(CREDIT, str(WINDOW))

# Bytes taken after which a reader says so, however few items they are: a producer lets 1 MiB be on its way.
_SOON_BYTES = 256 * 1024

_SEQUENCE_LINE = f"\r\n{SEQUENCE}:".encode()
_END_LINE = f"\r\n{END}:".encode()
# Seconds after which a reader says again for which items it has room, so that the producer knows it is there.
_KEEP_ALIVE = 10.0


class Stream(Generic[R]):
    """The items of a stream, to be read with `async for`. Made by `Mesh.stream`.

    The first read opens it. The handler stops when nobody reads any more: after `aclose`, at the end of
    `async with`, when a read is cancelled or fails, and when the stream is dropped, as by a `break`.

    Args:
        stack: What opens it.
        request: What is sent.
        decode: Makes an item of what was sent.
        timeout: Seconds that the stream may take in all.
        message_timeout: Seconds that an item may take to come.
        statistics: Where the stream and its bytes are counted.
    """

    def __init__(
        self,
        stack: Handler,
        request: Opening,
        decode: Callable[[Response], R],
        *,
        timeout: float,
        message_timeout: float,
        statistics: CallStatistics,
    ) -> None:
        self._statistics = statistics
        # When the statistics were told that it begins, until they are told that it is over.
        self._begun: float | None = None
        self._arrivals: Arrivals | None = None
        self._is_over = False
        self._failure: MeshError | None = None
        self._is_reading = False
        self._stack = stack
        self._request = request
        self._decode = decode
        self._timeout = timeout
        self._message_timeout = message_timeout
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        if self._is_reading:
            raise RuntimeError("somebody reads this stream already")
        if self._is_over:
            # One that has failed never looks like one that has come to its end.
            raise StopAsyncIteration if self._failure is None else copy.copy(self._failure)
        self._is_reading = True
        try:
            message = await self._next()
            if message is not None:
                return self._decode(Response(message.payload, message.head))
            if self._failure is not None:  # somebody has closed it meanwhile
                raise copy.copy(self._failure)
            self._close()
        except MeshError as error:
            error.target = self._request.subject
            error.elapsed = self._loop.time() - self._request.started
            self._close(error)
            raise
        except BaseException as error:
            self._close(Cancelled(f"the stream was stopped when a read of it ended with {error!r}"))
            raise
        finally:
            self._is_reading = False
        raise StopAsyncIteration

    async def _next(self) -> Message | None:
        request, now = self._request, self._loop.time()
        if self._arrivals is None:
            current = CURRENT.get()
            request.started = now
            request.until = min(now + self._timeout, math.inf if current is None else current.deadline)
            request.deadline = min(request.until, now + self._message_timeout)
            self._begun = self._statistics.begin()
            opened = await self._stack(request)
            assert isinstance(opened, _Opened)
            self._arrivals = opened.arrivals
            if self._is_over:  # somebody has closed it meanwhile
                self._arrivals.leave()
            now = self._loop.time()
        message = await self._arrivals.take(min(request.until, now + self._message_timeout))
        if message is not None:
            self._statistics.received += len(message.payload)
        return message

    def _close(self, failure: MeshError | None = None) -> None:
        self._is_over = True
        # Without its traceback, which leads back here: they would keep each other.
        self._failure = copy.copy(failure)
        if self._begun is not None:
            self._statistics.end(self._begun, self._request.queued, failure)
            self._begun = None
        if self._request.span is not None:
            self._request.span.finish(failure, may_be_long=True)
        if self._arrivals is not None:
            self._arrivals.leave()

    async def aclose(self) -> None:
        """Read no more: the handler stops. Whoever waits for an item, in another task, gets Cancelled."""
        if not self._is_over:
            self._close(Cancelled("the stream was closed while it was read") if self._is_reading else None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # In whatever thread, and perhaps after the event loop has ended.
        if self._arrivals is not None and not self._is_over:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._arrivals.leave)
                if self._begun is not None:
                    self._loop.call_soon_threadsafe(
                        self._statistics.end, self._begun, self._request.queued, None
                    )
                if (span := self._request.span) is not None:
                    self._loop.call_soon_threadsafe(functools.partial(span.finish, may_be_long=True))


class _Opened(Response, kw_only=True):
    """What opening a stream gives.

    Attributes:
        arrivals: The first item, and what follows.
    """

    arrivals: "Arrivals"


def opening(transport: Transport) -> Handler:
    """What opens streams, at the end of a stack of layers.

    Args:
        transport: The connection.
    """

    async def handle(request: Request) -> Response:
        arrivals = Arrivals(transport, request.subject)
        denied = transport.denials.unasked
        try:
            async with asyncio.timeout_at(request.deadline):
                await transport.publish(request.subject, request.payload, request.head, arrivals.reply)
                await arrivals.first()
        except BaseException as error:
            arrivals.leave()
            if isinstance(error, TimeoutError) and not isinstance(error, MeshError):
                why = transport.denials.explain("no item came in time", request.head, denied)
                raise DeadlineExceeded(why) from None
            raise
        return _Opened(b"", arrivals=arrivals)

    return handle


def refuse(transport: Transport, subject: str, message: Message) -> None:
    """Not a stream where a reply is expected.

    Raises:
        BadReply: The message is the beginning of one.
    """
    if _SEQUENCE_LINE in message.head or _END_LINE in message.head:
        if message.reply.startswith(INBOX):
            transport.tell(message.reply, b"")  # nobody reads the rest
        raise BadReply(f"{subject!r} answers with a stream; read it with mesh.stream, or --stream")


class Arrivals:
    """What arrives of a stream until its reader takes it, in order and without a gap.

    It is what a `meshkit.transport.Sink` is.

    Args:
        transport: The connection.
        subject: The endpoint's.

    Attributes:
        reply: The subject on which items arrive.
    """

    def __init__(self, transport: Transport, subject: str) -> None:
        self.reply = transport.attach(subject, self)
        self._transport = transport
        self._subject = subject
        self._loop = asyncio.get_running_loop()
        self._items: deque[Message] = deque()
        # Numbers of the last item that came, that was taken, and that may be sent.
        self._came = 0
        self._taken = 0
        self._granted = WINDOW
        # Taken since the producer was last told.
        self._bytes = 0
        # Where the producer hears up to which item it may send.
        self._producer = ""
        self._guard = ""
        self._keeping: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_over = False
        self._failure: BaseException | None = None

    # What arrives

    def done(self) -> bool:
        """Whether nothing more is to come."""
        return self._is_over

    def set_result(self, result: Message, /) -> None:
        """Take an item, the end, or an error."""
        sequence = find(result.head, _SEQUENCE_LINE)
        if sequence is None:
            self._finish(self._verdict(result))
            return
        due = self._came + 1
        number = whole(sequence)
        if number == 0:
            return  # the producer has its connection find out whether anybody listens
        if number is None or number != due:
            self._break(f"item {shortened(sequence, 20)} came where item {due} was due", due, number)
        elif number > self._granted:
            self._break(f"item {number} was sent, and there is room up to item {self._granted}")
        else:
            self._came = number
            self._items.append(result)
            if not self._producer and result.reply.startswith(INBOX):
                self._meet(result.reply)
            self._wake()

    def set_exception(self, exception: BaseException, /) -> None:
        """Take in that nothing more can come."""
        self._finish(exception)
        # The producer may be there as before; and whoever may not grant it room may still end it.
        if self._came or isinstance(exception, ConnectionLost):
            self._transport.abandon(self._subject, self.reply)

    def _verdict(self, message: Message) -> BaseException | None:
        """What a message that is no item says: an error, or None for the end of a stream that is complete."""
        if message.head.startswith(NO_RESPONDERS) and not message.payload:
            return NoResponders(f"no service listens on {self._subject!r}")
        headers = message.headers
        error = from_headers(headers)
        end = headers.get(END)
        if end is None and self._came:
            return error or StreamBroken(f"a message without a number came after item {self._came}")
        if end is None:
            what = f"{self._subject!r} answers with one reply; use mesh.call, or no --stream"
            return error or BadReply(what)
        sent = whole(end)
        if sent is not None and sent <= self._came:
            return error
        how = "" if error is None else f" with {error}"
        what = f"the stream ended after item {shortened(end, 20)}{how}"
        return _broken(what, self._came + 1, None if sent is None else sent + 1)

    def _break(self, what: str, first: int = 0, next_: int | None = None) -> None:
        self._finish(_broken(what, first, next_))
        self._transport.abandon(self._subject, self.reply)

    def _finish(self, failure: BaseException | None) -> None:
        self._is_over = True
        self._failure = failure
        self._transport.detach(self.reply)
        if self._guard:
            self._transport.detach(self._guard)
        if self._keeping is not None:
            self._keeping.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the reader does

    async def first(self) -> None:
        """Wait until something has come.

        Raises:
            MeshError: The stream has ended with it, before there was an item.
            BadReply: It is no stream.
        """
        await self._wait()
        if not self._items:
            self._raise()

    async def take(self, deadline: float) -> Message | None:
        """The next item; None at the end.

        Args:
            deadline: When it is of no use any more, on the event loop's clock.

        Raises:
            StreamBroken: Items are missing.
            DeadlineExceeded: It has not come in time.
            MeshError: What the stream ended with.
        """
        if not self._items:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._wait()
            except TimeoutError:
                raise DeadlineExceeded("no item came in time") from None
        if not self._items:
            self._raise()
            return None
        item = self._items.popleft()
        self._taken += 1
        self._bytes += len(item.payload)
        is_time = self._granted - self._taken <= WINDOW // 2 or self._bytes >= _SOON_BYTES
        if is_time and self._producer and not self._is_over:
            self._granted = self._taken + WINDOW
            self._bytes = 0
            self._grant()
        return item

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else it and this frame would keep each other

    async def _wait(self) -> None:
        while not self._items and not self._is_over:
            self._waiter = self._loop.create_future()
            await self._waiter

    def leave(self) -> None:
        """Take nothing more, and tell the producer."""
        self._items.clear()
        if not self._is_over:
            self._finish(None)
            self._transport.abandon(self._subject, self.reply)

    # What the producer may send

    def _meet(self, producer: str) -> None:
        self._producer = producer
        # To be told if the connection's user may not publish there.
        self._guard = self._transport.attach(producer, self)
        self._keep_alive()

    def _keep_alive(self) -> None:
        if self._keeping is not None:
            self._grant()
        self._keeping = self._loop.call_later(_KEEP_ALIVE, self._keep_alive)

    def _grant(self) -> None:
        # The number of an item, and not how many more: it may be said twice, and one that is lost is made up
        # for by the next.
        self._transport.tell(self._producer, b"%d" % self._granted)


def _broken(what: str, first: int, next_: int | None) -> StreamBroken:
    """The error that names what is missing: from `first` to what stands before `next_`."""
    if next_ is None or next_ <= first:
        return StreamBroken(what)
    missing = f"item {first} is" if next_ == first + 1 else f"items {first} to {next_ - 1} are"
    return StreamBroken(f"{what}: {missing} missing")
