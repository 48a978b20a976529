"""Counts of one process: a storage for `limits` that goes by the event loop's clock.

That of `limits` itself goes by the computer's clock, which somebody may set, and has a thread that looks
through all keys a hundred times a second.
"""

import asyncio
import math
from collections import OrderedDict, deque

import msgspec
from limits.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

# Whoever calls can make up keys. Beyond so many, what has been idle longest is forgotten before its time.
MOST_KEYS = 100_000


class _Window(msgspec.Struct):
    """What is known of a key.

    Attributes:
        until: When nothing of it counts any more, on the event loop's clock.
        count: How many hits the window has; of a sliding window, the current one.
        previous: How many the window before had, of a sliding window.
        hits: When they were, the oldest first, of a moving window.
    """

    until: float
    count: int = 0
    previous: int = 0
    hits: deque[float] = msgspec.field(default_factory=deque[float])


class MemoryStorage(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """Counts in memory, for the strategies of `limits.strategies`.

    Idle keys are forgotten: each access looks at the two that have been idle longest, and takes no longer for
    it. That order is exact if all keys have the same expiry, hence one storage a limit. Times are seconds of
    the event loop's clock. One key must not be used with two strategies.
    """

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def now(self) -> float:
        """The time that it goes by."""
        return self._loop.time()

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """What may go wrong: nothing."""
        return ()

    # Fixed windows, each of which begins with a key's first hit

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count a hit; gives the count of the window."""
        now = self._loop.time()
        window = self._live(key, now) or self._new(key, now + expiry)
        window.count += amount
        return window.count

    def get(self, key: str) -> int:
        """The count of the window."""
        window = self._live(key, self._loop.time())
        return window.count if window else 0

    def get_expiry(self, key: str) -> float:
        """When the window ends: now, if there is none."""
        now = self._loop.time()
        window = self._live(key, now)
        return window.until if window else now

    # Moving windows

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count a hit if there are fewer than `limit` in the `expiry` seconds that end now."""
        now = self._loop.time()
        window = self._moving(key, expiry, now)
        if window is None:
            if amount > limit:
                return False
            window = self._new(key, now)
        elif len(window.hits) + amount > limit:
            return False
        window.hits.extend((now,) * amount)
        window.until = now + expiry
        self._windows.move_to_end(key)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002 # of limits
        """The oldest hit in the `expiry` seconds that end now, and how many there are."""
        now = self._loop.time()
        window = self._moving(key, expiry, now)
        return (window.hits[0], len(window.hits)) if window else (now, 0)

    def _moving(self, key: str, expiry: int, now: float) -> _Window | None:
        window = self._live(key, now)
        if window:
            hits = window.hits
            # The same sum as a refused caller is told, so that it is let through when that time has come.
            while hits and hits[0] + expiry <= now:
                hits.popleft()
            if not hits:  # its latest was taken back, or it would have ended by itself
                del self._windows[key]
                return None
        return window

    # Sliding windows: two counters, of windows that begin at multiples of their length

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count a hit if the estimate of those in the `expiry` seconds that end now is below `limit`."""
        now = self._loop.time()
        window = self._sliding(key, expiry, now)
        if window is None:
            if amount > limit:
                return False
            window = self._new(key, (now // expiry + 2) * expiry)
        else:
            left = window.until - expiry - now
            if math.floor(window.previous * left / expiry + window.count) + amount > limit:
                return False
        window.count += amount
        return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and seconds to live of the previous window, count and seconds to live of the current one."""
        now = self._loop.time()
        window = self._sliding(key, expiry, now)
        if window is None:
            return 0, 0.0, 0, 0.0
        left = window.until - now
        return window.previous, left - expiry, window.count, left

    def clear_sliding_window(self, key: str, expiry: int) -> None:  # noqa: ARG002 # of limits
        """Forget a key."""
        self.clear(key)

    def _sliding(self, key: str, expiry: int, now: float) -> _Window | None:
        window = self._live(key, now)
        if window and window.until - expiry <= now:
            window.previous, window.count = window.count, 0
            window.until += expiry
            self._windows.move_to_end(key)
        return window

    # All of them

    def check(self) -> bool:
        """Whether it works."""
        return True

    def reset(self) -> int:
        """Forget all keys; gives how many there were."""
        number = len(self._windows)
        self._windows.clear()
        return number

    def clear(self, key: str) -> None:
        """Forget a key."""
        self._windows.pop(key, None)

    def take_back(self, key: str) -> None:
        """Forget the latest hit of a key."""
        window = self._windows.get(key)
        if window is None:
            return
        if window.hits:
            window.hits.pop()
        else:
            window.count -= 1
        if not (window.hits or window.count or window.previous):
            del self._windows[key]

    def _new(self, key: str, until: float) -> _Window:
        window = self._windows[key] = _Window(until)
        if len(self._windows) > MOST_KEYS:
            self._windows.popitem(last=False)
        return window

    def _live(self, key: str, now: float) -> _Window | None:
        windows = self._windows
        for _ in range(2):
            oldest = next(iter(windows), None)
            if oldest is None or windows[oldest].until > now:
                break
            del windows[oldest]
        window = windows.get(key)
        if window and window.until <= now:
            del windows[key]
            return None
        return window
