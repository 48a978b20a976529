import asyncio
import gc
import logging
import weakref

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit import (
    BadRequest,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    NotFound,
    Overloaded,
    ServiceError,
)
from meshkit.budget import RetryBudget
from meshkit.headers import line
from meshkit.layers.hedge import Latency, hedge
from meshkit.layers.statistics import CallStatistics
from meshkit.message import CURRENT, Request, Response

TRACE = line("traceparent", "00-1-2-01")
FIRST, SECOND = Response(b"1"), Response(b"2")


class Callee:
    """Takes the copies of each call; `answers` has a future for each copy, which the test resolves.

    It takes a second copy `to_end` turns of the event loop to end with that, and any `to_stop` to be
    cancelled. `running` counts those that are at it, `stopped` those that were cancelled, `stopped_in_peace`
    those that were cancelled once. On the caller's own side they wait for `gate`.
    """

    def __init__(self, after=0.1, budget=None, *, to_end=0, to_stop=0):
        self.to_end, self.to_stop = to_end, to_stop
        self.statistics = CallStatistics()
        self.budget = budget or RetryBudget(0, 10)
        self.loop = asyncio.get_running_loop()
        self.sent, self.answers, self.contexts, self.deadlines = [], [], [], []
        self.running = self.stopped = self.stopped_in_peace = 0
        self.gate = asyncio.Event()
        self.gate.set()
        after = Latency() if after is None else after
        self.handler = hedge(after, budget=self.budget, statistics=self.statistics)(self.handle)

    async def handle(self, request):
        await self.gate.wait()
        answer = self.loop.create_future()
        to_end = self.to_end if self.answers else 0
        self.answers.append(answer)
        self.sent.append((request.head, self.loop.time()))
        self.deadlines.append(request.deadline)
        self.contexts.append(CURRENT.get())
        # As the layers below do.
        request.head += line("Mesh-Timeout", "1000")
        request.deadline -= 1
        request.sent_at = self.loop.time()
        self.running += 1
        try:
            try:
                return await answer
            finally:
                for _ in range(0 if answer.cancelled() else to_end):
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.stopped += 1
            for _ in range(self.to_stop):
                await asyncio.sleep(0)
            self.stopped_in_peace += 1
            raise
        finally:
            self.running -= 1

    def call(self, head=TRACE):
        return asyncio.create_task(self.handler(request(self.loop.time(), head)))


def request(now, head=TRACE):
    return Request("a.b", b"", head, now, now + 600)


async def settle():
    for _ in range(6):
        await asyncio.sleep(0)


@pytest.fixture
def silent(caplog):
    """Nothing is left over for asyncio to complain of."""
    yield
    assert [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


async def test_what_is_answered_soon_is_sent_once(clock):
    callee = Callee(after=0.1)
    task = callee.call()
    await clock.advance(0.09)
    callee.answers[0].set_result(FIRST)
    await clock.advance(1)
    assert task.result() is FIRST
    assert [head for head, _ in callee.sent] == [TRACE]
    assert callee.statistics == CallStatistics()
    assert asyncio.get_running_loop()._scheduled == []


async def test_a_second_copy_that_is_answered_first_wins(clock, silent):
    callee = Callee(after=0.1)
    begin = clock.now()
    task = callee.call()
    await clock.advance(0.2)
    # What the layers below do to one copy is not done to the other.
    assert [head for head, _ in callee.sent] == [TRACE, TRACE + line("Mesh-Attempt", "2")]
    assert callee.deadlines == [begin + 600] * 2
    assert callee.sent[1][1] - begin == pytest.approx(0.1, abs=1e-5)
    callee.answers[1].set_result(SECOND)
    await settle()
    assert task.result() is SECOND
    assert task.cancelling() == 0
    assert (callee.running, callee.stopped) == (0, 1)
    assert callee.statistics == CallStatistics(hedges=1, hedges_won=1)


async def test_a_first_copy_that_is_answered_first_wins(clock, silent):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    callee.answers[0].set_result(FIRST)
    await settle()
    assert task.result() is FIRST
    assert (callee.running, callee.stopped) == (0, 1)
    assert callee.statistics == CallStatistics(hedges=1)


async def test_there_are_never_more_than_two(clock):
    callee = Callee(after=0.1)
    task = callee.call()
    await clock.advance(500)
    assert len(callee.sent) == 2
    task.cancel()


async def test_a_call_that_fails_soon_has_no_second_copy(clock):
    callee = Callee(after=0.1)
    task = callee.call()
    await clock.advance(0.05)
    callee.answers[0].set_exception(error := Overloaded())
    await clock.advance(1)
    assert task.exception() is error
    assert len(callee.sent) == 1


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("make", [NotFound, lambda: ServiceError(409)])
async def test_an_error_that_the_handler_answered_with_is_an_answer(clock, silent, copy, make):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    callee.answers[copy].set_exception(error := make())
    await settle()
    assert task.exception() is error
    assert error.__context__ is None
    assert task.cancelling() == 0
    assert (callee.running, callee.stopped) == (0, 1)
    assert callee.statistics == CallStatistics(hedges=1, hedges_won=copy)


def said(error, executed):
    error.executed = executed
    return error


# What is no answer, or none that another instance would give too.
FAILURES = [
    Overloaded,
    InternalError,
    lambda: ServiceError(503),
    lambda: said(NotFound(), None),
    lambda: said(NotFound(), False),
    DeadlineExceeded,
    ConnectionLost,
    Cancelled,
    ZeroDivisionError,
]


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("make", FAILURES)
async def test_if_one_fails_the_other_is_waited_for(clock, silent, fails, make):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    callee.answers[fails].set_exception(make())
    await clock.advance(10)
    assert not task.done()
    callee.answers[1 - fails].set_result(FIRST)
    await settle()
    assert task.result() is FIRST
    assert callee.stopped == 0
    assert callee.statistics.hedges_won == (1 if fails == 0 else 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_if_both_fail_the_error_is_that_of_the_first_copy(clock, silent, order):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    errors = [Overloaded(), BadRequest()]
    for copy in order:
        assert not task.done()
        callee.answers[copy].set_exception(errors[copy])
        await settle()
    assert task.exception() is errors[0]
    assert callee.statistics == CallStatistics(hedges=1)


@pytest.mark.parametrize(
    ("first", "second", "executed"),
    [
        (Overloaded, Overloaded, False),
        (Overloaded, DeadlineExceeded, None),
        (Overloaded, InternalError, None),
        (Overloaded, ZeroDivisionError, None),
        (InternalError, Overloaded, True),
    ],
)
async def test_if_either_may_have_been_executed_the_call_may_have_been(
    clock, silent, first, second, executed
):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    callee.answers[1].set_exception(second())
    callee.answers[0].set_exception(first())
    await settle()
    assert isinstance(task.exception(), first)
    assert task.exception().executed is executed


async def test_there_is_no_second_copy_of_what_waits_on_the_callers_own_side(clock):
    callee = Callee(after=0.1)
    callee.gate.clear()
    task = callee.call()
    await clock.advance(10.05)
    callee.gate.set()
    await settle()
    assert len(callee.sent) == 1
    await clock.advance(0.09)
    assert len(callee.sent) == 1
    await clock.advance(0.02)
    assert callee.sent[1][1] - callee.sent[0][1] == pytest.approx(0.1, abs=1e-5)
    assert callee.statistics == CallStatistics(hedges=1)
    task.cancel()


async def test_nor_of_a_second_attempt_that_waits_there(clock):
    callee = Callee(after=0.1)
    tried = request(clock.now())
    first = asyncio.create_task(callee.handler(tried))
    await settle()
    callee.answers[0].set_exception(Overloaded())
    await settle()
    assert isinstance(first.exception(), Overloaded)
    callee.gate.clear()
    second = asyncio.create_task(callee.handler(tried))
    await clock.advance(10)
    assert callee.statistics.hedges == 0
    second.cancel()


async def test_who_is_cancelled_while_it_waits_there_sends_nothing(clock):
    callee = Callee(after=0.1)
    callee.gate.clear()
    task = callee.call()
    await clock.advance(1)
    task.cancel()
    await settle()
    callee.gate.set()
    await clock.advance(1)
    assert task.cancelled()
    assert (callee.sent, asyncio.get_running_loop()._scheduled) == ([], [])


@pytest.mark.parametrize("failed", [None, 0, 1])
async def test_who_is_cancelled_stops_both(clock, silent, failed):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    if failed is not None:
        callee.answers[failed].set_exception(Overloaded())
        await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    assert callee.running == 0
    assert callee.stopped == (2 if failed is None else 1)


async def test_who_is_cancelled_before_there_is_a_second_copy_sends_none(clock, silent):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.05)
    task.cancel()
    await clock.advance(1)
    assert task.cancelled()
    assert len(callee.sent) == 1


async def test_an_answer_does_not_undo_a_cancellation_from_elsewhere(clock, silent):
    callee = Callee()
    task = callee.call()
    await clock.advance(0.2)
    task.cancel()
    callee.answers[1].set_result(SECOND)
    await settle()
    assert task.cancelled()
    assert callee.running == 0


async def test_an_answer_does_not_disturb_who_is_being_stopped(clock, silent):
    """Each copy is cancelled once, and may take its time over it."""
    callee = Callee(to_stop=3)
    task = callee.call()
    await clock.advance(0.2)
    task.cancel()
    await asyncio.sleep(0)
    callee.answers[1].set_result(SECOND)
    await settle()
    assert task.cancelled()
    assert callee.stopped_in_peace == 1


async def test_who_calls_while_it_is_being_stopped_gets_the_second_answer_and_stops(clock, silent):
    callee, found = Callee(), []

    async def caller():
        try:
            await asyncio.sleep(600)
        finally:
            found.append(await callee.handler(request(clock.now())))

    task = asyncio.create_task(caller())
    await clock.advance(1)
    task.cancel()
    await clock.advance(1)
    callee.answers[1].set_result(SECOND)
    await settle()
    assert found == [SECOND]
    assert task.cancelled()


@pytest.mark.parametrize("answered", [False, True])
async def test_a_timeout_around_the_call_stays_one(clock, silent, answered):
    callee = Callee()

    async def caller():
        try:
            async with asyncio.timeout(1):
                return await callee.handler(request(clock.now()))
        except TimeoutError:
            await asyncio.sleep(5)
            return "went on"

    task = asyncio.create_task(caller())
    await clock.advance(0.5)
    if answered:  # in the turn in which the timeout comes
        asyncio.get_running_loop().call_at(clock.now() + 0.5, callee.answers[1].set_result, SECOND)
    await clock.advance(10)
    assert task.result() == "went on"
    assert callee.running == 0


@pytest.mark.parametrize("answered", [False, True])
async def test_a_cancel_scope_around_the_call_ends_where_it_should(clock, silent, answered):
    callee = Callee()

    async def caller():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await callee.handler(request(clock.now()))
        await asyncio.sleep(5)
        return "went on"

    scopes = []
    task = asyncio.create_task(caller())
    await clock.advance(0.5)
    if answered:
        callee.answers[1].set_result(SECOND)
        await asyncio.sleep(0)
    scopes[0].cancel()
    await clock.advance(10)
    assert task.result() == "went on"
    assert callee.running == 0


STEPS = st.lists(
    st.sampled_from(["turn", "cancel"])
    | st.tuples(st.sampled_from(["answer", "refuse", "fail"]), st.integers(0, 1)),
    max_size=8,
)


@settings(deadline=None)
@given(STEPS, st.integers(0, 2), st.integers(0, 2))
def test_whatever_happens_in_one_turn_nobody_is_left_running_or_cancelled(steps, to_end, to_stop):
    asyncio.run(race(steps, to_end, to_stop))


async def race(steps, to_end, to_stop):
    async def caller():
        try:
            return await callee.handler(request(loop.time()))
        finally:
            for _ in range(8):  # what would cancel it now has no business to
                await asyncio.sleep(0)

    loop, complaints = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    callee = Callee(after=0, to_end=to_end, to_stop=to_stop)
    errors, answers, refusals = [Overloaded(), BadRequest()], [FIRST, SECOND], [NotFound(), NotFound()]
    task = asyncio.create_task(caller())
    await settle()
    assert len(callee.answers) == 2
    is_cancelled, answered = False, []
    for step in [*steps, ("fail", 0), "turn", "turn", ("fail", 1)]:
        if step == "turn":
            await asyncio.sleep(0)
        elif step == "cancel":
            is_cancelled |= task.cancel()
        elif not callee.answers[step[1]].done():
            what, copy = step
            if what == "answer":
                callee.answers[copy].set_result(answers[copy])
                answered.append(answers[copy])
            elif what == "refuse":
                callee.answers[copy].set_exception(refusals[copy])
                answered.append(refusals[copy])
            else:
                callee.answers[copy].set_exception(errors[copy])
    for _ in range(20):
        await asyncio.sleep(0)
    if is_cancelled:
        assert task.cancelled()
    else:
        assert task.cancelling() == 0
        outcome = task.exception() or task.result()
        assert (outcome in answered) if answered else (outcome is errors[0])
    assert callee.running == 0
    assert complaints == []


async def test_the_budget_decides(clock):
    callee = Callee(budget=RetryBudget(0, 0.1))
    tasks = [callee.call() for _ in range(3)]
    await clock.advance(1)
    assert len(callee.sent) == 4
    assert callee.statistics == CallStatistics(hedges=1, budget_spent=2)
    for answer in callee.answers:
        answer.set_result(FIRST)
    assert await asyncio.gather(*tasks) == [FIRST] * 3


async def test_who_must_not_try_again_sends_no_second_copy(clock):
    callee = Callee(budget=RetryBudget(0, 0.1))
    task = callee.call(TRACE + line("Mesh-Retry", "off"))
    await clock.advance(1)
    assert len(callee.sent) == 1
    assert callee.statistics == CallStatistics()
    assert callee.budget.withdraw(clock.now())
    task.cancel()


async def test_a_second_copy_of_a_second_attempt_says_once_which_attempt_it_is(clock):
    callee = Callee()
    task = callee.call(TRACE + line("Mesh-Attempt", "3"))
    await clock.advance(1)
    assert [head for head, _ in callee.sent] == [TRACE + line("Mesh-Attempt", "3")] * 2
    task.cancel()


async def test_both_copies_belong_to_the_call_that_is_being_handled(clock):
    callee, handled = Callee(), request(clock.now())
    CURRENT.set(handled)
    task = callee.call()
    CURRENT.set(None)
    await clock.advance(1)
    assert callee.contexts == [handled, handled]
    task.cancel()


async def test_what_is_refused_at_once_below_is_a_failed_second_copy(clock, silent):
    """A layer need not be a coroutine: this one raises when it is called."""
    sent = []

    def following(request):
        sent.append(request)
        request.sent_at = clock.now()
        if len(sent) == 2:
            raise Overloaded
        return asyncio.sleep(1, FIRST)

    handler = hedge(0.1, budget=RetryBudget(0, 10), statistics=CallStatistics())(following)
    task = asyncio.create_task(handler(request(clock.now())))
    await clock.advance(2)
    assert task.result() is FIRST
    assert len(sent) == 2


async def answer_after(callee, clock, *seconds):
    """Calls, one after another, that take so many seconds."""
    for each in seconds:
        task = callee.call()
        await clock.advance(each)
        callee.answers[-1].set_result(FIRST)
        await settle()
        assert task.done()


async def test_live_p95(clock):
    callee = Callee(after=None)
    # No second copies as long as little is known.
    await answer_after(callee, clock, *range(1, 20))
    task = callee.call()
    await clock.advance(500)
    assert len(callee.sent) == 20
    callee.answers[-1].set_result(FIRST)
    await settle()
    # Of 1 to 19 and 500 seconds.
    assert task.done()
    assert await hedged_after(callee, clock) == pytest.approx(19)
    # Once it is faster, what was slow is forgotten: the latest 200 count.
    await answer_after(callee, clock, *[0.1] * 200)
    assert await hedged_after(callee, clock) == pytest.approx(0.1)


async def test_what_a_call_waits_on_the_callers_own_side_does_not_count_for_the_p95(clock):
    callee = Callee(after=None)
    for _ in range(20):
        callee.gate.clear()
        task = callee.call()
        await clock.advance(50)
        callee.gate.set()
        await clock.advance(1)
        callee.answers[-1].set_result(FIRST)
        await settle()
        assert task.done()
    assert await hedged_after(callee, clock) == pytest.approx(1)


async def test_failures_do_not_count_for_the_p95(clock):
    callee = Callee(after=None)
    for _ in range(100):
        task = callee.call()
        await clock.advance(0.01)
        callee.answers[-1].set_exception(Overloaded())
        await settle()
        assert task.exception() is not None
    await answer_after(callee, clock, *[1] * 20)
    assert await hedged_after(callee, clock) == pytest.approx(1)


async def test_there_is_a_shortest_p95(clock):
    """Or where the clock has milliseconds, each call to a fast service would have a second copy."""
    callee = Callee(after=None)
    await answer_after(callee, clock, *[0] * 20)
    assert await hedged_after(callee, clock) == pytest.approx(0.002)


async def hedged_after(callee, clock):
    """After how many seconds a call has a second copy."""
    begin, before = clock.now(), len(callee.sent)
    task = callee.call()
    await clock.advance(30)
    task.cancel()
    await settle()
    assert len(callee.sent) == before + 2
    return callee.sent[-1][1] - begin


class Thing:
    """What a frame holds as long as something holds the frame."""


@pytest.mark.parametrize("how", ["cancel", "fail", "answer", "first fails", "both fail"])
async def test_nothing_is_left_to_the_garbage_collector(clock, how):
    gone = []

    async def following(request):
        thing = Thing()
        gone.append(weakref.ref(thing))
        request.sent_at = clock.now()
        is_first = len(gone) == 2
        await asyncio.sleep(10 if is_first else 1 if how != "first fails" else 20)
        if how == "fail" or (is_first and how == "first fails") or how == "both fail":
            raise NotFound if how == "fail" else Overloaded
        return FIRST

    handler = hedge(0.1, budget=RetryBudget(0, 10), statistics=CallStatistics())(following)

    async def call():
        thing = Thing()
        gone.append(weakref.ref(thing))
        await handler(request(clock.now()))

    gc.disable()
    try:
        task = asyncio.create_task(call())
        await clock.advance(0.5)
        assert len(gone) == 3
        if how == "cancel":
            task.cancel()
        await clock.advance(60)
        assert task.done()
        assert task.cancelled() or task.exception() or how in ("answer", "first fails")
        gone.append(weakref.ref(task))
        del task
        await settle()
        assert [reference() for reference in gone] == [None] * 4
    finally:
        gc.enable()
