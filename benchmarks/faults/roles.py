"""What runs in processes of its own: instances of the service, and callers of it."""

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.faults import service as drill
from benchmarks.faults.corpus import FORGED
from benchmarks.faults.service import Done, behaviour, notes
from benchmarks.work import Ask, concurrent, pace
from meshkit import CallPolicy, Mesh, MeshError, Policies, ServePolicy, Service, connect
from meshkit.service import Endpoint

Commands = dict[str, Callable[..., Any]]

# What is called, and how if not by default.
KINDS: dict[str, tuple[Endpoint[..., Any, Any] | str, CallPolicy | None]] = {
    "read": (drill.read, None),
    "write": (drill.write, None),
    "chain": (drill.chain, None),
    "limited": (drill.limited, None),
    "forged": (FORGED, None),
    "hedged": (drill.read, CallPolicy(hedge="15ms")),
    "critical": (drill.write, CallPolicy(priority="critical")),
    "sheddable": (drill.write, CallPolicy(priority="sheddable")),
}
# More calls than a drill has time for.
_ENDLESS = 1_000_000


class Alarms(logging.Handler):
    """What is logged as an error, by asyncio too."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._said: list[str] = []
        logging.basicConfig()
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._said.append(f"{record.name}: {record.getMessage()}")

    async def said(self) -> list[str]:
        """All of it."""
        gc.collect()  # a task that failed, and that nobody asks, tells it when it goes
        return self._said


@asynccontextmanager
async def serve(
    url: str | list[str],
    directory: str,
    *,
    work: float = behaviour.work,
    room: dict[str, int] | None = None,
    limited: bool = False,
    noise: str = "",
) -> AsyncGenerator[Commands]:
    """An instance of the service. SIGTERM drains it.

    Args:
        url: The servers.
        directory: Where executions are noted.
        work: Seconds that a call takes.
        room: `concurrency` and `backlog` of every endpoint.
        limited: Whether it also serves what is limited in the whole mesh.
        noise: Subject of events that it takes and forgets.
    """
    alarms = Alarms()
    notes.open(directory)
    behaviour.work = work
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    async def behave(**how: Any) -> None:
        vars(behaviour).update(how)

    async with AsyncExitStack() as stack:
        policies = Policies(serve={"drill.*": ServePolicy(**room)} if room else {})
        mesh = await stack.enter_async_context(connect(url, policies=policies))
        await stack.enter_async_context(mesh.serve(drill.service))
        if limited:
            await stack.enter_async_context(mesh.serve(drill.limits))
        if noise:
            await stack.enter_async_context(mesh.serve(_listener(noise)))

        async def server() -> str:
            return mesh.transport.server_url

        yield {"behave": behave, "server": server, "alarms": alarms.said}


def _listener(subject: str) -> Service:
    listener = Service("listener")

    @listener.subscribe(subject)
    async def take(_: bytes) -> None:
        """Forget it."""

    return listener


@asynccontextmanager
async def caller(url: str | list[str], *, connections: int = 1) -> AsyncGenerator[Commands]:
    """Who calls: at a constant rate, whatever became of the calls before.

    Args:
        url: The servers.
        connections: How many to have; calls go by one after the other.
    """
    alarms = Alarms()
    async with AsyncExitStack() as stack:
        meshes = [await stack.enter_async_context(connect(url)) for _ in range(connections)]
        caller = Caller(meshes)
        try:
            yield {
                "start": caller.start,
                "finish": caller.finish,
                "connected": caller.connected,
                "server": caller.server,
                "saturate": caller.saturate,
                "flood": caller.flood,
                "alarms": alarms.said,
            }
        finally:
            await caller.stop()


class Caller:
    """Calls on their way, and what became of those before."""

    def __init__(self, meshes: list[Mesh]) -> None:
        self._meshes = meshes
        self._came: list[tuple[Any, ...]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._pace: asyncio.Task[None] | None = None

    async def start(
        self, kinds: list[str], rate: float, first: int, timeout: float, cancel_after: float | None = None
    ) -> None:
        """Begin to call, and return.

        Args:
            kinds: What, one after the other.
            rate: Calls a second.
            first: The number of the first call.
            timeout: Seconds that a call may take.
            cancel_after: Seconds after which the caller of each is cancelled.
        """
        loop = asyncio.get_running_loop()

        def send(n: int, due: float) -> None:
            kind = kinds[n % len(kinds)]
            mesh = self._meshes[n % len(self._meshes)]
            task = loop.create_task(self._call(mesh, kind, first + n, due, timeout))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            if cancel_after is not None:
                loop.call_later(cancel_after, task.cancel)

        self._came.clear()
        self._pace = loop.create_task(pace(send, rate, _ENDLESS))

    async def finish(self) -> list[tuple[Any, ...]]:
        """Call no more; what came of each, when all are back."""
        await self.stop()
        if self._running:
            await asyncio.wait(self._running)
        return self._came

    async def stop(self) -> None:
        """Call no more."""
        if self._pace is not None:
            self._pace.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pace

    async def _call(self, mesh: Mesh, kind: str, n: int, due: float, timeout: float) -> None:
        target, policy = KINDS[kind]
        code = 0
        began = time.perf_counter()
        try:
            done = await mesh.call(target, Ask("drill", n), returns=Done, policy=policy, timeout=timeout)
            came = "answered" if done.n == n else "wrong"
        except MeshError as error:
            came, code = type(error).__name__, error.code
        except asyncio.CancelledError:
            came = "cancelled"
        except Exception as error:  # noqa: BLE001 # counted and shown, whatever it is
            came = type(error).__name__
        ended = time.perf_counter()
        self._came.append((n, kind, due, ended - due, ended - began, came, code))

    async def connected(self) -> int:
        """How many connections there are now."""
        return sum(mesh.transport.is_connected for mesh in self._meshes)

    async def server(self) -> str:
        """The server that the first connection is to."""
        return self._meshes[0].transport.server_url

    async def saturate(self, count: int, in_flight: int) -> float:
        """Calls a second with so many in flight."""

        def call(n: int) -> Awaitable[object]:
            return self._meshes[0].call(drill.write, Ask("drill", -1 - n))

        return (await concurrent(call, count, in_flight))["rate"]

    async def flood(self, subject: str, size: int, seconds: float) -> int:
        """Publish events as fast as they are taken; gives how many."""
        event, count, end = bytes(size), 0, time.perf_counter() + seconds
        publish = functools.partial(self._meshes[0].publish, subject, event)
        while time.perf_counter() < end:
            await publish()
            count += 1
            await asyncio.sleep(0)
        return count
