"""How late an event loop is: what keeps it shows in every call, and in no call's statistics."""

import asyncio
from time import perf_counter

from meshkit.telemetry.distribution import Distribution

# Seconds between two looks, and after the last reading until nobody looks any more.
_EVERY, _UNREAD = 0.25, 900.0


class LoopLag:
    """Looks four times a second how late the running event loop is, as long as somebody reads it.

    Nobody reads it in most processes, and those need no timer.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lag = Distribution()
        self._timer: asyncio.TimerHandle | None = None
        self._read_at = 0.0
        self._is_over = False

    def read(self) -> Distribution:
        """The lag so far; from now on it is measured."""
        self._read_at = self._loop.time()
        if self._timer is None and not self._is_over:
            self._look_again()
        return self._lag

    def stop(self) -> None:
        """Look no more."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        self._timer = self._loop.call_later(_EVERY, self._look, perf_counter() + _EVERY)

    def _look(self, due: float) -> None:
        self._lag.add(max(0.0, perf_counter() - due))
        self._timer = None
        if self._loop.time() < self._read_at + _UNREAD:
            self._look_again()
