"""Deadlines: the time left travels with a call, relative, so that clocks need not agree."""

import asyncio
import functools
import math
from collections.abc import Awaitable

from meshkit.deadlines import Deadlines
from meshkit.errors import BadRequest, Cancelled, DeadlineExceeded
from meshkit.headers import line
from meshkit.message import DEFAULT_TIMEOUT, TIMEOUT, Handler, Layer, Opening, Request, Response

_TIMEOUT = f"\r\n{TIMEOUT}:".encode()


def carry(following: Handler) -> Handler:
    """The caller's side: say how many milliseconds are left, and don't call when none are."""
    loop = asyncio.get_running_loop()

    def call(request: Request) -> Awaitable[Response]:
        now = loop.time()
        left = request.deadline - now
        if left <= 0:
            raise _late("the deadline passed before the call was sent")
        request.head += _line(math.ceil(left * 1000))
        request.sent_at = now
        return following(request)

    return call


def carry_whole(following: Handler) -> Handler:
    """The caller's side of streams: the same, but what is left is left for the stream as a whole."""
    loop = asyncio.get_running_loop()

    def call(request: Request) -> Awaitable[Response]:
        assert isinstance(request, Opening)
        now = loop.time()
        if request.deadline <= now:
            raise _late("the deadline passed before the call was sent")
        request.head += _line(math.ceil((request.until - now) * 1000))
        return following(request)

    return call


def _late(text: str) -> DeadlineExceeded:
    error = DeadlineExceeded(text)
    error.executed = False
    return error


@functools.lru_cache(maxsize=1024)
def _line(milliseconds: int) -> bytes:
    return line(TIMEOUT, str(milliseconds))


def attempt(seconds: float) -> Layer:
    """The caller's side: give each attempt a deadline of its own.

    Args:
        seconds: How long one may take.
    """
    loop = asyncio.get_running_loop()

    def layer(following: Handler) -> Handler:
        def call(request: Request) -> Awaitable[Response]:
            request.deadline = min(request.deadline, loop.time() + seconds)
            return following(request)

        return call

    return layer


def read(timeout: float | None) -> Layer:
    """The callee's side: give a request the deadline that its caller says, within the endpoint's own.

    Args:
        timeout: Seconds that the endpoint may take; None for no bound but the caller's.

    Raises:
        BadRequest: The header is no number of milliseconds.
    """
    usual, most = timeout or DEFAULT_TIMEOUT, timeout or math.inf

    def layer(following: Handler) -> Handler:
        def handle(request: Request) -> Awaitable[Response]:
            request.deadline = request.started + min(_time_left(request.head, usual), most)
            return following(request)

        return handle

    return layer


def _time_left(head: bytes, usual: float) -> float:
    at = head.rfind(_TIMEOUT)
    if at < 0:
        return usual
    at += len(_TIMEOUT)
    end = head.find(b"\r\n", at)
    text = (head[at:end] if end >= 0 else head[at:]).strip()
    # Twelve digits are thirty years. More would take long to convert, and room in the cache.
    if len(text) > 12:
        raise _no_number(text)
    return _seconds(text)


@functools.lru_cache(maxsize=1024)
def _seconds(text: bytes) -> float:
    if not text.isdigit():
        raise _no_number(text)
    return int(text) / 1000


def _no_number(text: bytes) -> BadRequest:
    return BadRequest(f"{TIMEOUT} {text[:20].decode(errors='replace')!r} is no number of milliseconds")


def within(seconds: float, deadlines: Deadlines[Request]) -> Layer:
    """Who listens to events: give each a deadline when its turn comes.

    Args:
        seconds: How long handling it may take.
        deadlines: Cancels the task that handles a request at the request's deadline.
    """
    loop = asyncio.get_running_loop()

    def layer(following: Handler) -> Handler:
        enforced = enforce(deadlines)(following)

        async def handle(request: Request) -> Response:
            request.started = loop.time()
            request.deadline = request.started + seconds
            return await enforced(request)

        return handle

    return layer


def enforce(deadlines: Deadlines[Request]) -> Layer:
    """The callee's side: refuse what has expired, cancel what takes too long, say why something was stopped.

    Args:
        deadlines: Cancels the task that handles a request at the request's deadline.
    """
    loop = asyncio.get_running_loop()

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            if request.is_abandoned:
                raise Cancelled("the caller was gone when the call's turn came")
            # Not when it arrived: something may have kept the event loop since then.
            if request.deadline <= loop.time():
                raise _late("the deadline had passed when the call's turn came")
            slot = deadlines.add(request, request.deadline)
            try:
                return await following(request)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                expired = request not in slot
                # Each has cancelled it once. It may also be the drain that has waited long enough.
                for _ in range(expired + request.is_abandoned):
                    task.uncancel()
                if task.cancelling() > 0 or not (expired or request.is_abandoned):
                    raise
                if request.is_abandoned:
                    raise Cancelled("the caller waits no more") from None
                raise DeadlineExceeded("the handler was stopped at the deadline") from None
            finally:
                slot.pop(request, None)

        return handle

    return layer
