"""The drills, by name, in the order in which they are held."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.faults import callees, network, others, processes
from benchmarks.faults.players import Outcome, Pace


class Row(NamedTuple):
    """One of them.

    Attributes:
        title: The fault.
        drill: Holds it.
        is_quick: Whether it is in the short form too.
    """

    title: str
    drill: Callable[[Pace], Outcome]
    is_quick: bool = False


ROWS = {
    "kill": Row("instance SIGKILL", processes.kill, is_quick=True),
    "rolling": Row("SIGTERM rolling restart", processes.rolling, is_quick=True),
    "pause": Row("instance SIGSTOP", processes.pause),
    "slow": Row("one instance 10 times slower", callees.slow),
    "failing": Row("one instance fails all", callees.failing),
    "all-failing": Row("all fail all", callees.all_failing, is_quick=True),
    "brown-out": Row("brown-out", callees.brown_out),
    "server": Row("nats-server killed, restarted", network.server_kill, is_quick=True),
    "cluster": Row("one server of three killed", network.cluster_kill),
    "lame-duck": Row("lame duck", network.lame_duck),
    "cut-off": Row("caller cut off the network", network.cut_off),
    "crowd": Row("500 connections lost at once", network.crowd),
    "slow-consumer": Row("slow consumer", network.slow_consumer),
    "hostile": Row("hostile input", others.hostile),
    "overload": Row("3 times the capacity", callees.overload),
    "cancelled": Row("cancelled callers", callees.cancelled, is_quick=True),
    "skew": Row("clocks off by 5 minutes", others.skew),
}
