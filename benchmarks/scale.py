"""The part scale: how cost grows with instances, endpoints, subscriptions, connections and discovery.

meshkit alone, with everything on. Rounds go through all sizes, with new processes and a new nats-server each.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.report import Settings, Table, figure
from benchmarks.scale_roles import AT_A_TIME, IN_FLIGHT, NAP
from benchmarks.stage import Nats, Process, memory, nats_server, spending

INSTANCES = (1, 2, 4, 8)
ENDPOINTS = (1, 10, 100, 1_000)
SUBSCRIPTIONS = (1, 10, 100, 1_000)
CONNECTIONS = (1, 10, 100, 500)
DISCOVERED = (1, 10, 50, 200)
# Instances in one process where there are many, each with a connection of its own.
TOGETHER = 50


class Growth(NamedTuple):
    """What grows, and what is measured at each size.

    Attributes:
        title: Of the table.
        what: What grows.
        sizes: How far.
        one: Measures one size: figures by the names of their columns.
        plotted: The columns of the plot.
        notes: How to read it.
    """

    title: str
    what: str
    sizes: tuple[int, ...]
    one: Callable[[str, bool, int], dict[str, float]]
    plotted: tuple[str, ...]
    notes: list[str]

    def measure(self, settings: Settings) -> Table:
        """A row for each size; each round goes through all of them."""
        quick, loop = settings.quick, settings.loops[-1]
        sizes = self.sizes[::2] if quick else self.sizes
        rounds = [
            {size: self.one(loop, quick, size) for size in sizes}
            for _ in range(1 if quick else settings.rounds)
        ]
        columns = list(rounds[0][sizes[0]])
        rows = [
            [size, *(figure(each[size][column] for each in rounds) for column in columns)] for size in sizes
        ]
        title = f"{self.title}, {loop}"
        return {"title": title, "columns": [self.what, *columns], "rows": rows, "notes": self.notes}

    def plot(self, table: Table) -> dict[str, Any]:
        """Of the same."""
        series = {
            name: [[row[0], row[table["columns"].index(name)]["median"]] for row in table["rows"]]
            for name in self.plotted
        }
        return {"title": table["title"], "x": self.what, "y": self.plotted[-1], "series": series}


def measure(settings: Settings) -> dict[str, Any]:
    """All of it, on one loop: the last of those asked for."""
    tables = [growth.measure(settings) for growth in GROWTHS]
    plots = [growth.plot(table) for growth, table in zip(GROWTHS, tables, strict=True)]
    return {"tables": tables, "plots": plots}


def start(stack: ExitStack, role: str, loop: str, server: Nats, **settings: int) -> Process:
    """A process of ours."""
    return stack.enter_context(Process("benchmarks.scale_roles", role, loop=loop, url=server.url, **settings))


def load(caller: Process, quick: bool, endpoints: int, watched: dict[str, list[int]]) -> dict[str, float]:
    """Calls per second, and the microseconds of processor time that each takes where."""
    count = 2_000 if quick else 20_000
    caller.ask("calls", count=count // 4, endpoints=endpoints)  # to warm up
    with spending(watched) as spent:
        rate = caller.ask("calls", count=count, endpoints=endpoints)
    return {"calls/s": rate, **{f"{who} µs": seconds / count * 1e6 for who, seconds in spent.items()}}


def instances(loop: str, quick: bool, size: int) -> dict[str, float]:
    """Instances, a process each, that share the calls."""
    naps = size * (200 if quick else 1_600)  # a quarter of a second, or two
    with nats_server() as server, ExitStack() as stack:
        started = [start(stack, "serve", loop, server) for _ in range(size)]
        caller = start(stack, "client", loop, server)
        waiting = caller.ask("naps", count=naps)
        shares = [one.ask("napped") for one in started]
        pids = [one.pid for one in started]
        watched = {"client": [caller.pid], "instances": pids, "nats-server": [server.pid]}
        calls = load(caller, quick, 1, watched)
    return {
        "waiting calls/s": waiting,
        "least share": min(shares) * size / naps,
        "largest share": max(shares) * size / naps,
        **calls,
    }


def endpoints(loop: str, quick: bool, size: int) -> dict[str, float]:
    """Endpoints of one instance, called in turn."""
    with nats_server() as server, ExitStack() as stack:
        one = start(stack, "serve", loop, server, endpoints=size)
        caller = start(stack, "client", loop, server)
        served = {"serve ms": one.ask("served"), "instance MiB": memory(one.pid).rss}
        watched = {"client": [caller.pid], "instance": [one.pid], "nats-server": [server.pid]}
        return served | load(caller, quick, size, watched)


def subscriptions(loop: str, quick: bool, size: int) -> dict[str, float]:
    """Subscriptions of one instance, published to in turn."""
    count = 2_000 if quick else 20_000
    with nats_server() as server, ExitStack() as stack:
        one = start(stack, "serve", loop, server, subscriptions=size)
        publisher = start(stack, "client", loop, server)
        served = {"serve ms": one.ask("served"), "instance MiB": memory(one.pid).rss}
        publisher.ask("publish", count=count // 4, subscriptions=size)
        one.ask("received", count=count // 4)
        with spending({"instance": [one.pid]}) as spent:
            began = publisher.ask("publish", count=count, subscriptions=size)
            # All processes of a machine have the same clock.
            seconds = one.ask("received", count=count // 4 + count) - began
    return served | {"events/s": count / seconds, "instance µs": spent["instance"] / count * 1e6}


def connections(loop: str, quick: bool, size: int) -> dict[str, float]:
    """Connections of one client, used in turn."""
    with nats_server() as server, ExitStack() as stack:
        one = start(stack, "serve", loop, server)
        caller = start(stack, "client", loop, server, connections=size)
        connected = {
            "connect ms": caller.ask("connected"),
            "client MiB": memory(caller.pid).rss,
            "nats-server MiB": memory(server.pid).rss,
        }
        watched = {"client": [caller.pid], "instance": [one.pid], "nats-server": [server.pid]}
        return connected | load(caller, quick, 1, watched)


def discovery(loop: str, _quick: bool, size: int) -> dict[str, float]:
    """Instances that `mesh.services()` finds."""
    with nats_server() as server, ExitStack() as stack:
        shares = [min(TOGETHER, size - begun) for begun in range(0, size, TOGETHER)]
        pids = [start(stack, "crowd", loop, server, count=count).pid for count in shares]
        asker = start(stack, "client", loop, server)
        asker.ask("discover")  # to warm up
        watched = {"asker": [asker.pid], "all instances": pids, "nats-server": [server.pid]}
        with spending(watched) as spent:
            found, seconds = asker.ask("discover")
    return {
        "answered": found,
        "services() ms": seconds * 1000,
        **{f"{who}, processor ms": each * 1000 for who, each in spent.items()},
    }


GROWTHS = [
    Growth(
        "Instances of a service",
        "instances",
        INSTANCES,
        instances,
        ("waiting calls/s", "calls/s"),
        [
            f"Waiting calls take {NAP * 1000:.0f} ms, {AT_A_TIME} at a time in an instance.",
            "Shares are of those, 1.00 being an even one; NATS picks an instance at random.",
            f"The other calls have nothing to wait for, {IN_FLIGHT} in flight from one client.",
            "With more processes than cores those show what one more costs, not what it adds.",
        ],
    ),
    Growth(
        "Endpoints of an instance",
        "endpoints",
        ENDPOINTS,
        endpoints,
        ("calls/s",),
        [f"Called in turn, {IN_FLIGHT} in flight.", "Memory is the whole process's, before the first call."],
    ),
    Growth(
        "Subscriptions of an instance",
        "subscriptions",
        SUBSCRIPTIONS,
        subscriptions,
        ("events/s",),
        ["Published to in turn, without a pause, until all are handled; none is lost."],
    ),
    Growth(
        "Connections of clients",
        "connections",
        CONNECTIONS,
        connections,
        ("calls/s",),
        [
            f"All in one process, used in turn, {IN_FLIGHT} calls in flight over all of them.",
            "The more connections, the fewer calls share a read and a write.",
        ],
    ),
    Growth(
        "Discovery",
        "instances",
        DISCOVERED,
        discovery,
        ("services() ms",),
        [
            f"Instances of ten endpoints on connections of their own, up to {TOGETHER} in a process.",
            "services() waits 300 ms for more answers after the last.",
        ],
    ),
]
