"""Durable messages beside bare nats-py: `python -m benchmarks.durable`. Exits with 1 below the bounds.

Publishing: each message is acknowledged by the stream, 256 on their way at a time; nats-py by
`publish_async`. Consuming: each message is acknowledged when it has been handled; nats-py by `fetch(100)`.
Streams are on disk, messages have 128 bytes. Both do it in a process of their own, in turns, on the same
server; meshkit's messages have ids, so that the stream drops duplicates, and its consumer counts, retries
and has dead letters.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import nats
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

import meshkit
from benchmarks import command
from benchmarks.stage import Process, processor_time
from meshkit.transport.server import EmbeddedServer

WINDOW = 256
PAYLOAD = b"x" * 128
# Times what nats-py reaches.
BOUNDS = {"publish": 1.5, "consume": 2.0}


@asynccontextmanager
async def nats_py(url: str) -> AsyncGenerator[dict[str, Any]]:
    """Bare nats-py."""
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=WINDOW)

    async def publish(stream: str, count: int) -> float:
        await js.add_stream(StreamConfig(name=stream, subjects=[stream]))
        started = time.perf_counter()
        for _ in range(count):
            await js.publish_async(stream, PAYLOAD)
        await js.publish_async_completed()
        return time.perf_counter() - started

    async def consume(stream: str, count: int) -> float:
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=-1)
        subscription = await js.pull_subscribe(stream, "nats-py", config=config)
        started, handled = time.perf_counter(), 0
        while handled < count:
            for message in await subscription.fetch(100):
                await message.ack()
                handled += 1
        return time.perf_counter() - started

    try:
        yield {"publish": publish, "consume": consume}
    finally:
        await client.close()


@asynccontextmanager
async def of_meshkit(url: str) -> AsyncGenerator[dict[str, Any]]:
    """A client on meshkit."""
    async with meshkit.connect(url) as mesh:

        async def publish(stream: str, count: int) -> float:
            await mesh.declare(meshkit.StreamConfig(stream, [stream]))
            started = time.perf_counter()
            async with mesh.publisher(window=WINDOW) as publisher:
                for _ in range(count):
                    await publisher.publish(stream, PAYLOAD)
            return time.perf_counter() - started

        async def consume(stream: str, count: int) -> float:
            service, done, handled, started = meshkit.Service("consumer"), asyncio.Event(), 0, 0.0

            @service.consume(stream, stream=stream, concurrency=WINDOW)
            async def handle() -> None:
                nonlocal handled, started
                started = started or time.perf_counter()  # making the consumer is not what is measured
                handled += 1
                if handled == count:
                    done.set()

            async with mesh.serve(service):
                await done.wait()
                return time.perf_counter() - started

        yield {"publish": publish, "consume": consume}


class Measured(NamedTuple):
    """Messages a second, and microseconds of the client's processor time for each."""

    rate: float
    cost: float


def measure(process: Process, what: str, stream: str, count: int) -> Measured:
    """Have a client do it."""
    before = processor_time(process.pid)
    seconds = process.ask(what, stream=stream, count=count)
    return Measured(count / seconds, (processor_time(process.pid) - before) / count * 1e6)


def median(several: Sequence[Measured]) -> str:
    """As the table has it."""
    rate, cost = (statistics.median(one) for one in zip(*several, strict=True))
    return f"{rate:9,.0f} ({cost:4.1f} µs)"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often (default: 5)")
    parser.add_argument("--messages", type=int, default=50_000, help="in each (default: 50000)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), help="one of them (default: both)")
    options = parser.parse_args()
    print("messages a second (processor time of the client); medians")
    missed: list[str] = []
    for loop in [options.loop] if options.loop else ["asyncio", "uvloop"]:
        found: dict[tuple[str, str], list[Measured]] = {}
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(EmbeddedServer(store=store))
            clients = {
                name: stack.enter_context(Process("benchmarks.durable", role, loop=loop, url=server.url))
                for name, role in (("nats-py", "nats_py"), ("meshkit", "of_meshkit"))
            }
            for number in range(options.rounds):
                for what in BOUNDS:  # what is published is consumed
                    for name, client in clients.items():
                        told = measure(client, what, f"{name}-{number}", options.messages)
                        found.setdefault((what, name), []).append(told)
        for what, bound in BOUNDS.items():
            theirs, ours = found[what, "nats-py"], found[what, "meshkit"]
            ratios = [one.rate / other.rate for one, other in zip(ours, theirs, strict=True)]
            ratio = statistics.median(ratios)
            print(
                f"{loop:8} {what:8} nats-py {median(theirs)}  meshkit {median(ours)}  {ratio:.2f} times",
                end="",
            )
            print(f" ({min(ratios):.2f} to {max(ratios):.2f}; at least {bound:g})")
            if ratio < bound:
                missed.append(f"{loop} {what}")
    if missed:
        sys.exit(f"too slow: {', '.join(missed)}")


if __name__ == "__main__":
    command.run(main)
