"""A limit that all instances keep together, in leases: each takes some of what is left, and counts those.

A lease is for the calls that wait and some to come: a part of what is left, as in guided self-scheduling
(Polychronopoulos and Kuck, 1987), so that there are none of those as the limit nears; and a part of what the
instance needs, so that it holds little that others want.
"""

import asyncio
import contextvars
import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from limits import RateLimitItem

from meshkit.discovery import registry
from meshkit.errors import DeadlineExceeded, MeshError
from meshkit.knobs import RateLimit
from meshkit.message import Request
from meshkit.quota.counters import CounterStorage
from meshkit.quota.keys import key_of
from meshkit.quota.local import items, refusal
from meshkit.quota.memory import MOST_KEYS
from meshkit.subject import token
from meshkit.transport import Transport

log = logging.getLogger("meshkit.quota")

# For calls to come a lease has at most an eighth of what is left, and a quarter of what the instance let
# through in this window or the last. More are asked for when a quarter of it is left.
_PART_LEFT, _PART_USED, _PART_LOW = 8, 4, 4
# Seconds until JetStream is tried again, for which a number of instances holds, and that a call looks away.
_AWAY = 2.0
_COUNTED = 10.0
_LONGEST_WAIT = 5.0
# Seconds between two looks whether others are back.
_GLANCE = 0.05
# How often it is tried to tell new counters what they lack, and of how many keys at a time.
_TELLINGS, _TOLD_AT_ONCE = 5, 100

T = TypeVar("T")


class _Lease(msgspec.Struct):
    """What an instance has of a key's limit in one window.

    Attributes:
        window: The window's number.
        left: How many the counter had left when it was last seen.
        generation: In which generation of the counters.
        before: How many calls were let through in the window before.
        tokens: How many may be let through without asking.
        admitted: How many have been, with a token or without.
        charged: How many of both the counter knows of.
        low: At how many tokens more are asked for.
        waiting: How many calls wait for tokens.
        asking: What asks for more, or tells the counter.
    """

    window: int
    left: int
    generation: int
    before: int
    tokens: int = 0
    admitted: int = 0
    charged: int = 0
    low: int = -1
    waiting: int = 0
    asking: asyncio.Task[bool] | None = None

    @property
    def size(self) -> int:
        """How many to ask for."""
        ahead = min(self.left // _PART_LEFT, max(self.admitted, self.before) // _PART_USED)
        return max(1, min(self.left, self.waiting) + ahead)


class _Pool:
    """The leases of one limit.

    Args:
        item: The limit.
        what: What is limited.
        transport: Where its counters are.

    Attributes:
        item: The limit.
        storage: Its counters.
    """

    def __init__(self, item: RateLimitItem, what: str, transport: Transport) -> None:
        self.item = item
        self._start, self._end = token(what), item.key_for().replace("/", ".")
        self.storage = CounterStorage(transport, item.get_expiry())
        self._leases: OrderedDict[str, _Lease] = OrderedDict()

    @property
    def window_end(self) -> float:
        """When the window ends that it is now, on the event loop's clock."""
        return self.storage.window_end

    def lease(self, key: str) -> _Lease:
        """What there is of a key in the window that it is now."""
        lease = self._leases.get(key)
        window = self.storage.window
        if lease is None or lease.window != window:
            lease = self._renew(key, window, lease)
        return lease

    def _renew(self, key: str, window: int, old: _Lease | None) -> _Lease:
        before = old.admitted if old and old.window == window - 1 else 0
        lease = self._leases[key] = _Lease(window, self.item.amount, self.storage.generation, before)
        self._leases.move_to_end(key)
        # Idle keys, two for each that comes or goes on.
        for _ in range(2):
            oldest = next(iter(self._leases))
            if self._leases[oldest].window >= window - 1 and len(self._leases) <= MOST_KEYS:
                break
            del self._leases[oldest]
        return lease

    async def untold(self) -> list[str]:
        """The keys of which a counter that has begun anew does not know yet what was let through here.

        Raises:
            MeshError: JetStream does not do it.
        """
        await self.storage.synchronise()
        window, generation = self.storage.window, self.storage.generation
        return [
            key
            for key, lease in self._leases.items()
            if lease.window == window and lease.generation != generation and lease.admitted + lease.tokens
        ]

    async def tell(self, key: str) -> None:
        """Tell a counter that has begun anew what was let through here.

        Raises:
            MeshError: JetStream does not do it.
        """
        storage = self.storage
        await storage.synchronise()
        lease = self.lease(key)
        if lease.generation != storage.generation:
            owed = lease.admitted + lease.tokens
            value = await storage.add(self._name(key), lease.window, owed) if owed else 0
            lease.generation, lease.charged = storage.generation, owed
            lease.left = min(lease.left, self.item.amount - value)

    async def fetch(self, key: str) -> None:
        """Get tokens, if there are any left.

        Raises:
            MeshError: JetStream does not do it.
        """
        storage, amount = self.storage, self.item.amount
        await self.tell(key)
        while storage.is_incomplete:  # noqa: ASYNC110 # others come back, or a window begins, without a word
            await asyncio.sleep(_GLANCE)
        lease = self.lease(key)
        size = lease.size
        owed = max(0, lease.admitted + lease.tokens - lease.charged)
        value = await storage.add(self._name(key), lease.window, owed + size)
        if lease.generation != storage.generation:
            # The counter has begun anew: it knows of these, and is told of the rest before it gives any.
            lease.generation, lease.charged = storage.generation, owed + size
            return
        # Of all that were ever added, ours are the last; what is above the limit is nobody's. More can be
        # left than was before only until others have told a counter that has begun anew.
        granted = max(0, min(size, lease.left, amount - (value - size)))
        lease.left = min(lease.left - granted, amount - value)
        lease.tokens += granted
        lease.charged += owed + granted
        lease.low = granted // _PART_LOW or -1

    def _name(self, key: str) -> str:
        return f"{self._start}.{token(key)}.{self._end}"


class LeasedQuota:
    """Counts in JetStream, or for itself while that is away; the interface is `meshkit.quota.Quota`.

    Args:
        limit: How many.
        what: Of what: what all instances that share the limit call it.
        transport: A connection to JetStream.
        service: Whose instances share the limit while JetStream is away; if empty, each has all of it then.
    """

    def __init__(self, limit: RateLimit, what: str, transport: Transport, service: str) -> None:
        self._what = what
        self._by = limit.by
        self._key = key_of(limit.by)
        self._transport = transport
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._pools = [_Pool(item, what, transport) for item in items(limit)]
        self._is_away = False
        self._retry_at = 0.0
        self._returning: asyncio.Task[None] | None = None
        self._instances = 0  # as long as it is not known
        self._counted = -math.inf
        self._counting: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._generations = self._seen()
        # Quotas come and go on a connection.
        on_reconnect = weakref.WeakMethod(self._on_reconnect)
        transport.on_reconnect(lambda: (method := on_reconnect()) and method())

    def take(self, request: Request) -> Awaitable[None] | None:
        """Count a request; None, or what to wait for if there are no tokens here.

        Raises:
            RateLimited: It is one too many in this window; `retry_after` says when that ends.
        """
        key = self._key(request)
        if self._is_away and self._loop.time() >= self._retry_at:
            self._retry_at = self._loop.time() + _AWAY
            self._returning = self._start(self._return(key))
        lacking = self._admit(key)
        return self._wait(request, key, lacking) if lacking else None

    def give_back(self, request: Request) -> None:
        """Forget a request that was let through just now."""
        key = self._key(request)
        for pool in self._pools:
            lease = pool.lease(key)
            if lease.admitted:  # else a new window has begun meanwhile
                lease.admitted -= 1
                lease.tokens += 1

    def _admit(self, key: str) -> list[_Pool]:
        """Let a call through; or else the limits that it has to wait for, and is not counted by any."""
        found: list[tuple[_Pool, _Lease]] = []
        lacking: list[_Pool] = []
        for pool in self._pools:
            lease = pool.lease(key)
            found.append((pool, lease))
            if lease.tokens:
                continue
            self._check(pool, lease, key)
            if not self._is_alone:
                lacking.append(pool)
        if not lacking:
            for pool, lease in found:
                lease.admitted += 1
                lease.tokens = max(0, lease.tokens - 1)
                if lease.tokens == lease.low and lease.left > 0 and not self._is_away:
                    self._ask(pool, key)
        return lacking

    @property
    def _is_alone(self) -> bool:
        return self._is_away and self._instances > 0

    def _check(self, pool: _Pool, lease: _Lease, key: str) -> None:
        if lease.tokens:
            return
        is_over = lease.left <= 0
        if is_over and pool.storage.is_due and not self._is_away:
            # Who has nothing to ask for has something to tell, if the counter has been lost.
            self._begin(pool, key, pool.tell)
        if is_over or (self._is_alone and lease.admitted >= self._share(pool)):
            raise refusal(self._what, pool.item, self._by, pool.window_end - self._loop.time())

    def _share(self, pool: _Pool) -> int:
        """How many each instance lets through by itself. None at all would be worse than one too many."""
        return max(1, pool.item.amount // self._instances)

    async def _wait(self, request: Request, key: str, lacking: list[_Pool]) -> None:
        while lacking:
            left = request.deadline - self._loop.time()
            if left <= 0:
                error = DeadlineExceeded(f"the deadline passed in wait for the rate limit of {self._what}")
                error.executed = False
                raise error
            leases = [pool.lease(key) for pool in lacking]
            for lease in leases:
                lease.waiting += 1
            try:
                asking = {self._ask(pool, key) for pool in lacking}
                await asyncio.wait(asking, timeout=min(left, _LONGEST_WAIT))
            finally:
                for lease in leases:
                    lease.waiting -= 1
            lacking = self._admit(key)

    def _ask(self, pool: _Pool, key: str) -> asyncio.Task[Any]:
        """What gets tokens; the same for all who wait for it."""
        return self._counting or self._begin(pool, key, pool.fetch)

    def _begin(self, pool: _Pool, key: str, work: Callable[[str], Awaitable[None]]) -> asyncio.Task[bool]:
        """Begin to ask for tokens, or to tell: one of it at a time for each lease."""
        lease = pool.lease(key)
        if lease.asking is None:
            lease.asking = self._start(self._do(work, key, lease))
        return lease.asking

    async def _do(self, work: Callable[[str], Awaitable[None]], key: str, asked: _Lease) -> bool:
        try:
            await work(key)
        except MeshError as error:
            self._fall_back(error)
            return False
        finally:
            asked.asking = None
        if self._seen() != self._generations:
            self._tell()
        return True

    async def _return(self, key: str) -> None:
        for pool in self._pools:
            if not await self._begin(pool, key, pool.fetch):
                return
        self._come_back()

    def _come_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("the rate limit of %s is shared by all instances again", self._what)

    # Counters that were lost

    def _seen(self) -> list[int]:
        return [pool.storage.generation for pool in self._pools]

    def _on_reconnect(self) -> None:
        """The server may have restarted. Its counters must know what was let through before others ask."""
        for pool in self._pools:
            pool.storage.doubt()
        self._retry_at, self._instances, self._counted = 0.0, 0, -math.inf
        self._tell()

    def _tell(self) -> None:
        """Tell the counters that have begun anew, in the background."""
        self._generations = self._seen()
        if self._telling is not None:
            self._telling.cancel()
        self._telling = self._start(self._tell_all())

    async def _tell_all(self) -> None:
        for _ in range(_TELLINGS):
            try:
                for pool in self._pools:
                    keys = await pool.untold()
                    for at in range(0, len(keys), _TOLD_AT_ONCE):
                        some = keys[at : at + _TOLD_AT_ONCE]
                        await asyncio.wait([self._begin(pool, key, pool.tell) for key in some])
                if not any([await pool.untold() for pool in self._pools]):
                    self._come_back()
                    return
            except MeshError as error:
                self._fall_back(error)
            await asyncio.sleep(_AWAY)

    def _fall_back(self, error: MeshError) -> None:
        now = self._loop.time()
        if not self._is_away:
            self._is_away = True
            log.warning(
                "the rate limit of %s is not shared; each instance takes a part: %s", self._what, error
            )
        self._retry_at = now + _AWAY
        if self._counting is None and now - self._counted >= _COUNTED:
            self._counting = self._start(self._count())

    async def _count(self) -> None:
        """How many instances there are."""
        try:
            if self._service:
                self._instances = len(await registry.instances(self._transport, self._service))
        except MeshError as error:
            log.debug("the instances of %s are not known: %s", self._service, error)
        finally:
            self._instances = max(1, self._instances)
            self._counted = self._loop.time()
            self._counting = None

    def _start(self, coroutine: Coroutine[None, None, T]) -> asyncio.Task[T]:
        # In a context of its own: it asks for all who wait, and outlives the request that began it.
        return self._loop.create_task(coroutine, context=contextvars.Context())
