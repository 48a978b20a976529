"""Messages that may kill whoever handles them: handled once more, alone, and then known."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from meshkit.durable.dead import STREAM, subject_of
from meshkit.durable.declaration import Consumption
from meshkit.durable.delivery import delivery
from meshkit.durable.jetstream import JetStream
from meshkit.durable.publisher import Publisher
from meshkit.errors import MeshError, Reject
from meshkit.message import Handler, Request, Response

log = logging.getLogger("meshkit.durable")


class Suspects:
    """Messages that were delivered more often than they may be, and of which nothing was heard.

    Each may have killed those that got it, or have been beside one that did. It is handled once more, beside
    no other such message, and with a mark in the stream of dead letters for that time: who finds the mark of
    another knows that it has killed that one.

    Args:
        consumption: Whose messages.
        js: Where JetStream is.
        publisher: Publishes to it.
        waits: A block in which a message waits, and may be given back.
    """

    def __init__(
        self,
        consumption: Consumption,
        js: JetStream,
        publisher: Publisher,
        waits: Callable[[Request], AbstractContextManager[None]],
    ) -> None:
        self._marks = f"{subject_of(consumption.source, consumption.name)}.suspect."
        self._why = f"none of {consumption.max_deliver} deliveries came to an end"
        self._js = js
        self._publisher = publisher
        self._waits = waits
        self._requests: set[Request] = set()
        self._turn = asyncio.Lock()

    def add(self, request: Request) -> None:
        """Suspect a message."""
        self._requests.add(request)

    def forget(self, request: Request) -> None:
        """It has not come to the layer, if it was suspected."""
        self._requests.discard(request)

    def layer(self, following: Handler) -> Handler:
        """Handle suspects one at a time, and others as they come."""

        async def alone(request: Request) -> Response:
            with self._waits(request):
                await self._turn.acquire()
            try:
                mark = await self._mark(request)
                try:
                    return await following(request)
                finally:
                    await self._clear(mark)
            finally:
                self._turn.release()

        def handle(request: Request) -> Awaitable[Response]:
            if self._requests and request in self._requests:
                self._requests.discard(request)
                return alone(request)
            return following(request)

        return handle

    async def _mark(self, request: Request) -> int:
        subject = f"{self._marks}{delivery(request.reply, request.head).sequence}"
        mark = await self._js.last(STREAM, subject)
        if mark is not None:
            await self._clear(mark.seq)
            raise Reject(self._why)
        return (await self._publisher.send_bytes(subject)).seq

    async def _clear(self, mark: int) -> None:
        try:
            await self._js.delete(STREAM, mark)
        except MeshError as error:
            log.warning("the mark %d of a message that was handled stays: %s", mark, error)
