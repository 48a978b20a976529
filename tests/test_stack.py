"""What `stack.py` says of the order of the layers, each sentence of it."""

import asyncio
import logging

import pytest

from meshkit import (
    BadRequest,
    CallPolicy,
    CircuitOpen,
    DeadlineExceeded,
    InternalError,
    NoResponders,
    Overloaded,
    RateLimit,
    RateLimited,
)
from meshkit.budget import RetryBudget
from meshkit.deadlines import Deadlines
from meshkit.errors import from_headers, to_headers
from meshkit.headers import parse
from meshkit.layers.breaker import Breaker
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.hedge import Latency
from meshkit.layers.statistics import CallStatistics, Statistics
from meshkit.message import CURRENT, Request, Response
from meshkit.policies import Source, put_together
from meshkit.policy import CALL_DEFAULTS
from meshkit.quota import quota
from meshkit.stack import Bounds, Shared, client_stack, server_stack

TRACE = b"\r\ntraceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


def request(seconds=5.0):
    deadline = asyncio.get_running_loop().time() + seconds
    # Without a word from its caller a request has five seconds from its arrival.
    return Request("x", b"", b"", deadline - 5, deadline)


async def forever(_request):
    await asyncio.Event().wait()


async def answer(_request):
    return Response(b"")


def limited(limit="1/minute"):
    return quota(RateLimit(limit), "test")


def server(handle, *, own=None, shared=None, statistics=None, expire=id):
    return server_stack(
        handle,
        subject="x",
        statistics=statistics or Statistics(),
        deadlines=Deadlines(expire),
        own=own or Bounds(),
        shared=shared or Bounds(),
    )


class Connected:
    """A connection that is there, or that comes back after so many seconds."""

    def __init__(self, after=0.0):
        self.is_settled = not after
        self._after = after

    async def ready(self, _deadline):
        await asyncio.sleep(self._after)
        self.is_settled = True


def client(send, shared=None, link=None, **policy):
    effective, _ = put_together([Source(CALL_DEFAULTS, ""), Source(CallPolicy(**policy), "")])
    return client_stack(
        send,
        target="x",
        link=link or Connected(),
        caller="rooms/1",
        policy=effective,
        shared=shared or Shared(RetryBudget(0.2, 10)),
    )


def breaking(failures=3):
    statistics = CallStatistics()
    breaker = Breaker(
        "x",
        failures=failures,
        success=0.0,
        calls=5,
        window=10,
        open_first=1,
        open_most=60,
        statistics=statistics,
    )
    return Shared(RetryBudget(0.2, 10), breaker, statistics=statistics)


def done_about(statistics):
    """What was done about the calls of a target."""
    fields = ("retries", "hedges", "hedges_won", "budget_spent", "circuit_opened", "refused", "fallbacks")
    return {field: count for field in fields if (count := getattr(statistics, field))}


async def until_it_ends(clock, call, seconds=2):
    """The error of a call that waits between its attempts."""
    task = asyncio.ensure_future(call)
    await clock.advance(seconds)
    return task.exception()


# The callee's side


async def test_refusals_are_counted():
    statistics = Statistics()
    full = Concurrency(1, 0, "full")
    stack = server(forever, own=Bounds(concurrency=full), statistics=statistics)
    running = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await stack(request())
    with pytest.raises(DeadlineExceeded):
        await stack(request(-1))
    assert (statistics.requests, statistics.errors, statistics.in_flight) == (3, 2, 1)
    running.cancel()


async def test_refusals_by_a_rate_limit_are_counted():
    statistics = Statistics()
    stack = server(answer, own=Bounds(quota=limited()), statistics=statistics)
    await stack(request())
    with pytest.raises(RateLimited):
        await stack(request())
    assert (statistics.requests, statistics.errors) == (2, 1)


async def test_expired_requests_take_no_slot_and_use_up_no_limit():
    full = Concurrency(1, 0, "full")
    stack = server(forever, own=Bounds(limited(), full))
    with pytest.raises(DeadlineExceeded):
        await stack(request(-1))
    running = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)
    assert full.running == 1
    with pytest.raises(DeadlineExceeded):  # and neither RateLimited nor Overloaded
        await stack(request(-1))
    running.cancel()


async def test_what_expired_while_something_kept_the_event_loop_is_refused(clock):
    begun = []

    async def handle(_request):
        begun.append(1)
        return Response(b"")

    asked = request(1)
    await clock.advance(1)
    with pytest.raises(DeadlineExceeded, match="had passed when") as raised:
        await server(handle)(asked)
    assert raised.value.executed is False
    assert not begun


async def test_waiting_for_a_slot_counts_against_the_deadline(clock):
    bound = Concurrency(1, 1, "busy")
    stack = server(forever, own=Bounds(concurrency=bound), expire=lambda _request: waiting.cancel())
    running = asyncio.create_task(stack(request(60)))
    waiting = asyncio.create_task(stack(request(1)))
    await clock.advance(1.1)
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert (bound.running, bound.waiting) == (1, 0)
    running.cancel()


async def test_what_a_rate_limit_refuses_takes_no_slot_and_does_not_wait():
    bound = Concurrency(1, 1, "busy")
    stack = server(forever, shared=Bounds(limited("2/minute"), bound))
    tasks = [asyncio.create_task(stack(request())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await stack(request())
    assert (bound.running, bound.waiting) == (1, 1)
    for task in tasks:
        task.cancel()


async def test_what_an_endpoint_refuses_uses_up_nothing_of_its_service():
    shared = Bounds(limited("2/minute"))
    narrow = server(answer, own=Bounds(limited()), shared=shared)
    await narrow(request())
    for _ in range(3):
        with pytest.raises(RateLimited):
            await narrow(request())
    await server(answer, shared=shared)(request())


async def test_what_waits_for_a_slow_endpoint_takes_none_of_the_shared_slots():
    own, shared = Concurrency(1, 5, "own"), Concurrency(3, 0, "shared")
    slow = server(forever, own=Bounds(concurrency=own), shared=Bounds(concurrency=shared))
    tasks = [asyncio.create_task(slow(request())) for _ in range(4)]
    await asyncio.sleep(0)
    assert (own.running, own.waiting, shared.running) == (1, 3, 1)
    for task in tasks:
        task.cancel()


async def test_only_what_the_handler_raises_is_hidden(caplog):
    caplog.set_level(logging.CRITICAL)

    async def bug(_request):
        raise ZeroDivisionError

    async def meant(_request):
        raise BadRequest("the field x")

    with pytest.raises(InternalError, match="internal error"):
        await server(bug)(request())
    with pytest.raises(BadRequest, match="the field x"):
        await server(meant)(request())


# The caller's side


async def test_every_attempt_belongs_to_the_same_trace_and_caller(clock):
    sent = []

    async def send(outgoing):
        sent.append(parse(outgoing.head))
        raise NoResponders

    CURRENT.set(Request("y", b"", TRACE, 0.0, 1e9))
    await until_it_ends(clock, client(send)(request()))
    assert [headers.get("Mesh-Attempt") for headers in sent] == [None, "2", "3"]
    assert {headers["traceparent"] for headers in sent} == {TRACE.decode().split()[1]}
    assert {headers["Mesh-Caller"] for headers in sent} == {"rooms/1"}


async def test_each_attempt_is_judged_by_the_breaker(clock):
    shared = breaking(failures=3)

    async def send(_outgoing):
        raise InternalError

    await until_it_ends(clock, client(send, shared, idempotent=True)(request()))
    assert (shared.statistics.retries, shared.statistics.circuit_opened) == (2, 1)


async def test_each_attempt_counts_against_the_limit_of_the_caller(clock):
    shared = Shared(RetryBudget(0.2, 10), bounds=Bounds(limited("2/minute")))
    sent = []

    async def send(_outgoing):
        sent.append(1)
        raise NoResponders

    error = await until_it_ends(clock, client(send, shared, retries=5)(request()))
    assert isinstance(error, RateLimited)
    assert len(sent) == 2


async def test_two_copies_are_one_attempt(clock):
    """Retry is above hedge: a call whose copies have both failed is tried again, and hedged again."""
    shared = Shared(RetryBudget(0.2, 10))
    copies = []

    async def send(outgoing):
        copies.append(outgoing)
        await asyncio.sleep(0.2)
        raise InternalError

    await until_it_ends(clock, client(send, shared, idempotent=True, hedge=0.1, retries=1)(request()))
    assert len(copies) == 4
    assert (shared.statistics.hedges, shared.statistics.retries) == (2, 1)


async def test_each_copy_is_judged_by_the_breaker_and_takes_a_slot(clock):
    shared = breaking(failures=2)
    shared.bounds.concurrency = Concurrency(5, 0, "calls")
    running = []

    async def send(_outgoing):
        await asyncio.sleep(0.2)
        running.append(shared.bounds.concurrency.running)
        raise InternalError

    await until_it_ends(clock, client(send, shared, idempotent=True, hedge=0.1, retries=0)(request()))
    assert running[0] == 2
    assert shared.statistics.circuit_opened == 1


async def test_what_the_breaker_refuses_waits_for_nothing_and_uses_up_nothing(clock):
    shared = breaking(failures=1)
    shared.bounds = Bounds(limited("2/minute"), Concurrency(1, 5, "calls"))
    stack = client(forever, shared, retries=0)
    holding = asyncio.create_task(stack(request(60)))  # has the slot, and one of two in the limit
    await asyncio.sleep(0)

    async def failing(_outgoing):
        raise InternalError

    with pytest.raises(InternalError):
        await shared.breaker.layer(failing)(request())
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            await stack(request())
    assert shared.bounds.concurrency.waiting == 0
    assert shared.bounds.quota.take(request()) is None
    holding.cancel()


async def test_what_the_callers_own_limit_refuses_takes_no_slot():
    shared = Shared(RetryBudget(0.2, 10), bounds=Bounds(limited(), Concurrency(1, 5, "calls")))
    stack = client(forever, shared, retries=0)
    holding = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await stack(request())
    assert shared.bounds.concurrency.waiting == 0
    holding.cancel()


@pytest.mark.parametrize("retries", [0, 2])
async def test_what_the_callers_own_side_refuses_is_counted_and_not_tried_again(retries):
    shared = breaking(failures=1)
    shared.bounds = Bounds(limited("2/minute"), Concurrency(1, 0, "calls"))
    stack = client(forever, shared, retries=retries)
    holding = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)

    async def failing(_outgoing):
        raise InternalError

    for error in (Overloaded, RateLimited, CircuitOpen):
        if error is CircuitOpen:
            with pytest.raises(InternalError):
                await shared.breaker.layer(failing)(request())
        with pytest.raises(error) as raised:
            await stack(request())
        assert raised.value.own
    assert shared.statistics.refusals == {"Overloaded": 1, "RateLimited": 1, "CircuitOpen": 1}
    assert done_about(shared.statistics) == {"refused": 3, "circuit_opened": 1}
    holding.cancel()


@pytest.mark.parametrize("retries", [0, 2])
async def test_what_the_callee_refuses_is_not_the_callers_own(clock, retries):
    shared = Shared(RetryBudget(0.2, 10), bounds=Bounds(limited("9/minute"), Concurrency(1, 0, "calls")))

    async def send(outgoing):
        callee = server(answer, own=Bounds(quota=limited("1/second")))
        await callee(outgoing)
        with pytest.raises(RateLimited) as raised:
            await callee(outgoing)
        raise from_headers(to_headers(raised.value, "rooms/1"))

    error = await until_it_ends(clock, client(send, shared, retries=retries)(request()), seconds=6)
    assert (error.own, error.executed, error.attempt) == (False, False, 1 + retries)
    assert shared.statistics.refused == 0


async def test_a_second_copy_that_is_refused_is_no_refused_call(clock):
    shared = Shared(RetryBudget(0.2, 10), bounds=Bounds(concurrency=Concurrency(1, 0, "calls")))

    async def send(_outgoing):
        await asyncio.sleep(0.2)
        return Response(b"")

    call = asyncio.create_task(client(send, shared, idempotent=True, hedge=0.1)(request()))
    await clock.advance(0.3)
    assert call.result() is not None
    assert done_about(shared.statistics) == {"hedges": 1}


class Asking:
    """A rate limit that has to ask, which takes a second."""

    def take(self, _request):
        return asyncio.sleep(1)


class Unsettled(Connected):
    """A connection that is back, though not everybody else is."""

    def __init__(self):
        super().__init__(after=0.01)

    async def ready(self, _deadline):
        pass


@pytest.mark.parametrize("where", ["bulkhead", "rate limit", "connection", "who lost it too"])
async def test_no_second_copy_is_sent_of_what_waits_on_the_callers_own_side(clock, where):
    shared = Shared(RetryBudget(0.2, 10))
    link, sent = Connected(), []
    if where == "bulkhead":
        shared.bounds.concurrency = Concurrency(1, 9, "calls")
        hold = shared.bounds.concurrency.layer(lambda _request: asyncio.sleep(1))
        holding = asyncio.create_task(hold(request()))
        await asyncio.sleep(0)
    elif where == "rate limit":
        shared.bounds.quota = Asking()
    elif where == "connection":
        link = Connected(after=1)
    else:
        link = Unsettled()

    async def send(_outgoing):
        sent.append(1)
        if where == "who lost it too" and clock.now() < begin + 1:
            raise NoResponders
        await asyncio.sleep(0.01)
        return Response(b"")

    begin = clock.now()
    call = asyncio.create_task(client(send, shared, link, idempotent=True, hedge=0.02)(request()))
    for _ in range(200):
        await clock.advance(0.01)
    assert call.result() is not None
    assert done_about(shared.statistics) == {}
    assert len(sent) == 1 or where == "who lost it too"
    if where == "bulkhead":
        await holding


async def test_how_long_calls_take_belongs_to_the_target_whatever_a_calls_own_policy(clock):
    shared = Shared(RetryBudget(0.2, 10))
    takes = 0.1

    async def send(_outgoing):
        await asyncio.sleep(takes)
        return Response(b"")

    for number in range(20):
        stack = client(send, shared, idempotent=True, hedge="p95", timeout=2 + number)
        await until_it_ends(clock, stack(request()), seconds=takes)
    takes = 1.0
    await until_it_ends(clock, client(send, shared, idempotent=True, hedge="p95")(request()))
    assert shared.statistics.hedges == 1


@pytest.mark.parametrize(
    ("policy", "is_kept"),
    [({}, False), ({"hedge": 0.1}, False), ({"hedge": "p95"}, True)],
)
async def test_how_long_calls_take_is_kept_only_for_who_wants_it(policy, is_kept):
    shared = Shared(RetryBudget(0.2, 10))
    await client(answer, shared, idempotent=True, **policy)(request())
    assert isinstance(shared.latency, Latency) == is_kept


async def test_waiting_for_the_connection_counts_against_the_whole_call_and_no_attempt(clock):
    sent = []

    async def send(outgoing):
        sent.append((parse(outgoing.head)["Mesh-Timeout"], round(outgoing.deadline - outgoing.started, 3)))
        return Response(b"")

    stack = client(send, link=Connected(after=2.0), idempotent=True, attempt_timeout=1)
    await until_it_ends(clock, stack(request(5.0)), seconds=2.1)
    assert sent == [("1000", 3.0)]


@pytest.mark.parametrize(("idempotent", "seconds"), [(True, 1.0), (False, 5.0)])
async def test_an_attempt_is_bounded_only_if_there_may_be_another(idempotent, seconds):
    sent = []

    async def send(outgoing):
        sent.append(outgoing.deadline - outgoing.started)
        return Response(b"")

    await client(send, idempotent=idempotent, attempt_timeout=1)(request(5.0))
    assert sent == [pytest.approx(seconds, abs=0.1)]


async def test_hedges_are_a_share_of_the_calls_also_where_nothing_is_tried_again(clock):
    shared = Shared(RetryBudget(0.5, 0))

    async def send(_outgoing):
        await asyncio.sleep(0.2)
        return Response(b"")

    stack = client(send, shared, idempotent=True, hedge=0.1, retries=0)
    for _ in range(10):
        await until_it_ends(clock, stack(request()), seconds=0.3)
    assert 1 < shared.statistics.hedges <= 5


async def test_the_time_left_is_written_last(clock):
    """What the layers above spend counts."""
    sent = []

    async def send(outgoing):
        sent.append(parse(outgoing.head))
        return Response(b"")

    outgoing = request(2.0)
    await clock.advance(0.5)
    await client(send)(outgoing)
    assert sent == [{"Mesh-Caller": "rooms/1", "Mesh-Timeout": "1500"}]
