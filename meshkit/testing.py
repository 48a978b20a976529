"""Fixtures for pytest: a nats-server, a mesh on it, and a clock that the test moves.

pytest finds them by itself. `mesh` and `clock` are asynchronous: they work with the pytest plugin of anyio
(on asyncio) and with pytest-asyncio.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from selectors import BaseSelector
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # every run of pytest loads this module, whether it uses the fixtures or not
    from meshkit.mesh import Mesh
    from meshkit.transport.server import EmbeddedServer

_QUIET = 0.005  # seconds of real time, as the next one
_PATIENCE = 5.0


class Clock:
    """The time of the running event loop: it stands still, except for `advance()`.

    meshkit takes the time from its event loop and nowhere else, so what waits or measures in this loop goes
    by this clock: a test of an hour's back-off is exact and takes no time. The network, threads and other
    processes are real. Where the loop has connections, time moves only when they have been quiet for 5 ms, so
    that a nats-server on the same machine has answered before; wait for what takes longer.

    A test that waits for a timer to which nobody advances would hang. Five real seconds after the last
    `advance()` the clock therefore runs on, and a timeout of the test's own can end it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        if not isinstance(loop, asyncio.SelectorEventLoop):
            raise TypeError(f"The clock needs asyncio's own event loop, not one of {type(loop).__module__}.")
        self._loop = loop
        self._time = loop.time()
        self._set_at = time.monotonic()

    def now(self) -> float:
        """The loop's time, in seconds."""
        return self._time + max(0.0, time.monotonic() - self._set_at - _PATIENCE)

    async def advance(self, seconds: float) -> None:
        """Move the time on by `seconds`, or a microsecond more where sums of floats want it.

        Timers due by then fire in their order, each at its own time, also those that are set on the way.
        What they wake has run when this returns, as far as it waits for nothing else.
        """
        start = self.now()
        end = start + seconds
        if end - start < seconds:  # rounded down, and who waits for `seconds` to pass would see less
            end = math.nextafter(end, math.inf)
        await self._settle()
        while (due := self._next_timer()) < end + 1e-6:  # ten times 0.1 may be due after 1.0
            self._set(max(due, math.nextafter(self.now(), math.inf)))
            await self._settle()
        self._set(max(end, self.now()))

    def _set(self, now: float) -> None:
        self._time, self._set_at = now, time.monotonic()

    async def _settle(self) -> None:
        selector: BaseSelector = self._inside("_selector")
        for _ in range(1000):  # bounded: something may be polling, or receive without end
            await asyncio.sleep(0)
            if self._inside("_ready"):
                continue
            connected = len(selector.get_map()) > 1  # the loop's own wake-up socket is always there
            began = time.monotonic()
            is_quiet = not connected or not selector.select(_QUIET)
            # Where this process had to wait for the processor, so may the server have.
            if is_quiet and time.monotonic() - began < 2 * _QUIET:
                break

    def _next_timer(self) -> float:
        timers: list[asyncio.TimerHandle] = self._inside("_scheduled")
        return min((timer.when() for timer in timers), default=math.inf)

    def _inside(self, name: str) -> Any:
        # asyncio has no public way to ask what is next, and small steps would be neither exact nor fast.
        return vars(self._loop)[name]


@pytest.fixture(scope="session")
def nats_server() -> Iterator["EmbeddedServer"]:
    """A real nats-server with JetStream on a free port; `nats_server.url` is where to connect."""
    from meshkit.transport.server import EmbeddedServer

    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def mesh(nats_server: "EmbeddedServer") -> AsyncIterator["Mesh"]:
    """A `meshkit.Mesh` that is connected to `nats_server`."""
    from meshkit.connecting import connect

    async with connect(nats_server.url) as mesh:
        yield mesh


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """The `meshkit.testing.Clock` of the test's event loop."""
    loop = asyncio.get_running_loop()
    real_time = loop.time
    clock = Clock(loop)
    loop.time = clock.now
    yield clock
    ahead = clock.now() - real_time()
    loop.time = lambda: real_time() + ahead  # never back: timers set in the test would be late
