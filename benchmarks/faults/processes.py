"""Drills in which an instance's process is at fault."""

import random
import signal
import time

from benchmarks.faults.bounds import at_least, at_most, none
from benchmarks.faults.course import failed, percentile, share, unheard
from benchmarks.faults.players import Outcome, Pace, end, outcome, player, players, send, server, under_load
from benchmarks.faults.service import ATTEMPT_TIMEOUT

# Seconds that a call takes where it matters how many an instance has in hand.
_WORK = 0.02
# Calls that the server sends to an instance before it knows that it is dead.
_ON_THEIR_WAY = 3
# Calls that an instance begins before it reads that they are cancelled.
_STILL_UNREAD = 3


def kill(pace: Pace) -> Outcome:
    """SIGKILL."""
    with server() as nats, players(nats.url, pace.instances, work=_WORK) as all_:
        victim = random.Random(pace.seed).choice(all_.instances)  # noqa: S311 # to be the same again
        with under_load(all_, pace) as course:
            course.begins()
            send(victim, signal.SIGKILL)
            killed = time.perf_counter()
    bounds = [
        none("idempotent calls without answer", failed(course.of("read"))),
        at_most(
            "other calls without answer, beyond those in flight", course.stray("write", killed), _ON_THEIR_WAY
        ),
        at_most("seconds to recover", course.recovered("write"), 1.0),
    ]
    return outcome(course, bounds, moment=1.0)


def rolling(pace: Pace) -> Outcome:
    """SIGTERM to every instance, one after the other, each after its replacement has come."""
    count = pace.instances // 2
    with server() as nats, players(nats.url, count, work=_WORK) as all_, under_load(all_, pace) as course:
        course.begins()
        for old in all_.instances[:count]:
            all_.instances.append(player("serve", url=nats.url, directory=str(all_.notes), work=_WORK))
            all_.instances.remove(old)
            end(old)
        course.ends()
    bounds = [
        none("calls without answer", failed(course.calls)),
        at_least("processes that executed calls", len({one.pid for one in course.executions}), count * 2),
    ]
    return outcome(course, bounds)


def pause(pace: Pace) -> Outcome:
    """SIGSTOP, and SIGCONT."""
    with server() as nats, players(nats.url, pace.instances) as all_:
        victim = random.Random(pace.seed).choice(all_.instances)  # noqa: S311 # to be the same again
        with under_load(all_, pace) as course:
            course.begins()
            send(victim, signal.SIGSTOP)
            time.sleep(pace.during)
            send(victim, signal.SIGCONT)
            course.ends()
    reads, writes = course.during("read"), course.during("write")
    bounds = [
        # Each attempt meets it with a chance of one in so many, and there are three.
        at_most("share of idempotent calls without answer", share(reads), max(0.01, 3 / pace.instances**3)),
        at_most("share of other calls without answer", share(writes), 1.5 / pace.instances),
        at_most("p99 of idempotent calls, s", (percentile(reads, 0.99) or 0) / 1e3, ATTEMPT_TIMEOUT * 2.5),
        none("refused by an open breaker", sum(call.came == "CircuitOpen" for call in course.calls)),
        at_most(
            "executed though their caller had given up",
            len(unheard(course.calls, course.executions)),
            _STILL_UNREAD,
        ),
        at_most("seconds to recover", course.recovered("write"), 1.0),
    ]
    return outcome(course, bounds)
