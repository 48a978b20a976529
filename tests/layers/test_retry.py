import asyncio
import gc
import random
import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit import (
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
from meshkit.budget import RetryBudget
from meshkit.headers import line, parse
from meshkit.layers.retry import retry
from meshkit.layers.statistics import CallStatistics
from meshkit.message import Request, Response
from meshkit.testing import Clock

TRACE = line("traceparent", "00-1-2-01")


class Callee:
    """Answers each attempt with the next of `script`, the last of it for ever: an error, or what to do.

    `sent` has the head, the deadline and the time of each attempt.
    """

    def __init__(self, *script, **options):
        self.script = script
        self.sent = []
        self.statistics = CallStatistics()
        self.budget = options.pop("budget", None) or RetryBudget(0.2, 10)
        self.loop = asyncio.get_running_loop()
        usual = {
            "retries": 2,
            "idempotent": False,
            "codes": (500,),
            "delay": 0.025,
            "delay_most": 0.25,
        }
        layer = retry(**usual | options, budget=self.budget, statistics=self.statistics)
        self.handler = layer(self.handle)

    async def handle(self, request):
        self.sent.append((request.head, request.deadline, self.loop.time()))
        request.head += line("Mesh-Timeout", "1000")
        step = self.script[min(len(self.sent), len(self.script)) - 1]
        if isinstance(step, BaseException):
            raise step
        return (await step(request) if callable(step) else step) or Response(b"")

    async def call(self, head=TRACE, timeout=5.0):
        now = self.loop.time()
        return await self.handler(Request("a.b", b"", head, now, now + timeout))


@pytest.fixture
def no_wait(monkeypatch):
    """The shortest of all random waits, so that nobody has to move the clock."""
    monkeypatch.setattr(random, "uniform", lambda least, most: least)


def unknown(error):
    error.executed = None
    return error


def refused(error):
    error.executed = False
    return error


def own(error):
    error.own = True
    return error


async def test_what_succeeds_is_sent_once_as_it_is():
    callee = Callee(Response(b"42"))
    assert (await callee.call()).payload == b"42"
    assert [head for head, _, _ in callee.sent] == [TRACE]
    assert callee.statistics == CallStatistics()


async def test_what_was_refused_is_tried_again_and_says_which_attempt_it_is(no_wait):
    callee = Callee(Overloaded(), Draining(), Response(b"42"))
    assert (await callee.call()).payload == b"42"
    # What the layers below add is not sent twice.
    assert [head for head, _, _ in callee.sent] == [
        TRACE,
        TRACE + line("Mesh-Attempt", "2"),
        TRACE + line("Mesh-Attempt", "3"),
    ]
    assert callee.statistics == CallStatistics(retries=2)


async def test_the_first_attempt_is_not_made_twice_and_the_last_error_is_raised_itself(no_wait):
    errors = [Overloaded("1"), Draining("2"), Overloaded("3"), Draining("4")]
    callee = Callee(*errors)
    with pytest.raises(Overloaded) as raised:
        await callee.call()
    assert raised.value is errors[2]
    assert raised.value.attempt == 3
    assert len(callee.sent) == 3


# Error, and how many attempts out of two: of any call, and of an idempotent one.
KINDS = [
    (lambda: refused(Unavailable()), 2, 2),
    (NoResponders, 2, 2),
    (Overloaded, 2, 2),
    (Draining, 2, 2),
    (Disconnected, 2, 2),
    (RateLimited, 2, 2),
    (lambda: unknown(RateLimited()), 1, 1),
    (Unavailable, 1, 2),
    (ConnectionLost, 1, 2),
    (DeadlineExceeded, 1, 2),
    (InternalError, 1, 2),
    (lambda: ServiceError(500), 1, 2),
    (lambda: ServiceError(507), 1, 1),
    (CircuitOpen, 1, 1),
    (lambda: own(RateLimited()), 1, 1),
    (lambda: own(Overloaded()), 1, 1),
    (Cancelled, 1, 1),
    (lambda: refused(Cancelled()), 1, 1),
    (BadRequest, 1, 1),
    (Forbidden, 1, 1),
    (Unauthorized, 1, 1),
    (NotFound, 1, 1),
    (lambda: refused(InternalError()), 2, 2),
    (lambda: refused(DeadlineExceeded()), 2, 2),
    (lambda: refused(ServiceError(409)), 2, 2),
    (ValueError, 1, 1),
    (TimeoutError, 1, 1),
    (SystemExit, 1, 1),
]


@pytest.mark.parametrize(("make", "attempts", "attempts_if_idempotent"), KINDS)
async def test_what_is_tried_again(no_wait, make, attempts, attempts_if_idempotent):
    for idempotent, expected in ((False, attempts), (True, attempts_if_idempotent)):
        error = make()
        callee = Callee(error, retries=1, idempotent=idempotent)
        with pytest.raises(type(error)):
            await callee.call()
        assert len(callee.sent) == expected
        assert callee.statistics.retries == expected - 1


async def test_chosen_codes_are_tried_again(no_wait):
    callee = Callee(ServiceError(409), InternalError(), idempotent=True, codes=(409,))
    with pytest.raises(InternalError) as raised:
        await callee.call()
    assert len(callee.sent) == raised.value.attempt == 2


async def test_what_was_cancelled_is_not_tried_again_whatever_is_chosen(no_wait):
    callee = Callee(Cancelled(), idempotent=True, codes=(499,))
    with pytest.raises(Cancelled):
        await callee.call()
    assert len(callee.sent) == 1


async def test_the_wait_is_random_up_to_a_bound_that_doubles(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    callee = Callee(Overloaded(), retries=6)
    begin = clock.now()
    task = asyncio.create_task(callee.call())
    await clock.advance(2)
    assert isinstance(task.exception(), Overloaded)
    waits = [0, 0.025, 0.05, 0.1, 0.2, 0.25, 0.25]
    expected = [sum(waits[: n + 1]) for n in range(7)]
    assert [at - begin for _, _, at in callee.sent] == pytest.approx(expected, abs=1e-5)
    monkeypatch.undo()
    drawn = set()
    for _ in range(20):
        callee, begin = Callee(Overloaded(), retries=1), clock.now()
        task = asyncio.create_task(callee.call())
        await clock.advance(0.025)
        assert task.exception() is not None
        drawn.add(round(callee.sent[1][2] - begin, 6))
    assert len(drawn) > 10


async def test_the_wait_is_never_bounded_by_less_than_the_first(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    callee = Callee(Overloaded(), delay=1.0, delay_most=0.25)
    begin = clock.now()
    task = asyncio.create_task(callee.call())
    await clock.advance(3)
    assert task.exception() is not None
    assert [at - begin for _, _, at in callee.sent] == pytest.approx([0, 1, 2], abs=1e-5)


@pytest.mark.parametrize("before", [[], [NoResponders()], [NoResponders(), NoResponders()]])
async def test_a_call_that_the_callers_own_side_refuses_is_not_tried_again_and_takes_nothing(no_wait, before):
    callee = Callee(*before, own(Overloaded()))
    error = await failure(callee)
    assert (error.own, error.budget_spent) == (True, False)
    assert callee.statistics == CallStatistics(retries=len(before))
    assert callee.budget._window.totals(callee.loop.time()) == (1, len(before))  # calls and retries


@pytest.mark.parametrize(
    ("script", "executed"),
    [
        ([Overloaded, CircuitOpen], False),
        ([Overloaded, Overloaded, Overloaded], False),
        ([InternalError, CircuitOpen], None),
        ([DeadlineExceeded, Overloaded, Overloaded], None),
        ([Overloaded, ConnectionLost, Overloaded], None),
        ([Overloaded, InternalError, NotFound], True),
    ],
)
async def test_what_may_have_been_executed_is_not_said_to_be_not(no_wait, script, executed):
    callee = Callee(*(make() for make in script), idempotent=True)
    error = await failure(callee)
    assert len(callee.sent) == len(script)
    assert error.executed is executed


async def test_a_refused_attempt_is_followed_by_another_whatever_became_of_the_first(no_wait):
    callee = Callee(InternalError(), RateLimited(), Response(b"42"), idempotent=True)
    assert (await callee.call()).payload == b"42"


async def test_the_wait_is_what_the_error_says(clock):
    error = RateLimited()
    error.retry_after = 1.5
    callee = Callee(error, Response(b""))
    begin = clock.now()
    task = asyncio.create_task(callee.call())
    await clock.advance(1.49)
    assert len(callee.sent) == 1
    await clock.advance(0.01)
    assert task.done()
    assert callee.sent[1][2] - begin == pytest.approx(1.5, abs=1e-5)


async def test_who_would_wait_beyond_the_deadline_does_not_wait(clock):
    error = Overloaded()
    error.retry_after = 5.0
    callee = Callee(error)
    begin = clock.now()
    with pytest.raises(Overloaded) as raised:
        await callee.call(timeout=5.0)
    assert clock.now() == begin
    assert not raised.value.budget_spent
    # Asking the budget would have spent it.
    assert callee.budget._window.totals(begin) == (1, 0)  # calls and retries


@settings(deadline=None)
@given(st.floats(0.001, 2), st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0]), max_size=8), st.floats(0, 0.5))
def test_no_attempt_begins_after_the_deadline(timeout, retry_after, takes):
    async def run():
        loop = asyncio.get_running_loop()
        clock = Clock(loop)
        loop.time = clock.now

        async def fail(request):
            await asyncio.sleep(takes)
            error = Overloaded()
            error.retry_after = dict(enumerate(retry_after, 1)).get(len(callee.sent))
            raise error

        callee = Callee(fail, retries=20)
        deadline = loop.time() + timeout
        task = asyncio.create_task(callee.call(timeout=timeout))
        await clock.advance(timeout + takes)
        assert isinstance(task.exception(), Overloaded)
        assert all(at < deadline for _, _, at in callee.sent)

    asyncio.run(run())


async def test_each_attempt_has_all_the_time_that_is_left(clock):
    """What a layer below takes off the deadline of one, the next has again."""

    async def late(request):
        request.deadline = min(request.deadline, clock.now() + 1.0)
        await asyncio.sleep(1.0)
        raise DeadlineExceeded

    callee = Callee(late, late, Response(b"42"), idempotent=True)
    begin = clock.now()
    task = asyncio.create_task(callee.call(timeout=5.0))
    await clock.advance(2.6)
    assert task.result().payload == b"42"
    assert [deadline for _, deadline, _ in callee.sent] == [begin + 5.0] * 3


async def refuse(request):
    raise Overloaded


async def test_a_thousand_failing_calls_make_no_more_than_the_budget_allows(clock, no_wait):
    callee = Callee(refuse)
    outcomes = await asyncio.gather(*(callee.call() for _ in range(1000)), return_exceptions=True)
    # A fifth of the calls, and ten a second for ten seconds.
    assert len(callee.sent) == 1300
    assert callee.statistics.retries == 300
    assert callee.statistics.budget_spent == sum(error.budget_spent for error in outcomes) > 0


async def test_one_after_another_they_make_no_more_than_the_budget_allows(clock, no_wait):
    callee = Callee(refuse)
    for _ in range(1000):
        with pytest.raises(Overloaded):
            await callee.call()
    assert len(callee.sent) == 1300


async def test_a_spent_budget_is_said_in_the_error_and_to_the_callee(clock, no_wait):
    callee = Callee(refuse, budget=RetryBudget(0, 0.1), retries=1)
    errors = [await failure(callee) for _ in range(3)]
    assert [error.budget_spent for error in errors] == [False, True, True]
    errors[1].target = "a.b"
    assert "retry budget spent" in str(errors[1])
    # Said from the refusal on, so that who is called does not try again either.
    said = [parse(head).get("Mesh-Retry") for head, _, _ in callee.sent]
    assert said == [None, None, None, "off"]
    await clock.advance(20)
    assert not (await failure(callee)).budget_spent
    assert callee.sent[-1][0] == TRACE + line("Mesh-Attempt", "2")


async def test_an_attempt_says_that_the_budget_is_spent_meanwhile(clock):
    callee = Callee(Overloaded(), budget=RetryBudget(0, 0.1))
    task = asyncio.create_task(callee.call())
    await clock.advance(0)
    callee.budget.withdraw(clock.now())
    await clock.advance(1)
    assert task.exception() is not None
    assert [parse(head).get("Mesh-Retry") for head, _, _ in callee.sent] == [None, "off"]


async def test_who_must_not_try_again_for_its_own_caller_does_not(no_wait):
    callee = Callee(Overloaded())
    error = await failure(callee, head=TRACE + line("Mesh-Retry", "off"))
    assert (len(callee.sent), error.budget_spent) == (1, False)
    assert callee.budget._window.totals(callee.loop.time()) == (1, 0)


async def test_who_must_not_says_so_once(clock, no_wait):
    callee = Callee(Overloaded(), budget=RetryBudget(0, 0))
    off = TRACE + line("Mesh-Retry", "off")
    assert not callee.budget.withdraw(clock.now())
    await failure(callee, head=off)
    assert [head for head, _, _ in callee.sent] == [off]


@pytest.mark.parametrize("when", ["first attempt", "wait", "second attempt"])
async def test_who_is_cancelled_stops_at_once(clock, when):
    async def hang(request):
        await asyncio.sleep(60)

    error = Overloaded()
    error.retry_after = 1.0
    callee = Callee(hang if when == "first attempt" else error, hang, idempotent=True)
    task = asyncio.create_task(callee.call(timeout=600))
    await clock.advance(1.5 if when == "second attempt" else 0.5)
    sent = len(callee.sent)
    task.cancel()
    await clock.advance(60)
    assert task.cancelled()
    assert len(callee.sent) == sent == (2 if when == "second attempt" else 1)


async def test_a_cancellation_that_comes_from_below_is_no_failure(no_wait):
    callee = Callee(asyncio.CancelledError(), idempotent=True)
    with pytest.raises(asyncio.CancelledError):
        await callee.call()
    assert len(callee.sent) == 1


async def test_concurrent_calls_do_not_mix(clock):
    """Each has as many attempts as it needs, whatever the others do meanwhile."""
    attempts = Counter()
    loop = asyncio.get_running_loop()

    async def handle(request):
        number = int(request.subject)
        attempts[number] += 1
        await asyncio.sleep(random.random() / 100)
        assert parse(request.head).get("Mesh-Attempt", "1") == str(attempts[number])
        if attempts[number] <= number % 4:
            raise Overloaded(request.subject)
        return Response(request.subject.encode())

    layer = retry(
        retries=2,
        idempotent=False,
        codes=(),
        delay=0.025,
        delay_most=0.25,
        budget=RetryBudget(1, 100),
        statistics=CallStatistics(),
    )
    handler, now = layer(handle), loop.time()
    tasks = [asyncio.create_task(handler(Request(str(n), b"", b"", now, now + 5))) for n in range(100)]
    await clock.advance(1)
    for number, task in enumerate(tasks):
        if number % 4 == 3:
            assert task.exception().message == str(number)
            assert task.exception().attempt == attempts[number] == 3
        else:
            assert task.result().payload == str(number).encode()
            assert attempts[number] == number % 4 + 1


@pytest.mark.parametrize("script", [[Overloaded], [Overloaded, NotFound], [Overloaded, None]])
async def test_errors_are_let_go_without_the_garbage_collector(no_wait, script):
    gone = []

    async def handle(request):
        step = script[min(len(callee.sent), len(script)) - 1]
        if step is not None:
            error = step()
            gone.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

    callee = Callee(handle)
    gc.disable()
    try:
        if script[-1] is None:
            await callee.call()
        else:
            assert await failure(callee) is not None
        assert [reference() for reference in gone] == [None] * len(gone)
    finally:
        gc.enable()
    assert gone


class Thing:
    """What a frame holds as long as something holds the frame."""


@pytest.mark.parametrize("when", [0.5, 1.5])
async def test_a_cancelled_call_is_let_go_without_the_garbage_collector(clock, when):
    gone = []

    async def refuse(request):
        error = Overloaded()
        error.retry_after = 1.0
        try:
            raise error
        finally:
            del error

    async def hang(request):
        await asyncio.sleep(60)

    async def call():
        thing = Thing()
        gone.append(weakref.ref(thing))
        await callee.call(timeout=600)

    callee = Callee(refuse, hang)
    gc.disable()
    try:
        task = asyncio.create_task(call())
        await clock.advance(when)
        task.cancel()
        await clock.advance(0)
        assert task.cancelled()
        gone.append(weakref.ref(task))
        del task
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


async def failure(callee, **options):
    """The error of a call."""
    with pytest.raises(MeshError) as raised:
        await callee.call(**options)
    try:
        return raised.value
    finally:
        del raised
