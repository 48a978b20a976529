"""Deadlines: the time left travels with a call, relative, so that clocks need not agree."""

import asyncio
import math

from meshkit.errors import DeadlineExceeded
from meshkit.message import TIMEOUT, Handler, Layer, Request, Response


def carry(following: Handler) -> Handler:
    """The caller's side: say how many milliseconds are left, and don't call when none are."""

    async def call(request: Request) -> Response:
        left = request.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            error = DeadlineExceeded("the deadline passed before the call was sent")
            error.executed = False
            raise error
        request.headers[TIMEOUT] = str(math.ceil(left * 1000))
        return await following(request)

    return call


def within(seconds: float) -> Layer:
    """Who listens to events: give each a deadline when its turn comes.

    Args:
        seconds: How long handling it may take.
    """

    def layer(following: Handler) -> Handler:
        enforced = enforce(following)

        async def handle(request: Request) -> Response:
            request.deadline = asyncio.get_running_loop().time() + seconds
            return await enforced(request)

        return handle

    return layer


def enforce(following: Handler) -> Handler:
    """The callee's side: refuse what has expired, cancel what takes too long."""

    async def handle(request: Request) -> Response:
        if request.deadline <= asyncio.get_running_loop().time():
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        limit = asyncio.timeout_at(request.deadline)
        try:
            async with limit:
                return await following(request)
        except TimeoutError:
            # A handler may raise TimeoutError itself, for reasons of its own.
            if limit.expired():
                raise DeadlineExceeded("the handler was stopped at the deadline") from None
            raise

    return handle
