"""A limit that all instances keep together, in leases: each takes some of what is left, and counts those.

A lease is for the calls that wait and some to come: a part of what is left, as in guided self-scheduling
(Polychronopoulos and Kuck, 1987), so that there are none of those as the limit nears; and a part of what the
instance needs, so that it holds little that others want.
"""

import asyncio
import contextvars
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Coroutine

import msgspec
from limits import RateLimitItem

from meshkit.discovery import registry
from meshkit.errors import DeadlineExceeded, MeshError, RateLimited
from meshkit.knobs import RateLimit
from meshkit.message import Request
from meshkit.quota.counters import CounterStorage
from meshkit.quota.keys import key_of
from meshkit.quota.local import items, refusal
from meshkit.quota.memory import MOST_KEYS
from meshkit.transport import Transport

log = logging.getLogger("meshkit.quota")

# For calls to come a lease has at most an eighth of what is left, and a quarter of what the instance let
# through in this window or the last. More are asked for when a quarter of it is left.
_PART_LEFT, _PART_USED, _PART_LOW = 8, 4, 4
# Seconds until JetStream is tried again, for which a number of instances holds, and that a call looks away.
_AWAY = 2.0
_COUNTED = 10.0
_LONGEST_WAIT = 5.0


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
        asking: What asks for more.
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
    asking: asyncio.Task[None] | None = None

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
    """

    def __init__(self, item: RateLimitItem, what: str, transport: Transport) -> None:
        self.item = item
        self._what = what
        self._storage = CounterStorage(transport, item.get_expiry())
        self._leases: OrderedDict[str, _Lease] = OrderedDict()

    @property
    def window_end(self) -> float:
        """When the window ends that it is now, on the event loop's clock."""
        return self._storage.window_end

    def lease(self, key: str) -> _Lease:
        """What there is of a key in the window that it is now."""
        lease = self._leases.get(key)
        window = self._storage.window
        if lease is None or lease.window != window:
            lease = self._renew(key, window, lease)
        return lease

    def _renew(self, key: str, window: int, old: _Lease | None) -> _Lease:
        before = old.admitted if old and old.window == window - 1 else 0
        lease = self._leases[key] = _Lease(window, self.item.amount, self._storage.generation, before)
        self._leases.move_to_end(key)
        # Idle keys, two for each that comes or goes on.
        for _ in range(2):
            oldest = next(iter(self._leases))
            if self._leases[oldest].window >= window - 1 and len(self._leases) <= MOST_KEYS:
                break
            del self._leases[oldest]
        return lease

    async def fetch(self, key: str) -> None:
        """Get tokens, if there are any left.

        Raises:
            MeshError: JetStream does not do it.
        """
        storage, amount = self._storage, self.item.amount
        await storage.synchronise()
        lease = self.lease(key)
        size = lease.size
        owed = max(0, lease.admitted + lease.tokens - lease.charged)
        value = await storage.add(self.item.key_for(self._what, key), lease.window, owed + size)
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

    def _admit(self, key: str) -> list[_Pool]:
        """Let a call through; or else the limits that it has to wait for, and is not counted by any."""
        found: list[tuple[_Pool, _Lease]] = []
        lacking: list[_Pool] = []
        for pool in self._pools:
            lease = pool.lease(key)
            found.append((pool, lease))
            if lease.tokens:
                continue
            is_alone = self._is_away and self._instances > 0
            if lease.left <= 0 or (is_alone and lease.admitted >= self._share(pool)):
                raise self._refusal(pool)
            if not is_alone:
                lacking.append(pool)
        if not lacking:
            for pool, lease in found:
                lease.admitted += 1
                lease.tokens = max(0, lease.tokens - 1)
                if lease.tokens == lease.low and lease.left > 0 and not self._is_away:
                    self._ask(pool, key)
        return lacking

    def _share(self, pool: _Pool) -> int:
        """How many each instance lets through by itself. None at all would be worse than one too many."""
        return max(1, pool.item.amount // self._instances)

    def _refusal(self, pool: _Pool) -> RateLimited:
        return refusal(self._what, pool.item, self._by, pool.window_end - self._loop.time())

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

    def _ask(self, pool: _Pool, key: str) -> asyncio.Task[None]:
        """What gets tokens; the same for all who wait for it."""
        if self._counting is not None:
            return self._counting
        lease = pool.lease(key)
        if lease.asking is None:
            lease.asking = self._start(self._fetch(pool, key, lease))
        return lease.asking

    async def _fetch(self, pool: _Pool, key: str, asked: _Lease) -> None:
        try:
            await pool.fetch(key)
        except MeshError as error:
            self._fall_back(error)
        finally:
            asked.asking = None

    async def _return(self, key: str) -> None:
        try:
            for pool in self._pools:
                await pool.fetch(key)
        except MeshError as error:
            self._fall_back(error)
        else:
            self._is_away = False
            log.info("the rate limit of %s is shared by all instances again", self._what)

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

    def _start(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # In a context of its own: it asks for all who wait, and outlives the request that began it.
        return self._loop.create_task(coroutine, context=contextvars.Context())
