"""What services announce of their endpoints, for callers that have not their code: subjects and policies."""

import asyncio
import contextlib
import logging
import weakref
from typing import Any, Protocol

import msgspec

from meshkit.discovery.protocol import InfoResponse
from meshkit.errors import ConfigError, DeclarationError, Forbidden, MeshError
from meshkit.policies import Source
from meshkit.policy import CallPolicy, read
from meshkit.subject import Pattern
from meshkit.transport import Message, Subscription, Transport

log = logging.getLogger("meshkit.discovery")

# A request here is answered by one instance of each service; an instance that starts publishes below it.
ANNOUNCE = "_MESH.announce"
# The key of an endpoint's metadata that holds what its callers are told to do, as JSON.
POLICY = "policy"

# Seconds after which it asks again, if it meets a subject that it does not know.
_PATIENCE = 10.0
# Endpoints that are remembered: whoever may publish could announce without end.
_MOST = 10_000

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Listener(Protocol):
    """Who remembers what it has found."""

    def forget(self) -> None:
        """There are news: look again."""
        ...


class Directory:
    """The endpoints that services announce, learnt in the background and once per connection.

    The first call to a subject that is not known yet has it ask; until the answers are there, calls go by the
    defaults. From then on it hears of each instance that starts.

    Args:
        transport: The connection to ask on.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._endpoints: dict[str, tuple[Pattern, Source]] = {}
        # A service that is served on the connection has a mesh of its own, for as long as it is.
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._asked = -_PATIENCE
        self._asking: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    def tell(self, listener: Listener) -> None:
        """Tell somebody of all news."""
        self._listeners.add(listener)

    def find(self, subject: str) -> tuple[str, list[Source]]:
        """The target that a subject belongs to, and what its callers are told to do; the weakest first."""
        found = self._endpoints.get(subject)
        if found is None:
            matching = (entry for entry in self._endpoints.values() if entry[0].covers(subject))
            found = max(matching, key=lambda entry: entry[0].precision, default=None)
        if found is not None:
            return found[0].wire, [found[1]]
        if self._asking is None and self._loop.time() - self._asked >= _PATIENCE:
            self._asking = self._loop.create_task(self._ask())
        return subject, []

    async def learn(self) -> None:
        """Ask everybody, and wait for the answers.

        Raises:
            MeshError: There is no connection, or it may not ask.
        """
        self._asked = self._loop.time()
        if self._subscription is None:
            self._subscription = await self._transport.subscribe(f"{ANNOUNCE}.*.*", self._take)
        for answer in await self._transport.gather(ANNOUNCE):
            self._learn(answer.payload)
        self._spread()

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    async def _ask(self) -> None:
        try:
            while not await self._has_learnt():  # noqa: ASYNC110 - no event says that asking would help
                await asyncio.sleep(_PATIENCE)
        finally:
            self._asking = None

    async def _has_learnt(self) -> bool:
        """Ask; False if trying again may help. Meanwhile calls go on by what is known."""
        try:
            await self.learn()
        except MeshError as error:
            log.debug("what services announce is not known: %s", error)
            return isinstance(error, Forbidden)
        return True

    def _take(self, message: Message) -> None:
        self._learn(message.payload)
        self._spread()

    def _spread(self) -> None:
        for listener in list(self._listeners):
            listener.forget()

    def _learn(self, payload: bytes) -> None:
        try:
            info = msgspec.json.decode(payload, type=InfoResponse)
        except _MALFORMED as error:
            log.warning("an announcement is left out: %s", error)
            return
        where = f"service {info.name} {info.version} (announced)"
        for endpoint in info.endpoints:
            try:
                pattern = Pattern(endpoint.subject)
                self._endpoints[pattern.wire] = pattern, Source(_policy(endpoint.metadata, where), where)
            except (*_MALFORMED, DeclarationError, ConfigError) as error:
                log.warning("what %s announces of %r is left out: %s", info.name, endpoint.name, error)
        while len(self._endpoints) > _MOST:
            del self._endpoints[next(iter(self._endpoints))]


def _policy(metadata: dict[str, str], where: str) -> CallPolicy:
    table = msgspec.json.decode(metadata.get(POLICY, "{}"), type=dict[str, Any])
    # A newer meshkit may announce more.
    known = {name: value for name, value in table.items() if name in CallPolicy.__struct_fields__}
    return read(CallPolicy, known, where)
