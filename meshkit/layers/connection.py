"""Calls while the connection to NATS is down, or has just come back."""

import asyncio
import math
import random
from collections.abc import Awaitable
from typing import Protocol

from meshkit.errors import NoResponders
from meshkit.message import Handler, Layer, Request, Response

# Seconds between two looks whether somebody listens again: at random, so that not all callers look at once.
_PAUSE = 0.05, 0.25


class Link(Protocol):
    """A connection that may be lost and mends itself."""

    @property
    def is_settled(self) -> bool:
        """Whether it is there, and has been for so long that whoever lost it too is back."""
        ...

    async def ready(self, deadline: float) -> None:
        """Wait for it.

        Raises:
            Disconnected: There was no connection until the deadline.
        """
        ...


def connection(link: Link) -> Layer:
    """The caller's side: wait for the connection, and after that for those who lost it too.

    Where a server ends, everybody connects again in their own time. Who is back first would find nobody
    listening: until the others have had the time to return, that is no answer.

    Args:
        link: The connection.
    """
    loop = asyncio.get_running_loop()

    def layer(following: Handler) -> Handler:
        async def wait(request: Request) -> Response:
            head, deadline = request.head, request.deadline
            while True:
                await link.ready(deadline)
                try:
                    return await following(request)
                except NoResponders:
                    pause = random.uniform(*_PAUSE)  # noqa: S311 # spreads load
                    if link.is_settled or loop.time() + pause >= deadline:
                        raise
                request.head, request.deadline, request.sent_at = head, deadline, math.inf
                await asyncio.sleep(pause)

        def call(request: Request) -> Awaitable[Response]:
            return following(request) if link.is_settled else wait(request)

        return call

    return layer
