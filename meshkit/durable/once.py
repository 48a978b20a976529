"""An idempotency store: the ids of messages that were handled, for a while, in a stream of its own."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from meshkit.durable.declaration import Consumption, nanoseconds
from meshkit.durable.delivery import delivery
from meshkit.durable.publisher import Publisher
from meshkit.errors import MeshError, shortened
from meshkit.message import Handler, Request, Response
from meshkit.subject import token
from meshkit.transport import Transport

log = logging.getLogger("meshkit.durable")

# Seconds that looking an id up may take.
_PATIENCE = 5.0
# Seconds until it is asked again.
_PAUSE = 1.0
_NOT_FOUND = "404"
_SEEN = Response(b"")


def remembered(consumption: Consumption) -> dict[str, Any]:
    """The stream with the ids that a consumer has handled."""
    assert consumption.deduplicate is not None
    return {
        "name": _stream(consumption),
        "description": f"meshkit: ids that {consumption.name} has handled",
        "subjects": [f"{_prefix(consumption)}>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": consumption.replicas,
        "max_age": nanoseconds(consumption.deduplicate),
        "duplicate_window": nanoseconds(min(consumption.deduplicate, 120.0)),
        "max_msgs_per_subject": 1,
        "allow_direct": True,
    }


def _stream(consumption: Consumption) -> str:
    return f"MESH_DONE-{consumption.source}-{consumption.name}"


def _prefix(consumption: Consumption) -> str:
    return f"_MESH.done.{consumption.source}.{consumption.name}."


class Once:
    """Remembers what was handled.

    What is handled at the same time under the same id, and what an instance has handled before it was killed
    in the moment between that and saying so, is not seen: who must not do a thing twice in any case keeps the
    id with what it does, in one transaction.

    Args:
        consumption: Whose messages.
        transport: Where JetStream is.
        publisher: Publishes to it.
        waits: A block in which a message waits, and may be given back.
    """

    def __init__(
        self,
        consumption: Consumption,
        transport: Transport,
        publisher: Publisher,
        waits: Callable[[Request], AbstractContextManager[None]],
    ) -> None:
        self._get = f"$JS.API.DIRECT.GET.{_stream(consumption)}."
        self._prefix = _prefix(consumption)
        self._transport = transport
        self._publisher = publisher
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        self._is_blind = False

    def layer(self, following: Handler) -> Handler:
        """Handle what was not handled yet."""

        async def handle(request: Request) -> Response:
            subject = self._prefix + token(delivery(request.reply, request.head).id)
            if await self._is_known(request, subject):
                return _SEEN
            response = await following(request)
            # The handler's time may be up.
            request.deadline = math.inf
            try:
                await self._publisher.send_bytes(subject)
            except MeshError as error:
                # To handle it again would be sure to do what this is to keep from happening.
                log.warning("%s: that a message was handled is not remembered: %s", request.handler, error)
            return response

        return handle

    async def _is_known(self, request: Request, subject: str) -> bool:
        """Whether an id is remembered; waits until that can be told: the message would fail for nothing."""
        while True:
            try:
                found = await self._transport.request(
                    self._get + subject, b"", b"", self._loop.time() + _PATIENCE
                )
            except MeshError as error:
                why = str(error)
            else:
                why = found.head.partition(b"\r\n")[0].decode(errors="replace").strip()
                if not why or why.startswith(_NOT_FOUND):
                    self._is_blind = False
                    return not why
            if not self._is_blind:
                log.warning(
                    "%s: waits, as it is not known what was handled: %s", request.handler, shortened(why)
                )
            self._is_blind = True
            with self._waits(request):
                await asyncio.sleep(_PAUSE)
