"""What an instance does as one of a consumer's workers, and what becomes of each message."""

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from meshkit.durable.dead import bury
from meshkit.durable.declaration import Consumption
from meshkit.durable.delivery import DONE, NEVER, ONLY, attempt, later
from meshkit.durable.jetstream import JetStream
from meshkit.durable.publisher import Publisher
from meshkit.durable.puller import Puller
from meshkit.durable.suspects import Suspects
from meshkit.errors import BadRequest, Draining, MeshError, Redeliver, Reject
from meshkit.headers import find
from meshkit.message import CURRENT, Request
from meshkit.transport import Message, Transport

if TYPE_CHECKING:  # which knows services, and they what they declare
    from meshkit.telemetry.live.tap import Tappable

log = logging.getLogger("meshkit.durable")

# Seconds between looks at how much there is to do.
_LOOK = 5.0
_AT_ONCE = later(0)
_ONLY = f"\r\n{ONLY}:".encode()


class Deliveries(msgspec.Struct):
    """What is counted of deliveries, beside the statistics that all handlers have.

    Attributes:
        redelivered: How many were not the first of their message.
        returned: How many messages were given back, to be delivered again.
        dead: How many became dead letters.
        pending: How many messages the consumer had not delivered yet, when somebody last looked.
        unacknowledged: How many it had delivered to some instance that has not said what became of them.
    """

    redelivered: int = 0
    returned: int = 0
    dead: int = 0
    pending: int = 0
    unacknowledged: int = 0


class Worker:
    """One of the instances that share a consumer.

    Args:
        consumption: What is declared.
        transport: The connection.
        publisher: Publishes dead letters.
        name: `service/instance`.
        limit: How many messages are handled at a time.
        spawn: Has a message handled; False if that cannot be.
        running: What is being handled; who ends takes itself out.

    Attributes:
        deliveries: What is counted.
        limit: How many messages are handled at a time.
        running: How many are.
        suspects: Handles what may kill who handles it.
    """

    def __init__(
        self,
        consumption: Consumption,
        transport: Transport,
        publisher: Publisher,
        *,
        name: str,
        limit: int,
        spawn: Callable[[Request, Coroutine[Any, Any, None]], bool],
        running: dict[Request, asyncio.Task[None]],
    ) -> None:
        self.deliveries = Deliveries()
        self.limit = limit
        self.running = 0
        # What waits within its task.
        self._waiting: set[Request] = set()
        self._is_stopping = False
        # What was fetched ahead, and when it came.
        self._fetched: deque[tuple[Puller, Message, float]] = deque()
        self._consumption = consumption
        self._only = f"{consumption.source}.{consumption.name}"
        self._publisher = publisher
        self._name = name
        self._spawn = spawn
        self._tasks = running
        self._unknown = later(consumption.retry_delay)
        self._js = JetStream(transport)
        self.suspects = Suspects(consumption, self._js, publisher, self.waits)
        self._loop = asyncio.get_running_loop()
        self._messages: Tappable
        self._watcher: asyncio.Task[None] | None = None
        self._pullers = [
            Puller(
                transport,
                consumption.consumed,
                consumer["name"],
                window=1 if consumption.partitions else limit + self.backlog,
                ack_wait=consumption.ack_wait,
                take=self._take,
            )
            for consumer in consumption.consumers
        ]

    @property
    def waiting(self) -> int:
        """How many messages wait for their turn."""
        return len(self._fetched)

    @property
    def backlog(self) -> int:
        """How many are fetched ahead."""
        ahead = self._consumption.partitions - self.limit
        return max(0, ahead) if self._consumption.partitions else self.limit

    async def start(self, messages: "Tappable") -> None:
        """Begin to take messages.

        Args:
            messages: Its stack handles one.
        """
        self._messages = messages
        self._watcher = asyncio.create_task(self._watch())
        for puller in self._pullers:
            await puller.start()

    async def stop(self) -> None:
        """Take no more, and give back what has not begun."""
        self._is_stopping = True
        await asyncio.gather(*(puller.stop() for puller in self._pullers))
        # Not before: what is given back would come here again.
        while self._fetched:
            puller, message, _ = self._fetched.popleft()
            self._give_back(puller, message)
        for request in tuple(self._waiting):
            self._tasks[request].cancel()

    @contextmanager
    def waits(self, request: Request) -> Generator[None]:
        """A block in which a message waits: if the instance stops, it is given back.

        Raises:
            Draining: The instance stops.
        """
        if self._is_stopping:
            error = Draining()
            error.own = True
            raise error
        self._waiting.add(request)
        try:
            yield
        finally:
            self._waiting.discard(request)

    async def close(self) -> None:
        """What runs has ended, or never will."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await asyncio.gather(*(puller.close() for puller in self._pullers))

    def _take(self, puller: Puller, message: Message) -> None:
        if self._is_stopping:
            self._give_back(puller, message)
        elif message.head and _ONLY in message.head and find(message.head, _ONLY) != self._only:
            puller.settle(message.reply, DONE)  # a replay of what another consumer could not handle
        elif self.running < self.limit:
            self._begin(puller, message)
        else:
            self._fetched.append((puller, message, perf_counter()))

    def _begin(self, puller: Puller, message: Message, queued: float = 0.0) -> None:
        request = Request(
            self._subject(message.subject),
            message.payload,
            message.head,
            self._loop.time(),
            math.inf,
            self._name,
            message.reply,
            queued=queued,
        )
        self.running += 1
        if not self._spawn(request, self._handle(puller, request)):
            self.running -= 1
            puller.settle(message.reply, self._unknown)

    def _give_back(self, puller: Puller, message: Message) -> None:
        self.deliveries.returned += 1
        puller.settle(message.reply, _AT_ONCE)

    def _subject(self, delivered: str) -> str:
        if not self._consumption.partitions:
            return delivered
        return delivered[len(self._consumption.prefix) :].partition(".")[2]

    async def _handle(self, puller: Puller, request: Request) -> None:
        CURRENT.set(request)
        # If it fails in a way that nobody has thought of.
        verdict = self._unknown
        try:
            if not request.reply.startswith(puller.first) and (number := attempt(request.reply)) > 1:
                self.deliveries.redelivered += 1
                if number > self._consumption.max_deliver:
                    self.suspects.add(request)
            await self._messages.stack(request)
            verdict = DONE
        except MeshError as error:
            # What is done now is not the handler's, and neither are the tasks that it has started.
            request.deadline = math.inf
            self.suspects.forget(request)
            verdict = await self._failed(request, error)
        except asyncio.CancelledError:
            # The instance drains: the message has to wait, or its handler takes too long.
            verdict = _AT_ONCE
            self.deliveries.returned += 1
            self.suspects.forget(request)
            raise
        finally:
            request.deadline = math.inf
            puller.settle(request.reply, verdict)
            self._tasks.pop(request, None)
            self.running -= 1
            while self._fetched and self.running < self.limit:
                of, message, arrived = self._fetched.popleft()
                self._begin(of, message, perf_counter() - arrived)

    async def _failed(self, request: Request, error: MeshError) -> bytes:
        """What the server is to be told of a message that was not handled."""
        number, most = attempt(request.reply), self._consumption.max_deliver
        if isinstance(error, Draining) and error.own:
            self.deliveries.returned += 1
            return _AT_ONCE
        # One with a target is not about this message, but about one that the handler has sent.
        is_hopeless = isinstance(error, Reject | BadRequest) and error.target is None
        if number >= most or is_hopeless:
            return await self._bury(request, _told(error))
        self.deliveries.returned += 1
        if isinstance(error, Redeliver) and error.delay is not None:
            return later(error.delay)
        delay = self._delay(number)
        if not isinstance(error, Redeliver):
            log.warning(
                "%s: a message on %s was not handled, delivery %d of %d, again in %.1f s: %s",
                *(self._name, request.subject, number, most, delay, _told(error)),
            )
        return later(delay)

    def _delay(self, number: int) -> float:
        """Seconds until the next delivery: half of what doubles with each, and up to as much again."""
        most = self._consumption.retry_delay_most
        # 2 to the 64th is more than anybody waits.
        whole = min(most, self._consumption.retry_delay * 2.0 ** min(number - 1, 64))
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 # not for secrets

    async def _bury(self, request: Request, why: str) -> bytes:
        source, name = self._consumption.source, self._consumption.name
        try:
            letter = await bury(self._publisher, self._js, request, source, name, why)
        except MeshError as error:
            where = f"{self._name}: a message on {request.subject}"
            log.error("%s could not be put to the dead letters: %s", where, error)  # noqa: TRY400 # of the mesh
            return later(self._consumption.retry_delay_most)
        self.deliveries.dead += 1
        where = f"{self._name}: a message on {request.subject}"
        log.error("%s is the dead letter %d of %s now: %s", where, letter, name, why)
        return NEVER

    async def _watch(self) -> None:
        """Look how much there is to do."""
        stream = self._consumption.consumed
        while True:
            pending = unacknowledged = 0
            try:
                for consumer in self._consumption.consumers:
                    if (info := await self._js.consumer(stream, consumer["name"])) is not None:
                        pending += info.num_pending
                        unacknowledged += info.num_ack_pending
            except MeshError as error:
                log.debug("%s: how much there is to do is not known: %s", self._name, error)
            else:
                self.deliveries.pending, self.deliveries.unacknowledged = pending, unacknowledged
            await asyncio.sleep(_LOOK)


def _told(error: MeshError) -> str:
    """What went wrong, for who looks at dead letters: not the text for strangers, if there is another."""
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__}: {cause}"
