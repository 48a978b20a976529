import abc
import asyncio
import gc
import logging
import random
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit import (
    BadReply,
    BadRequest,
    Cancelled,
    CircuitOpen,
    ConnectionLost,
    DeadlineExceeded,
    Disconnected,
    Draining,
    Forbidden,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    RateLimited,
    ServiceError,
    Unauthorized,
    Unavailable,
)
from meshkit.layers.breaker import Breaker
from meshkit.layers.statistics import CallStatistics
from meshkit.message import Request, Response

REQUEST = Request("a.b", b"", b"", 0.0, 1e9)


class Target:
    """What is called; `pending` has a future for each call on its way, which the test resolves."""

    def __init__(self, **options):
        usual = {
            "failures": 3,
            "success": 0.5,
            "calls": 10,
            "window": 10.0,
            "open_first": 1.0,
            "open_most": 60.0,
        }
        self.statistics = CallStatistics()
        self.breaker = Breaker("a.b", **usual | options, statistics=self.statistics)
        self.handler = self.breaker.layer(self.handle)
        self.pending = []
        self.calls = 0

    async def handle(self, request):
        answer = asyncio.get_running_loop().create_future()
        self.pending.append(answer)
        self.calls += 1
        return await answer

    async def begin(self):
        """Begin a call."""
        task = asyncio.create_task(self.handler(REQUEST))
        await settle()
        return task

    async def call(self, outcome=None):
        """A call that ends at once; gives its error."""
        task = await self.begin()
        if not task.done():
            await end(self.pending.pop(), outcome)
        return task.exception()

    async def open(self):
        while self.breaker.state == "closed":
            await self.call(InternalError())


async def end(answer, outcome=None):
    if outcome is None:
        answer.set_result(Response(b""))
    else:
        answer.set_exception(outcome)
    await settle()


async def settle():
    for _ in range(4):
        await asyncio.sleep(0)


@pytest.fixture
def longest(monkeypatch):
    """It stays open as long as it may."""
    monkeypatch.setattr(random, "uniform", lambda least, most: most)


async def test_it_opens_after_so_many_failures_in_a_row(clock):
    """Failures of the awaited call: of a coroutine that is merely made, nothing is known."""
    target = Target(failures=5)
    for _ in range(4):
        assert isinstance(await target.call(InternalError()), InternalError)
    assert target.breaker.state == "closed"
    assert isinstance(await target.call(InternalError()), InternalError)
    assert target.breaker.state == "open"
    assert isinstance(await target.call(), CircuitOpen)
    assert target.calls == 5


async def test_a_success_ends_the_row():
    target = Target()
    for outcome in (InternalError(), InternalError(), None) * 3:
        await target.call(outcome)
    assert target.breaker.state == "closed"


async def test_a_cancelled_call_is_cancelled_and_says_nothing():
    target = Target(failures=1)
    for _ in range(20):
        task = await target.begin()
        task.cancel()
        await settle()
        assert task.cancelled()
    assert target.breaker.state == "closed"


class _Meta(abc.ABCMeta):
    pass


class Odd(ServiceError, metaclass=_Meta):
    def __init__(self):
        super().__init__(599)


class OddRequest(BadRequest, metaclass=_Meta):
    pass


def said(error, executed):
    error.executed = executed
    return error


UNHEALTHY = [InternalError, lambda: ServiceError(503), lambda: ServiceError(9999), Unavailable, Odd]
NEUTRAL = [
    BadRequest,
    Unauthorized,
    Forbidden,
    RateLimited,
    lambda: said(NotFound(), None),
    lambda: said(ServiceError(409), False),
    Cancelled,
    NoResponders,
    Overloaded,
    Draining,
    Disconnected,
    ConnectionLost,
    BadReply,
    CircuitOpen,
    MeshError,
    ValueError,
    OddRequest,
]
# What the handler itself answers.
ANSWERED = [NotFound, lambda: ServiceError(409), lambda: ServiceError(499)]


@pytest.mark.parametrize("make", [*UNHEALTHY, DeadlineExceeded])
async def test_what_counts_as_a_failure(make):
    target = Target()
    for _ in range(3):
        assert target.breaker.state == "closed"
        await target.call(make())
    assert target.breaker.state == "open"


def unsent():
    error = DeadlineExceeded()
    error.executed = False
    return error


@pytest.mark.parametrize("make", [*NEUTRAL, unsent])
async def test_what_says_nothing_of_the_callee_counts_for_nothing(clock, make):
    target = Target()
    for _ in range(2):
        await target.call(InternalError())
    for _ in range(30):
        error = make()
        assert await target.call(error) is error
    assert target.breaker.state == "closed"
    # Nor is it a success that would end the row.
    await target.call(InternalError())
    assert target.breaker.state == "open"
    # Nor one that closes; the next call may try.
    await clock.advance(1)
    await target.call(make())
    assert target.breaker.state == "half-open"
    await target.call()
    assert target.breaker.state == "closed"


@pytest.mark.parametrize("make", ANSWERED)
async def test_an_answer_of_the_handler_closes_it_and_is_nothing_to_a_closed_one(clock, make):
    target = Target()
    for outcome in (InternalError, InternalError, make, InternalError):
        assert target.breaker.state == "closed"
        await target.call(outcome())
    assert target.breaker.state == "open"
    await clock.advance(1)
    await target.call(make())
    assert target.breaker.state == "closed"
    assert await target.call() is None


async def test_a_probe_that_is_cancelled_lets_the_next_try(clock):
    target = Target()
    await target.open()
    await clock.advance(1)
    task = await target.begin()
    task.cancel()
    await settle()
    assert (task.cancelled(), target.breaker.state) == (True, "half-open")
    assert await target.call() is None
    assert target.breaker.state == "closed"


async def test_half_open_lets_one_through(clock):
    target = Target()
    await target.open()
    await clock.advance(1)
    before = target.calls
    tasks = [await target.begin() for _ in range(100)]
    assert target.calls == before + 1
    assert sum(task.done() and isinstance(task.exception(), CircuitOpen) for task in tasks) == 99
    assert target.breaker.state == "half-open"
    await end(target.pending.pop())
    assert target.breaker.state == "closed"
    assert await target.call() is None


async def test_a_late_failure_does_not_keep_it_open_for_longer(clock, longest):
    target = Target()
    task = await target.begin()
    late = target.pending.pop()
    await target.open()
    await clock.advance(0.9)
    await end(late, InternalError())
    assert isinstance(task.exception(), InternalError)
    await clock.advance(0.1)
    assert await target.call() is None
    assert target.breaker.state == "closed"
    assert target.statistics.circuit_opened == 1


async def test_a_late_success_does_not_close_it(clock, longest):
    target = Target()
    await target.begin()
    late = target.pending.pop()
    await target.open()
    await end(late)
    assert target.breaker.state == "open"
    await clock.advance(1)
    probe = await target.begin()
    assert not probe.done()
    assert isinstance(await target.call(), CircuitOpen)


async def test_what_began_before_it_opened_is_nothing_to_it_once_it_has_closed(clock):
    target = Target(failures=3)
    tasks = [await target.begin() for _ in range(5)]
    late, target.pending = target.pending, []
    await target.open()
    await clock.advance(1)
    await target.call()
    assert target.breaker.state == "closed"
    for answer in late:
        await end(answer, InternalError())
    assert target.breaker.state == "closed"
    assert all(isinstance(task.exception(), InternalError) for task in tasks)


async def test_a_late_neutral_call_does_not_give_the_probe_s_place_away(clock):
    target = Target()
    task = await target.begin()
    late = target.pending.pop()
    await target.open()
    await clock.advance(1)
    await target.begin()
    await end(late, NotFound())
    assert isinstance(task.exception(), NotFound)
    assert isinstance(await target.call(), CircuitOpen)


async def test_it_opens_when_too_small_a_share_succeeds(clock):
    target = Target(failures=100, success=0.8, calls=5)
    for outcome in (None, None, None, None, InternalError()):
        await target.call(outcome)
    assert target.breaker.state == "closed"  # 4 of 5
    await target.call(InternalError())
    assert target.breaker.state == "open"
    assert "2 of 6 calls failed" in str(await target.call())


async def test_half_of_a_thousand_calls_failing_is_too_much(clock):
    target = Target(failures=5, success=0.8, calls=100)
    passed = 0
    while target.breaker.state == "closed":
        await target.call(InternalError() if passed % 2 else None)
        passed += 1
    assert passed == 100


async def test_the_share_is_of_the_window_and_of_enough_calls(clock):
    target = Target(failures=100, success=0.8, calls=5, window=10.0)
    for _ in range(4):
        await target.call(InternalError())
    assert target.breaker.state == "closed"
    await clock.advance(10)
    for _ in range(4):
        await target.call(InternalError())
    assert target.breaker.state == "closed"
    for _ in range(100):
        await target.call()
    await clock.advance(10)
    for _ in range(4):
        await target.call(InternalError())
    assert target.breaker.state == "closed"
    await target.call(InternalError())
    assert target.breaker.state == "open"


async def test_closed_again_it_begins_anew(clock):
    target = Target(failures=3, success=0.8, calls=4)
    await target.open()
    await clock.advance(1)
    await target.call()
    for _ in range(2):
        await target.call(InternalError())
    assert target.breaker.state == "closed"


async def open_for(target, clock):
    """How long it stays open."""
    assert target.breaker.state == "open"
    error = await target.call()
    begin = clock.now()
    while isinstance(error, CircuitOpen):
        assert error.retry_after > 0
        await clock.advance(error.retry_after)
        error = await target.call(InternalError())
    return clock.now() - begin


async def test_the_time_that_it_is_open_doubles_up_to_a_bound_until_it_has_closed(clock, longest):
    target = Target(open_first=1.0, open_most=10.0)
    await target.open()
    times = [await open_for(target, clock) for _ in range(6)]
    assert times == pytest.approx([1, 2, 4, 8, 10, 10], abs=1e-4)
    await clock.advance(10)
    await target.call()
    await target.open()
    assert await open_for(target, clock) == pytest.approx(1, abs=1e-4)


async def test_the_time_that_it_is_open_is_never_shorter_than_the_first(clock, longest):
    target = Target(open_first=3.0, open_most=1.0)
    await target.open()
    assert [await open_for(target, clock) for _ in range(3)] == pytest.approx([3, 3, 3], abs=1e-4)


async def test_the_time_that_it_is_open_is_random_from_half_of_it(clock):
    times = []
    for _ in range(50):
        target = Target(open_first=1.0)
        await target.open()
        times.append(await open_for(target, clock))
    assert min(times) >= 0.5
    assert max(times) <= 1.0001
    assert max(times) - min(times) > 0.2


async def test_who_is_refused_is_told_why_and_until_when(clock, longest):
    target = Target(failures=3)
    await target.open()
    await clock.advance(0.25)
    error = await target.call()
    assert isinstance(error, CircuitOpen)
    assert (error.executed, error.own) == (False, True)
    assert error.retry_after == pytest.approx(0.75)
    assert "3 calls in a row failed (last 500 InternalError: " in error.message
    assert "tried again in 0.750 s" in error.message
    await clock.advance(0.75)
    probe = await target.begin()
    error = await target.call()
    assert (error.retry_after, "one call tries it" in error.message) == (None, True)
    probe.cancel()


async def test_openings_are_counted(clock):
    target = Target()
    await target.open()
    for _ in range(4):
        await target.call()
    await clock.advance(1)
    await target.call(InternalError())
    assert target.statistics == CallStatistics(circuit_opened=2)


async def test_changes_are_logged(clock, caplog):
    caplog.set_level(logging.INFO, "meshkit.breaker")
    target = Target()
    await target.open()
    await target.call()
    await clock.advance(1)
    await target.call()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            "circuit to a.b opened: 3 calls in a row failed (last 500 InternalError: The handler failed)",
        ),
        ("INFO", "circuit to a.b half-open: one call tries it"),
        ("INFO", "circuit to a.b closed"),
    ]


async def test_an_open_breaker_refuses_in_no_time():
    target = Target(open_first=60)
    await target.open()
    taken = []
    for _ in range(200):
        started = time.perf_counter()
        with pytest.raises(CircuitOpen):
            await target.handler(REQUEST)
        taken.append(time.perf_counter() - started)
    assert min(taken) < 0.0005


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("begin", "begin", "succeed", "answer", "fail", "fail", "neutral", "cancel"),
                "a second passes",
            ]
        ),
        st.integers(0, 9),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(STEPS, st.integers(1, 3))
def test_open_it_lets_nothing_through_and_half_open_one(steps, failures):
    asyncio.run(run(steps, failures))


async def run(steps, failures):
    loop, now = asyncio.get_running_loop(), 1000.0
    loop.time = lambda: now
    target = Target(failures=failures, success=0.5, calls=4, open_first=1.0, open_most=1.0)
    tasks, opened_at, probe = {}, now, None
    for what, choice in steps:
        before, running = target.breaker.state, [task for task in tasks if not task.done()]
        if what == "begin":
            calls, task = target.calls, await target.begin()
            is_through = target.calls > calls
            is_probed = probe is not None and not probe.done()
            assert is_through == {"closed": True, "open": now > opened_at, "half-open": not is_probed}[before]
            if is_through:
                tasks[task] = target.pending.pop()
                probe = None if before == "closed" else task
            else:
                assert isinstance(task.exception(), CircuitOpen)
        elif what == "a second passes":
            now += 1
        elif running:
            task = running[choice % len(running)]
            if what == "cancel":
                task.cancel()
                await settle()
            else:
                outcomes = {"fail": InternalError, "answer": NotFound, "neutral": Overloaded}
                await end(tasks[task], outcomes[what]() if what in outcomes else None)
            after = target.breaker.state
            if task is probe:
                assert after == {"succeed": "closed", "answer": "closed", "fail": "open"}.get(
                    what, "half-open"
                )
            elif before != "closed":
                assert after == before
            if after == "open" != before:
                opened_at = now
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_refusal_is_let_go_without_the_garbage_collector(clock):
    target = Target()
    await target.open()

    async def refused():
        try:
            await target.handler(REQUEST)
        except CircuitOpen as error:
            return weakref.ref(error)

    gc.disable()
    try:
        assert (await refused())() is None
    finally:
        gc.enable()
