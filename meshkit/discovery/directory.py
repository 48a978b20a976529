"""What services announce of their endpoints, for callers that have not their code: subjects and policies."""

import asyncio
import contextlib
import contextvars
import logging
import random
import weakref
from typing import Any, Protocol

import msgspec

from meshkit.discovery.protocol import POLICY, InfoResponse
from meshkit.errors import ConfigError, DeclarationError, Forbidden, MeshError, shortened
from meshkit.policies import Source
from meshkit.policy import CallPolicy, read
from meshkit.subject import Pattern
from meshkit.transport import Message, Transport

log = logging.getLogger("meshkit.discovery")

# A request here is answered by one instance of each service; an instance that starts publishes below it.
ANNOUNCE = "_MESH.announce"

# Seconds until it asks again, while subjects are called that it does not know; it doubles up to the most.
_PATIENCE, _PATIENCE_MOST = 10.0, 640.0
# Seconds, at most: after a server has ended, not all ask at once.
_SPREAD = 3.0
# Endpoints that are remembered, and those with wildcards that begin alike: whoever may publish could
# announce without end.
_MOST, _MOST_ALIKE = 10_000, 1_000

_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Announced(msgspec.Struct, frozen=True, gc=False):
    pattern: Pattern
    precision: tuple[int, ...]
    source: Source


class Listener(Protocol):
    """Who remembers what it has found."""

    def forget(self) -> None:
        """There are news: look again."""
        ...


class Directory:
    """The endpoints that services announce, learnt in the background and once per connection.

    The first call to a subject that is not known yet has it ask; until the answers are there, calls go by
    the defaults. From then on it hears of each instance that starts. It asks again after a reconnect, and,
    less and less often, for what nobody announces.

    Args:
        transport: The connection to ask on.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._exact: dict[str, _Announced] = {}
        # By the first token of their patterns. What begins with a wildcard is never found: it would be for
        # everybody's subjects.
        self._alike: dict[str, dict[str, _Announced]] = {}
        # A service that is served on the connection has a mesh of its own, for as long as it is.
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._is_listening = False
        self._is_closed = False
        self._asking: asyncio.Task[None] | None = None
        # Whether a subject was called that is not known, since it last asked.
        self._is_wanted = False
        self._wake = asyncio.Event()
        self._left_out = 0
        transport.on_reconnect(self._reconnected)

    def tell(self, listener: Listener) -> None:
        """Tell somebody of all news."""
        self._listeners.add(listener)

    def find(self, subject: str) -> tuple[str, list[Source]]:
        """The target that a subject belongs to, and what its callers are told to do; the weakest first."""
        found = self._exact.get(subject)
        if found is None:
            alike = self._alike.get(subject.partition(".")[0], {})
            matching = (one for one in alike.values() if one.pattern.covers(subject))
            found = max(matching, key=lambda one: one.precision, default=None)
        if found is not None:
            return found.pattern.wire, [found.source]
        self._is_wanted = True
        self._ask()
        return subject, []

    async def learn(self) -> None:
        """Ask everybody, and wait for the answers.

        Raises:
            MeshError: There is no connection, or it may not ask.
        """
        self._is_wanted = False
        if not self._is_listening:
            self._is_listening = True
            await self._transport.subscribe(f"{ANNOUNCE}.*.*", self._take, optional=True)
        for answer in await self._transport.gather(ANNOUNCE):
            self._learn(answer.payload)
        self._spread()

    async def close(self) -> None:
        """Ask no more."""
        self._is_closed = True
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    def _ask(self) -> None:
        if self._asking is None and not self._is_closed:
            # In a context of its own: it outlives the call that it begins with.
            self._asking = self._loop.create_task(self._go_on_asking(), context=contextvars.Context())

    async def _go_on_asking(self) -> None:
        patience = _PATIENCE
        try:
            while await self._has_learnt():
                self._wake.clear()
                try:
                    async with asyncio.timeout(patience):
                        await self._wake.wait()
                except TimeoutError:
                    if not self._is_wanted:
                        return
                    patience = min(2 * patience, _PATIENCE_MOST)
                else:
                    patience = _PATIENCE
                    await asyncio.sleep(random.uniform(0, _SPREAD))  # noqa: S311 # spreads load
        finally:
            self._asking = None

    async def _has_learnt(self) -> bool:
        """Ask; False if trying again is of no use. Meanwhile calls go on by what is known."""
        try:
            await self.learn()
        except MeshError as error:
            log.debug("what services announce is not known: %s", error)
            self._is_wanted = True
            return not isinstance(error, Forbidden)
        return True

    def _reconnected(self) -> None:
        # Instances may have started meanwhile, and nobody has heard it here.
        if self._is_listening:
            self._ask()
            self._wake.set()

    def _take(self, message: Message) -> None:
        self._learn(message.payload, message.subject)
        self._spread()

    def _spread(self) -> None:
        for listener in list(self._listeners):
            listener.forget()

    def _learn(self, payload: bytes, subject: str | None = None) -> None:
        """Take in what a service announces.

        Args:
            payload: The announcement.
            subject: Where it was published, which a server's permissions may guard; None for an answer.
        """
        try:
            info = msgspec.json.decode(payload, type=InfoResponse)
        except _MALFORMED as error:
            self._leave_out("an announcement", error)
            return
        if subject not in {None, f"{ANNOUNCE}.{info.name}.{info.id}"}:
            self._leave_out("an announcement", f"service {info.name!r} does not announce on {subject}")
            return
        version = "".join(filter(str.isprintable, info.version[:50]))
        where = f"service {info.name} {version} (announced)"
        for endpoint in info.endpoints:
            try:
                policy = _policy(endpoint.metadata, where)
                self._remember(Pattern(endpoint.subject), Source(policy, where))
            except (*_MALFORMED, DeclarationError, ConfigError) as error:
                self._leave_out(f"what {info.name} announces of {endpoint.name!r}", error)

    def _remember(self, pattern: Pattern, source: Source) -> None:
        announced = _Announced(pattern, pattern.precision, source)
        first = pattern.wire.partition(".")[0]
        has_wildcards = "*" in pattern.wire or ">" in pattern.wire
        among = self._alike.setdefault(first, {}) if has_wildcards else self._exact
        most = _MOST_ALIKE if has_wildcards else _MOST
        among.pop(pattern.wire, None)
        among[pattern.wire] = announced
        while len(among) > most:
            del among[next(iter(among))]
        while len(self._alike) > _MOST:
            del self._alike[next(iter(self._alike))]

    def _leave_out(self, what: str, why: object) -> None:
        self._left_out += 1
        # The first, second, fourth, eighth ...: anybody may send them.
        level = logging.WARNING if self._left_out.bit_count() == 1 else logging.DEBUG
        log.log(level, "%s is left out: %s", what, shortened(repr(str(why)), 300))


def _policy(metadata: dict[str, str], where: str) -> CallPolicy:
    table = msgspec.json.decode(metadata.get(POLICY, "{}"), type=dict[str, Any])
    # A newer meshkit may announce more.
    known = {name: value for name, value in table.items() if name in CallPolicy.__struct_fields__}
    return read(CallPolicy, known, where)
