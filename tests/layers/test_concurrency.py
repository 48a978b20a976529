import asyncio
import gc
import math
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit import DeadlineExceeded, Overloaded
from meshkit.headers import line
from meshkit.layers.concurrency import Concurrency
from meshkit.message import PRIORITIES, PRIORITY, Request, Response
from meshkit.testing import Clock

STEPS = st.lists(
    st.tuples(st.sampled_from(["sheddable", "default", "critical"]), st.integers(1, 9))
    | st.tuples(st.sampled_from(["event", "finish", "cancel", "wait"]), st.integers(0, 9)),
    max_size=60,
)


class Call(NamedTuple):
    number: int
    rank: int
    deadline: float
    task: asyncio.Task
    gate: asyncio.Event


class Model:
    """What should happen, said another way: one list of what runs and one of what waits."""

    def __init__(self, limit, backlog):
        self.limit, self.backlog = limit, backlog
        self.running, self.waiting, self.shed, self.expired, self.begun = [], [], [], [], []

    def arrive(self, call):
        if len(self.running) < self.limit:
            self.begin(call)
            return
        self.waiting.append(call)
        if len(self.waiting) > self.backlog:
            # The newest of the least important, which may be the newcomer.
            least = min(self.waiting, key=lambda one: (one.rank, -one.number))
            self.waiting.remove(least)
            self.shed.append(least)

    def begin(self, call):
        self.running.append(call)
        self.begun.append(call.number)

    def end(self, call):
        if call in self.waiting:
            self.waiting.remove(call)
            return
        self.running.remove(call)
        if self.waiting:
            first = min(self.waiting, key=lambda one: (-one.rank, one.number))
            self.waiting.remove(first)
            self.begin(first)

    def pass_time(self, now):
        late = [call for call in self.waiting if call.deadline <= now]
        self.waiting = [call for call in self.waiting if call.deadline > now]
        self.expired += late


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), STEPS)
def test_whatever_comes_goes_expires_and_is_cancelled(limit, backlog, steps):
    asyncio.run(run(limit, backlog, steps))


async def run(limit, backlog, steps):
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    loop.time = clock.now
    bound, model = Concurrency(limit, backlog, "test"), Model(limit, backlog)
    begun, calls = [], []

    async def handle(request):
        begun.append(int(request.subject))
        await calls[int(request.subject)].gate.wait()
        return Response(b"")

    layer = bound.layer(handle)
    for what, choice in steps:
        if what == "finish" and model.running:
            call = model.running[choice % len(model.running)]
            model.end(call)
            call.gate.set()
        elif what == "cancel" and model.running + model.waiting:
            call = (model.running + model.waiting)[choice % len(model.running + model.waiting)]
            model.end(call)
            call.task.cancel()
        elif what == "wait":
            await clock.advance(choice / 2)
            model.pass_time(clock.now())
        elif what in (*PRIORITIES, "event"):
            deadline = math.inf if what == "event" else clock.now() + choice
            # Of an event it is passed over: events keep their order.
            named = PRIORITIES[choice % 3] if what == "event" else what
            head = b"" if named == "default" else line(PRIORITY, named)
            request = Request(str(len(calls)), b"", head, clock.now(), deadline)
            rank = 1 if what == "event" else PRIORITIES.index(what)
            task = asyncio.create_task(layer(request))
            calls.append(Call(len(calls), rank, deadline, task, asyncio.Event()))
            model.arrive(calls[-1])
        for _ in range(5):
            await asyncio.sleep(0)
        assert begun == model.begun
        assert (bound.running, bound.waiting) == (len(model.running), len(model.waiting))
        assert bound.refused == len(model.shed)
        assert bound.running == limit or bound.waiting == 0  # nobody waits while a slot is free
    for call in calls:
        call.gate.set()
    await asyncio.gather(*(call.task for call in calls), return_exceptions=True)
    for calls_, error in ((model.shed, Overloaded), (model.expired, DeadlineExceeded)):
        for call in calls_:
            assert isinstance(call.task.exception(), error)
            assert call.task.exception().executed is False
            assert call.number not in begun
    assert (bound.running, bound.waiting) == (0, 0)
    assert not any(bound._deadlines._slots.values())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


class Gated:
    """A bound with one slot, which is taken; `ask` puts another request in, `free` frees the slot."""

    def __init__(self, backlog):
        self.bound = Concurrency(1, backlog, "calls to hotel.book")
        self.begun = []
        self.gate = asyncio.Event()
        self._layer = self.bound.layer(self._handle)
        self._loop = asyncio.get_running_loop()
        self.tasks = [self.ask("first", 1000)]

    async def _handle(self, request):
        self.begun.append(request.subject)
        if request.subject == "first":
            await self.gate.wait()
        return Response(b"")

    def ask(self, name, seconds, priority="default"):
        now = self._loop.time()
        request = Request(name, b"", line(PRIORITY, priority), now, now + seconds)
        return self._loop.create_task(self._layer(request))


async def test_a_refusal_says_whose_bound_it_is():
    """On the caller's side it is the caller's own."""
    gated = Gated(backlog=0)
    with pytest.raises(Overloaded, match=r"calls to hotel.book runs 1 requests and 0 wait; try again") as e:
        await gated.ask("second", 5)
    assert e.value.executed is False
    gated.gate.set()
    await settle()


async def test_after_its_deadline_nothing_is_run_though_it_has_not_been_told_yet(clock):
    """Something has kept the event loop meanwhile."""
    gated = Gated(backlog=5)
    late, timely = gated.ask("late", 1), gated.ask("timely", 60)
    await settle()
    clock._set(clock.now() + 2)
    gated.gate.set()
    await settle()
    assert gated.begun == ["first", "timely"]
    await timely
    with pytest.raises(DeadlineExceeded, match="before the call's turn came") as e:
        await late
    assert e.value.executed is False


async def test_what_has_expired_gives_way_before_what_is_less_important(clock):
    gated = Gated(backlog=3)
    waiting = [
        gated.ask("sheddable", 60, "sheddable"),
        gated.ask("late", 1, "critical"),
        gated.ask("later", 60, "critical"),
    ]
    await settle()
    clock._set(clock.now() + 2)
    # In one turn of the event loop, before any timer.
    waiting += [gated.ask("newcomer", 60, "critical"), gated.ask("another", 60, "sheddable")]
    await settle()
    gated.gate.set()
    await settle()
    assert gated.begun == ["first", "later", "newcomer", "sheddable"]
    outcomes = [type(task.exception()) for task in waiting]
    assert outcomes == [type(None), DeadlineExceeded, type(None), type(None), Overloaded]
    assert gated.bound._earliest > clock.now()  # nobody looks for more in vain


async def test_events_keep_their_order():
    gated = Gated(backlog=3)
    for priority in ("sheddable", "critical", "default"):
        gated.ask(priority, math.inf, priority)
    await settle()
    with pytest.raises(Overloaded):
        await gated.ask("newest", math.inf, "critical")
    gated.gate.set()
    await settle()
    assert gated.begun == ["first", "sheddable", "critical", "default"]


async def test_a_limit_that_has_become_lower_is_kept_to():
    """As an adaptive one does."""
    gates = [asyncio.Event() for _ in range(6)]
    bound = Concurrency(4, 10, "test")

    async def handle(request):
        await gates[int(request.subject)].wait()
        return Response(b"")

    layer = bound.layer(handle)
    tasks = [asyncio.create_task(layer(Request(str(number), b"", b"", 0.0, 1e9))) for number in range(6)]
    await settle()
    bound.limit = 2
    seen = []
    for gate in gates:
        seen.append((bound.running, bound.waiting))
        gate.set()
        await settle()
    assert seen == [(4, 2), (3, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    await asyncio.gather(*tasks)


async def test_who_gets_its_turn_as_it_is_cancelled_passes_it_on():
    gated = Gated(backlog=5)
    second, third = gated.ask("second", 60), gated.ask("third", 60)
    await settle()
    gated.gate.set()
    while gated.bound.waiting == 2:
        await asyncio.sleep(0)
    second.cancel()  # its turn has come, and it has not begun
    await settle()
    assert gated.begun == ["first", "third"]
    assert gated.bound.running == 0
    assert second.cancelled()
    await third


async def test_who_is_cancelled_as_it_is_told_that_it_is_late(clock):
    gated = Gated(backlog=5)
    second = gated.ask("second", 1)
    await settle()
    clock._set(clock.now() + 2)
    gated.gate.set()
    while gated.bound.waiting:
        await asyncio.sleep(0)
    second.cancel()
    await settle()
    assert second.cancelled()
    assert gated.bound.running == 0


async def test_refusals_leave_nothing_to_the_garbage_collector():
    gated = Gated(backlog=1)
    shed = gated.ask("shed", 60, "sheddable")
    await settle()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        critical = gated.ask("critical", 60, "critical")
        for call in (shed, gated.ask("refused", 60), gated.ask("refused", 60)):
            try:
                await call
            except Overloaded:
                continue
            raise AssertionError
        del shed, call
        await settle()
        gc.collect()
        # Only what is meant here: the test runner leaves some, too.
        assert not any(isinstance(left, Overloaded) for left in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    gated.gate.set()
    await critical
