"""A limit that each instance keeps for itself."""

import asyncio
import math
from typing import cast

from limits import RateLimitItem, WindowStats, parse_many
from limits.strategies import (
    FixedWindowRateLimiter,
    MovingWindowRateLimiter,
    RateLimiter,
    SlidingWindowCounterRateLimiter,
)

from meshkit.errors import RateLimited
from meshkit.knobs import RateLimit
from meshkit.message import Request
from meshkit.quota.keys import key_of
from meshkit.quota.memory import MemoryStorage

# Seconds.
_INSTANT = 0.001


class _SlidingWindow(SlidingWindowCounterRateLimiter):
    """`limits` has it reset by the computer's clock, and when the estimate falls by one, to wherever."""

    def get_window_stats(self, item: RateLimitItem, *identifiers: str) -> WindowStats:
        """When another hit will be let through, on the event loop's clock, and how many are now."""
        storage = cast(MemoryStorage, self.storage)
        expiry = item.get_expiry()
        previous, left, count, _ = storage.get_sliding_window(item.key_for(*identifiers), expiry)
        estimate = previous * left / expiry + count
        wait = 0.0
        if estimate >= item.amount:
            # The previous window counts for less every moment; if the current one is full by itself, it must
            # be the previous one first.
            wait = left + _INSTANT
            if count < item.amount:
                wait -= (item.amount - count) * expiry / previous
        return WindowStats(storage.now + wait, max(0, item.amount - math.floor(estimate)))


_STRATEGIES: dict[object, type[RateLimiter]] = {
    "moving": MovingWindowRateLimiter,
    "fixed": FixedWindowRateLimiter,
    "sliding": _SlidingWindow,
}


class LocalQuota:
    """Counts in memory; the interface is `meshkit.quota.Quota`.

    Args:
        limit: How many.
        what: Of what, for the error's text.
    """

    def __init__(self, limit: RateLimit, what: str) -> None:
        self._what = what
        self._by = limit.by
        self._key = key_of(limit.by)
        self._loop = asyncio.get_running_loop()
        strategy = _STRATEGIES[limit.window]
        self._limiters = [(strategy(MemoryStorage()), item) for item in items(limit)]

    def take(self, request: Request) -> None:
        """Count a request.

        Raises:
            RateLimited: It is one too many; `retry_after` says when it would not be, if nobody else calls.
        """
        key = self._key(request)
        for at, (limiter, item) in enumerate(self._limiters):
            if not limiter.hit(item, key):
                self._give_back(key, at)
                raise self._refusal(key)

    def give_back(self, request: Request) -> None:
        """Forget a request that was let through just now."""
        self._give_back(self._key(request), len(self._limiters))

    def _give_back(self, key: str, before: int) -> None:
        for limiter, item in self._limiters[:before]:
            cast(MemoryStorage, limiter.storage).take_back(item.key_for(key))

    def _refusal(self, key: str) -> RateLimited:
        full = [(limiter, item) for limiter, item in self._limiters if not limiter.test(item, key)]
        reset, item = max((limiter.get_window_stats(item, key).reset_time, item) for limiter, item in full)
        return refusal(self._what, item, self._by, reset - self._loop.time())


def items(limit: RateLimit) -> list[RateLimitItem]:
    """The limits that a policy's texts stand for."""
    return [item for text in limit.limits for item in parse_many(text)]


def refusal(what: str, item: RateLimitItem, by: str, wait: float) -> RateLimited:
    """The error of who is refused.

    Args:
        what: What is limited.
        item: The limit that refuses.
        by: What it counts by.
        wait: Seconds until another call would be let through.
    """
    name = item.GRANULARITY.name
    period = name if item.multiples == 1 else f"{item.multiples} {name}s"
    each = f" for each {by.replace(':', ' ')}" if by else ""
    error = RateLimited(f"the rate limit of {what} is reached: {item.amount} per {period}{each}")
    error.retry_after = wait
    error.own = True  # as who calls sees it; on the way to somebody else that is lost, as it should be
    return error
