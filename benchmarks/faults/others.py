"""Drills in which neither processes nor the network are at fault: hostile input, and wrong clocks."""

import sys
import time

from benchmarks.faults.bounds import at_least, at_most, none
from benchmarks.faults.callees import tell
from benchmarks.faults.course import failed
from benchmarks.faults.players import Outcome, Pace, outcome, player, players, server, under_load
from benchmarks.faults.service import LIMIT
from benchmarks.stage import Process, memory

_FEW = 4
_SKEW = 300  # seconds
# MiB that an instance may grow by; the corpus has messages of one.
_MOST_GROWTH = 24


def hostile(pace: Pace) -> Outcome:
    """Somebody who publishes what nobody should."""
    with (
        server() as nats,
        players(nats.url, _FEW) as all_,
        Process("benchmarks.faults.hostile", "hostile", url=nats.url, seed=pace.seed) as evil,
    ):
        everybody = all_.instances + all_.callers
        with under_load(all_, pace, kinds=("read", "write", "forged")) as course:
            before = {one.pid: memory(one.pid).rss for one in everybody}
            course.begins()
            came = evil.ask("attack", seconds=pace.during)
            course.ends()
        alarms = [said for one in everybody for said in one.ask("alarms")]
        growth = max(memory(one.pid).rss - before[one.pid] for one in everybody)
    for said in sorted(set(alarms)):
        print(said, file=sys.stderr)
    late = {one.pid for one in course.executed("read", "write") if one.began > course.over}
    calls = course.of("read", "write")
    bounds = [
        at_least("messages that nobody should send", came["sent"], 1000),
        at_least("calls that were answered with such", came.get("calls answered with it", 0), 1),
        none("other calls without answer", failed(calls)),
        none(
            "errors that are none of meshkit's",
            sum(call.code == 0 for call in course.calls if not call.is_answered),
        ),
        none("errors logged", len(alarms)),
        at_least("instances that go on", len(late), _FEW),
        at_most("MiB that a process has grown by", growth, _MOST_GROWTH),
        at_most("seconds to recover", course.recovered("write"), 1.0),
    ]
    return outcome(course, bounds)


def skew(pace: Pace) -> Outcome:
    """Instances whose clocks are five minutes ahead and behind, beside others."""
    with server() as nats, players(nats.url, 2, limited=True) as all_:
        for seconds in (_SKEW, -_SKEW):
            where = {"url": nats.url, "directory": str(all_.notes), "limited": True}
            # asyncio's own loop asks Python for the time.
            wrong = player("serve", module="skewed", loop="asyncio", skew=seconds, **where)
            all_.instances.append(wrong)
        with under_load(all_, pace, kinds=("read", "write", "limited")) as course:
            course.begins()
            time.sleep(pace.during)
            course.ends()
        tell(all_.instances, work=5)
        quick = pace._replace(before=0.5, after=0.5)
        with under_load(all_, quick, kinds=("write",), timeout=0.3) as late:
            late.begins()
    stopped = [one for one in late.executed("write") if one.how == "stop"]
    took = sorted((one.ended or 0) - one.began for one in stopped) or [0.0]
    limited = course.of("limited")
    admitted = sum(call.is_answered for call in limited)
    refused = sum(call.came == "RateLimited" for call in limited)
    bounds = [
        none("calls without answer", failed(course.of("read", "write"))),
        at_most("calls admitted, of those limited in the whole mesh", admitted, LIMIT),
        # What one instance has taken for itself and not used, another cannot give away.
        at_least("calls admitted, of those", admitted, 0.8 * LIMIT),
        none("others of those that were not refused for the limit", len(limited) - admitted - refused),
        at_least("processes that executed calls", len({one.pid for one in course.executed("read")}), 4),
        at_least(
            "share of too slow handlers that were stopped",
            len(stopped) / max(1, len(late.executed("write"))),
            0.99,
        ),
        at_least("seconds until they were, the first", took[0], 0.25),
        at_most("seconds until they were, the last", took[-1], 0.5),
    ]
    return outcome(course, bounds)
