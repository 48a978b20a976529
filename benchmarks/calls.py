"""What a call costs beside one of bare nats-py in the same run: `python -m benchmarks.calls`.

The same typed echo, the service in a process of its own, rounds interleaved, medians. Bare nats-py sends
three headers, as a mesh does, and handles one message at a time in its callback. The last line is ten calls
at once to a handler that sleeps 0.1 s; it exits with 1 if they do not run side by side.
"""

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import Event

import msgspec
import nats
from nats.aio.msg import Msg

from meshkit import Service, connect
from meshkit.transport.server import EmbeddedServer

ROUNDS = 5
CALLS = 5_000
IN_FLIGHT = 64
HEADERS = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "Timeout": "5000", "Caller": "bench/1"}


class Ask(msgspec.Struct):
    """A request."""

    name: str
    number: int


class Answer(msgspec.Struct):
    """Its reply."""

    greeting: str
    number: int


service = Service("bench")


@service.endpoint()
async def echo(ask: Ask) -> Answer:
    """Answer."""
    return Answer(f"hello {ask.name}", ask.number + 1)


@service.endpoint()
async def nap() -> None:
    """Sleep."""
    await asyncio.sleep(0.1)


async def serve(url: str, ready: Event) -> None:
    """The echo on meshkit and on bare nats-py."""
    bare = await nats.connect(url)
    decoder, encoder = msgspec.json.Decoder(Ask), msgspec.json.Encoder()

    async def answer(msg: Msg) -> None:
        ask = decoder.decode(msg.data)
        reply = encoder.encode(Answer(f"hello {ask.name}", ask.number + 1))
        await bare.publish(msg.reply, reply, headers=HEADERS)

    await bare.subscribe("bare.echo", queue="q", cb=answer)
    await bare.flush()
    async with connect(url) as mesh, mesh.serve(service):
        ready.set()
        await asyncio.Event().wait()


def serve_in_process(url: str, ready: Event) -> None:
    """The process of the services."""
    asyncio.run(serve(url, ready))


async def rate(call: Callable[[], Awaitable[object]]) -> float:
    """Calls per second with so many in flight."""

    async def caller() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return CALLS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - started)


async def p50(call: Callable[[], Awaitable[object]]) -> float:
    """Median microseconds of calls one after the other."""
    taken: list[float] = []
    for _ in range(1000):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


async def measure(url: str) -> float:
    """Print the table; gives the seconds that ten sleeping calls took."""
    bare = await nats.connect(url)
    decoder, encoder = msgspec.json.Decoder(Answer), msgspec.json.Encoder()
    ask = Ask("world", 1)

    async def call_bare() -> Answer:
        reply = await bare.request("bare.echo", encoder.encode(ask), timeout=5, headers=HEADERS)
        return decoder.decode(reply.data)

    async with connect(url) as mesh:

        async def call_mesh() -> Answer:
            return await mesh.call(echo, ask)

        contenders = {"bare nats-py, three headers": call_bare, "meshkit": call_mesh}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        waits: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, call in contenders.items():
                rates[name].append(await rate(call))
                waits[name].append(await p50(call))
        print(f"{'':<30}{'calls/s':>10}{'ratio':>7}{'p50 µs':>10}{'ratio':>7}")
        base = statistics.median(rates["bare nats-py, three headers"])
        base_wait = statistics.median(waits["bare nats-py, three headers"])
        for name in contenders:
            many, wait = statistics.median(rates[name]), statistics.median(waits[name])
            print(f"{name:<30}{many:>10,.0f}{many / base:>7.2f}{wait:>10.0f}{wait / base_wait:>7.2f}")
        started = time.perf_counter()
        await asyncio.gather(*(mesh.call(nap) for _ in range(10)))
        seconds = time.perf_counter() - started
        print(f"ten calls at once, each sleeping 0.1 s: {seconds:.3f} s")
    await bare.close()
    return seconds


def main() -> None:
    """Run it."""
    context = multiprocessing.get_context("spawn")
    with EmbeddedServer() as server:
        ready = context.Event()
        process = context.Process(target=serve_in_process, args=(server.url, ready), daemon=True)
        process.start()
        ready.wait(10)
        seconds = asyncio.run(measure(server.url))
        process.terminate()
        process.join()
    if seconds > 0.2:
        sys.exit("the calls did not run side by side")


if __name__ == "__main__":
    main()
