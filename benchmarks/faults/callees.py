"""Drills in which what is called is slow, fails, has too much to do, or is not waited for."""

import time
from collections.abc import Iterable
from typing import Any

from benchmarks.faults.bounds import Bound, at_least, at_most, none
from benchmarks.faults.course import (
    Call,
    Course,
    failed,
    percentile,
    share,
    waited,
)
from benchmarks.faults.players import (
    Outcome,
    Pace,
    Players,
    outcome,
    player,
    players,
    server,
    start,
    under_load,
)
from benchmarks.stage import Child

# Of the drills in which all instances are at fault, and of those in which they have too much to do.
_FEW = 4
_SLOTS, _BACKLOG = 4, 16
# Times the calls: what the budget of retries and hedges allows. A first attempt is a call.
_MOST_LOAD = 1.2


def tell(instances: Iterable[Child], **how: Any) -> None:
    """Have instances behave in some way."""
    for one in instances:
        one.ask("behave", **how)


def slow(pace: Pace) -> Outcome:
    """One instance, ten times slower."""
    work = 0.005
    with server() as nats, players(nats.url, pace.instances, work=work) as all_:
        kinds = ("read", "hedged", "write")
        with under_load(all_, pace, kinds=kinds) as course:
            course.begins()
            tell(all_.instances[:1], work=work * 10)
            time.sleep(pace.during)
            tell(all_.instances[:1], work=work)
            course.ends()
    before = [call for call in course.of("write") if call.due < course.fault]
    bounds = [none("calls without answer", failed(course.calls))]
    if not pace.is_quick:
        usual = percentile(before, 0.5) or 0
        during = course.during
        bounds += [
            at_most("p50 ms of idempotent calls, during", percentile(during("read"), 0.5), usual * 2 + 5),
            at_most("p99 ms of idempotent calls, during", percentile(during("read"), 0.99), work * 20e3),
            at_most("p95 ms of hedged calls, during", percentile(during("hedged"), 0.95), work * 7e3),
        ]
    return outcome(course, bounds)


def failing(pace: Pace) -> Outcome:
    """One instance, which fails every call."""
    # Of less than five, one that fails is more than the breaker bears.
    pace = pace._replace(instances=max(8, pace.instances))
    with server() as nats, players(nats.url, pace.instances) as all_, under_load(all_, pace) as course:
        course.begins()
        tell(all_.instances[:1], fails=True)
        time.sleep(pace.during)
        tell(all_.instances[:1], fails=False)
        course.ends()
    bounds = [
        at_most("share of idempotent calls without answer", share(course.during("read")), 0.01),
        at_most("share of other calls without answer", share(course.during("write")), 1.5 / pace.instances),
        none("refused by an open breaker", _refused(course)),
        at_most("seconds to recover", course.recovered("write"), 1.0),
    ]
    return outcome(course, bounds)


def all_failing(pace: Pace) -> Outcome:
    """All instances, which fail every call."""
    pace = pace._replace(after=2 * pace.after)  # a breaker may stay open for so long
    with server() as nats, players(nats.url, _FEW) as all_, under_load(all_, pace) as course:
        course.begins()
        tell(all_.instances, fails=True)
        time.sleep(pace.during)
        tell(all_.instances, fails=False)
        course.ends()
    refused = [call for call in course.during() if call.came == "CircuitOpen"]
    bounds = [
        at_most("executions a call", _load(course), _MOST_LOAD),
        at_most("p50 ms of calls refused by the open breaker", waited(refused), 1.0),
        *(at_most(f"seconds to recover, {kind}", course.recovered(kind), 5.0) for kind in ("read", "write")),
    ]
    return outcome(course, bounds)


def brown_out(pace: Pace) -> Outcome:
    """All instances, so slow that they cannot do all that is asked of them; then as before."""
    pace = pace._replace(after=2 * pace.after)  # a breaker may stay open for so long
    work = 0.01
    slow = 2 * _FEW * _SLOTS / (pace.rate / 2)  # of both kinds of calls, half can be done
    room = {"concurrency": _SLOTS, "backlog": _BACKLOG}
    with (
        server() as nats,
        players(nats.url, _FEW, work=work, room=room) as all_,
        under_load(all_, pace) as course,
    ):
        course.begins()
        tell(all_.instances, work=slow)
        time.sleep(pace.during)
        tell(all_.instances, work=work)
        course.ends()
    bounds = [
        at_most("executions a call", _load(course), _MOST_LOAD),
        *(at_most(f"seconds to recover, {kind}", course.recovered(kind), 5.0) for kind in ("read", "write")),
    ]
    return outcome(course, bounds)


def overload(pace: Pace) -> Outcome:
    """Three times as many calls as there is capacity for."""
    work, count, slots = 0.02, 2, 4
    room = {"concurrency": slots, "backlog": 4 * slots}
    kinds = ("critical", *("write",) * 6, *("sheddable",) * 3)
    with (
        server() as nats,
        players(nats.url, count, work=work, room=room) as all_,
        player("caller", url=nats.url) as crowd,
    ):
        capacity = _capacity(all_, count * slots)
        with under_load(all_, pace, kinds=kinds, rate=capacity / 2) as course:
            course.begins()
            start(crowd, kinds, 2.5 * capacity)
            time.sleep(pace.during)
            course.ends()
            came = crowd.ask("finish")
    course.join(Call(*call) for call in came)
    back = [call for call in course.calls if call.is_answered and course.fault <= call.back < course.over]
    goodput = len(back) / (course.over - course.fault)
    bounds = [
        at_least("answers, times the capacity", goodput / capacity, 0.9),
        at_least(
            "calls, times the capacity", len(course.during()) / (course.over - course.fault) / capacity, 2.7
        ),
        at_most("share of critical calls without answer", share(course.during("critical")), 0.01),
        at_most("seconds to recover", course.recovered("write"), 1.0),
    ]
    return outcome(course, bounds)


def _capacity(all_: Players, slots: int) -> float:
    """Answers a second when every slot is taken and one more call waits for each."""
    in_flight = 2 * slots
    rates = [all_.callers[0].ask("saturate", count=in_flight * 15, in_flight=in_flight) for _ in range(3)]
    return max(rates)  # other work on the machine can only slow it


def cancelled(pace: Pace) -> Outcome:
    """Callers that wait for a twentieth of the time, and are cancelled."""
    work, patience = 1.0, 0.05
    pace = pace._replace(after=0.5)
    with server() as nats, players(nats.url, _FEW, work=work) as all_:
        kinds, rate = ("write", "chain"), pace.rate / 3
        with under_load(all_, pace, kinds=kinds, rate=rate, cancel_after=patience) as course:
            course.begins()
            time.sleep(pace.during)
            course.ends()
    back = {call.n: call.back for call in course.calls}
    ran = [one for one in course.executions if one.n in back]
    stopped = [one for one in ran if one.how == "stop"]
    took = sorted((one.ended or 0.0) - back[one.n] for one in stopped) or [0.0]
    spent = sum((one.ended or one.began + work) - one.began for one in ran)
    bounds: list[Bound] = [
        at_least("share of executions that were stopped", len(stopped) / max(1, len(ran)), 0.99),
        at_most(
            "p99 ms until an execution was stopped",
            took[int(len(took) * 0.99)] * 1e3,
            500 if pace.is_quick else 100,
        ),
        at_most("share of the work that was done all the same", spent / max(1, len(ran)) / work, 0.15),
        at_least("executions, of calls through another instance too", len(ran), 0.9 * len(course.calls)),
    ]
    return outcome(course, bounds)


def _load(course: Course) -> float:
    """Executions for each call that was made during the fault."""
    calls: list[Call] = course.during()
    numbers = {call.n for call in calls}
    return sum(one.n in numbers for one in course.executions) / len(calls)


def _refused(course: Course) -> int:
    return sum(call.came == "CircuitOpen" for call in course.calls)
