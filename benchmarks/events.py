"""The part events: what publishing costs, and each of 1, 10 and 100 subscribers, beside bare nats-py.

The events are typed on both sides and have no headers. All subscribers live in one process, each on a
connection of its own. That process says how far they all are now and then, and the publisher has at most so
many events on their way: without that, who loses most would look fastest. What comes of it without is the
last table.
"""

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import nats
from nats.aio.msg import Msg

from benchmarks.report import Settings, figure
from benchmarks.stage import Nats, Process, nats_server, spending
from benchmarks.work import Ask
from meshkit import Service, connect

BASE = "bare nats-py"
CONTENDERS = {BASE: "bare", "meshkit": "meshkit"}
FAN_OUT = (1, 10, 100)
# Events on their way at most, and after how many the subscribers say how far they are.
WINDOW, STEP = 1_000, 100
# Events without a pause: more than meshkit keeps for a handler, fewer than nats-py does.
BURST = 50_000
QUIET = 0.5  # seconds without another event, after which none is expected
PATIENCE = 60.0

Handle = Callable[[int], Awaitable[None]]
Publish = Callable[[Ask], Awaitable[None]]
_decode, _encode = msgspec.json.Decoder(Ask).decode, msgspec.json.Encoder().encode


# In processes of their own


@asynccontextmanager
async def listen_bare(url: str, handle: Handle) -> AsyncIterator[None]:
    """A subscriber on nats-py."""
    client = await nats.connect(url)

    async def take(msg: Msg) -> None:
        await handle(_decode(msg.data).n)

    await client.subscribe("event.bare", cb=take)
    await client.flush()
    yield
    await client.close()


@asynccontextmanager
async def listen_meshkit(url: str, handle: Handle) -> AsyncIterator[None]:
    """A subscriber on meshkit."""
    service = Service("events")

    @service.subscribe("event.meshkit")
    async def take(event: Ask) -> None:
        await handle(event.n)

    async with connect(url) as mesh, mesh.serve(service):
        yield


@asynccontextmanager
async def publish_bare(url: str) -> AsyncIterator[tuple[Publish, Callable[[], Awaitable[None]]]]:
    """A publisher on nats-py, and what waits until the server has all that it published."""
    client = await nats.connect(url)

    async def publish(event: Ask) -> None:
        await client.publish("event.bare", _encode(event))

    yield publish, client.flush
    await client.close()


@asynccontextmanager
async def publish_meshkit(url: str) -> AsyncIterator[tuple[Publish, Callable[[], Awaitable[None]]]]:
    """A publisher on meshkit, likewise."""
    async with connect(url) as mesh:

        async def publish(event: Ask) -> None:
            await mesh.publish("event.meshkit", event)

        yield publish, mesh.transport.flush


@asynccontextmanager
async def subscribers(contender: str, url: str, count: int) -> AsyncIterator[dict[str, Any]]:
    """So many that count what they get."""
    control = await nats.connect(url)
    handled = [0] * count
    reached: collections.Counter[int] = collections.Counter()  # how many have handled that many

    def counting(subscriber: int) -> Handle:
        async def handle(n: int) -> None:
            if n < handled[subscriber]:
                raise ValueError(f"event {n} came after {handled[subscriber]} others")
            handled[subscriber] += 1
            if handled[subscriber] % STEP == 0:
                reached[handled[subscriber]] += 1
                if reached[handled[subscriber]] == count:
                    await control.publish(f"progress.{contender}", b"%d" % handled[subscriber])

        return handle

    async def received() -> int:
        """How many arrived, once no more do."""
        before = -1
        while before != (before := sum(handled)):  # noqa: ASYNC110 # nobody says that no event comes any more
            await asyncio.sleep(QUIET)
        return before

    listen = {"bare": listen_bare, "meshkit": listen_meshkit}[contender]
    async with AsyncExitStack() as stack:
        for subscriber in range(count):
            await stack.enter_async_context(listen(url, counting(subscriber)))
        yield {"received": received}
    await control.close()


@asynccontextmanager
async def publisher(contender: str, url: str) -> AsyncIterator[dict[str, Any]]:
    """Publishes at the pace of those who listen, or as fast as it can."""
    control = await nats.connect(url)
    published = handled = 0
    moved = asyncio.Event()

    async def hear(msg: Msg) -> None:
        nonlocal handled
        handled = int(msg.data)
        moved.set()

    await control.subscribe(f"progress.{contender}", cb=hear)
    await control.flush()

    async def until(least: int) -> None:
        while handled < least:
            moved.clear()
            await asyncio.wait_for(moved.wait(), PATIENCE)

    make = {"bare": publish_bare, "meshkit": publish_meshkit}[contender]
    async with make(url) as (publish, flush):

        async def steady(count: int) -> float:
            """Events per second until all have handled all of them."""
            nonlocal published
            started = time.perf_counter()
            for _ in range(count):
                if published - handled >= WINDOW:
                    await until(published - WINDOW + STEP)
                await publish(Ask("world", published))
                published += 1
            await until(published)
            return count / (time.perf_counter() - started)

        async def burst(count: int) -> float:
            """Events per second until the server has them."""
            started = time.perf_counter()
            for n in range(count):
                await publish(Ask("world", n))
            await flush()
            return count / (time.perf_counter() - started)

        yield {"steady": steady, "burst": burst}
    await control.close()


# The measurement


def measure(settings: Settings) -> dict[str, Any]:
    """All of it, on every loop."""
    publishing: list[list[Any]] = []
    fan_out: list[list[Any]] = []
    bursts: list[list[Any]] = []
    with nats_server() as server:
        for loop in settings.loops:
            publishing += published(settings, server, loop)
            for count in FAN_OUT[::2] if settings.quick else FAN_OUT:
                fan_out += received(settings, server, loop, count)
            bursts += [[loop, title, *lost(server, loop, name)] for title, name in CONTENDERS.items()]
    return {
        "tables": [
            {
                "title": "Events published, nobody listening",
                "columns": ["loop", "contender", "events/s", "ratio", "publisher µs", "nats-server µs"],
                "rows": publishing,
                "notes": [
                    "Typed, without headers, until the server has confirmed the last.",
                    "Processor time is for each event; ratios are to bare nats-py in the same round.",
                ],
            },
            {
                "title": "Events received",
                "columns": [
                    *("loop", "subscribers", "contender", "received/s", "ratio"),
                    *("publisher µs", "subscribers µs", "nats-server µs"),
                ],
                "rows": fan_out,
                "notes": [
                    "The sum over all subscribers, which share one process and so one core.",
                    f"At most {WINDOW:,} events are on their way; every one arrived, in order.",
                    "Processor time is for each event that a subscriber received.",
                ],
            },
            {
                "title": f"{BURST:,} events without a pause, one subscriber",
                "columns": ["loop", "contender", "published/s", "received", "lost"],
                "rows": bursts,
                "notes": [
                    "A subscription keeps 10,000 events that wait for its handler, in nats-py 524,288.",
                    "What is more is dropped, and logged.",
                ],
            },
        ],
        "plots": [plot(fan_out, loop) for loop in settings.loops],
    }


def plot(rows: list[list[Any]], loop: str) -> dict[str, Any]:
    """What each received, by the number of subscribers."""
    series = {
        title: [[row[1], row[3]["median"]] for row in rows if row[0] == loop and row[2] == title]
        for title in CONTENDERS
    }
    return {"title": f"Events received, {loop}", "x": "subscribers", "y": "received/s", "series": series}


def published(settings: Settings, server: Nats, loop: str) -> list[list[Any]]:
    """What publishing costs when nobody listens."""
    count = 10_000 if settings.quick else 100_000
    with ExitStack() as stack:
        publishers = start(stack, "publisher", server, loop)
        runs = {
            title: partial(run, one, "burst", count, [one.pid, server.pid])
            for title, one in publishers.items()
        }
        return [[loop, *row] for row in compared(settings.rounds, runs)]


def received(settings: Settings, server: Nats, loop: str, subscribers: int) -> list[list[Any]]:
    """What it costs to publish to so many."""
    events = (20_000 if settings.quick else 200_000) // (subscribers + 3) // STEP * STEP
    with ExitStack() as stack:
        listeners = start(stack, "subscribers", server, loop, count=subscribers)
        publishers = start(stack, "publisher", server, loop)
        runs = {
            title: partial(
                run, one, "steady", events, [one.pid, listeners[title].pid, server.pid], subscribers
            )
            for title, one in publishers.items()
        }
        return [[loop, subscribers, *row] for row in compared(settings.rounds, runs)]


def lost(server: Nats, loop: str, contender: str) -> list[float]:
    """How fast events without a pause were published, how many arrived, and how many did not."""
    with (
        Process(
            "benchmarks.events", "subscribers", loop=loop, contender=contender, url=server.url, count=1
        ) as listener,
        Process("benchmarks.events", "publisher", loop=loop, contender=contender, url=server.url) as one,
    ):
        rate = one.ask("burst", count=BURST)
        arrived = listener.ask("received")
    return [rate, arrived, BURST - arrived]


def start(stack: ExitStack, role: str, server: Nats, loop: str, **settings: int) -> dict[str, Process]:
    """A process for each contender, by its title."""
    return {
        title: stack.enter_context(
            Process("benchmarks.events", role, loop=loop, contender=name, url=server.url, **settings)
        )
        for title, name in CONTENDERS.items()
    }


def run(publisher: Process, command: str, count: int, pids: list[int], subscribers: int = 1) -> list[float]:
    """Events a second that were received (or published), and the microseconds of each process for one."""
    with spending({str(pid): [pid] for pid in pids}) as spent:
        rate = publisher.ask(command, count=count) * subscribers
    return [rate, *(seconds / (count * subscribers) * 1e6 for seconds in spent.values())]


def compared(rounds: int, runs: dict[str, Callable[[], list[float]]]) -> list[list[Any]]:
    """A row for each contender: rates, rates beside the base of the same round, processor times."""
    for one in runs.values():  # to warm up
        one()
    measured = [{title: one() for title, one in runs.items()} for _ in range(rounds)]
    rows: list[list[Any]] = []
    for title in runs:
        rates, *costs = zip(*(each[title] for each in measured), strict=True)
        ratios = [each[title][0] / each[BASE][0] for each in measured]
        rows.append([title, figure(rates), figure(ratios), *map(figure, costs)])
    return rows
