"""What the part scale runs in processes of their own. They import what their users would, and no more."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.work import Answer, Ask, answer, check, concurrent
from meshkit import Service, connect

IN_FLIGHT = 64
# A handler that waits, as for a database: seconds, how many at a time in an instance, and how many calls in
# flight, enough for all instances to have their hands full.
NAP, AT_A_TIME, NAPS_IN_FLIGHT = 0.01, 8, 256

Commands = dict[str, Callable[..., Any]]


@asynccontextmanager
async def serve(url: str, *, endpoints: int = 1, subscriptions: int = 0) -> AsyncIterator[Commands]:
    """An instance."""
    service = Service("scale")
    naps = events = 0
    arrived = asyncio.Event()

    @service.endpoint(concurrency=AT_A_TIME)
    async def nap(ask: Ask) -> Answer:
        nonlocal naps
        naps += 1
        await asyncio.sleep(NAP)
        return answer(ask)

    async def echo(ask: Ask) -> Answer:
        return answer(ask)

    async def take(_: Ask) -> None:
        nonlocal events
        events += 1
        arrived.set()

    for n in range(endpoints):
        service.endpoint(f"scale.{n}", name=f"echo-{n}")(echo)
    for n in range(subscriptions):
        service.subscribe(f"scale.event.{n}")(take)

    async def napped() -> int:
        return naps

    async def received(count: int) -> float:
        """When so many events had been handled."""
        while events < count:
            arrived.clear()
            await asyncio.wait_for(arrived.wait(), 10)
        return time.perf_counter()

    async with connect(url) as mesh:
        started = time.perf_counter()
        async with mesh.serve(service):
            milliseconds = (time.perf_counter() - started) * 1000

            async def served() -> float:
                return milliseconds

            yield {"napped": napped, "received": received, "served": served}


@asynccontextmanager
async def crowd(url: str, *, count: int) -> AsyncIterator[Commands]:
    """Instances to be found, of ten endpoints each."""
    service = Service("crowd")

    async def echo(ask: Ask) -> Answer:
        return answer(ask)

    for n in range(10):
        service.endpoint(f"crowd.{n}", name=f"echo-{n}")(echo)
    async with AsyncExitStack() as stack:
        for _ in range(count):
            mesh = await stack.enter_async_context(connect(url))
            await stack.enter_async_context(mesh.serve(service))
        yield {}


@asynccontextmanager
async def client(url: str, *, connections: int = 1) -> AsyncIterator[Commands]:
    """Who calls, publishes and looks around, on so many connections in turn."""
    import meshkit.transport.nats  # noqa: F401 # else the first connection would wait for it

    async with AsyncExitStack() as stack:
        started = time.perf_counter()
        meshes = [await stack.enter_async_context(connect(url)) for _ in range(connections)]
        milliseconds = (time.perf_counter() - started) * 1000

        async def connected() -> float:
            return milliseconds

        async def calls(count: int, endpoints: int = 1) -> float:
            """Calls per second, over all connections and endpoints."""

            async def call(n: int) -> None:
                mesh = meshes[n % connections]
                check((await mesh.call(f"scale.{n % endpoints}", Ask("world", n), returns=Answer)).n, n)

            return (await concurrent(call, count, IN_FLIGHT))["rate"]

        async def naps(count: int) -> float:
            """Calls per second of handlers that wait."""

            async def call(n: int) -> None:
                check((await meshes[0].call("scale.nap", Ask("world", n), returns=Answer)).n, n)

            return (await concurrent(call, count, NAPS_IN_FLIGHT))["rate"]

        async def publish(count: int, subscriptions: int) -> float:
            """Publish to all subscriptions in turn; gives when that began."""
            began = time.perf_counter()
            for n in range(count):
                await meshes[0].publish(f"scale.event.{n % subscriptions}", Ask("world", n))
            return began

        async def discover() -> tuple[int, float]:
            """The instances found, and the seconds that it took."""
            began = time.perf_counter()
            services = await meshes[0].services()
            return sum(len(service.instances) for service in services), time.perf_counter() - began

        yield {
            "connected": connected,
            "calls": calls,
            "naps": naps,
            "publish": publish,
            "discover": discover,
        }
