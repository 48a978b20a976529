"""What `stack.py` says of the order of the layers, each sentence of it."""

import asyncio
import logging

import pytest

from meshkit import BadRequest, DeadlineExceeded, InternalError, Overloaded
from meshkit.deadlines import Deadlines
from meshkit.headers import parse
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.statistics import Statistics
from meshkit.message import Request, Response
from meshkit.stack import client_stack, server_stack


def request(seconds=5.0):
    now = asyncio.get_running_loop().time()
    return Request("x", b"", b"", now, now + seconds)


async def forever(_request):
    await asyncio.Event().wait()


def server(handle, *, bounds=(), statistics=None, expire=id):
    return server_stack(
        handle,
        statistics=statistics or Statistics(),
        deadlines=Deadlines(expire),
        bounds=bounds,
    )


async def test_refusals_are_counted():
    statistics = Statistics()
    full = Concurrency(1, 0, "full")
    stack = server(forever, bounds=[full], statistics=statistics)
    running = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await stack(request())
    with pytest.raises(DeadlineExceeded):
        await stack(request(-1))
    assert (statistics.requests, statistics.errors, statistics.in_flight) == (3, 2, 1)
    running.cancel()


async def test_expired_requests_take_no_slot():
    full = Concurrency(1, 0, "full")
    stack = server(forever, bounds=[full])
    running = asyncio.create_task(stack(request()))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):  # and not Overloaded
        await stack(request(-1))
    running.cancel()


async def test_what_expired_while_something_kept_the_event_loop_is_refused(clock):
    begun = []

    async def handle(_request):
        begun.append(1)
        return Response(b"")

    asked = request(1)
    await clock.advance(1)
    with pytest.raises(DeadlineExceeded, match="had passed when"):
        await server(handle)(asked)
    assert not begun


async def test_waiting_for_a_slot_counts_against_the_deadline(clock):
    bound = Concurrency(1, 1, "busy")
    stack = server(forever, bounds=[bound], expire=lambda _request: waiting.cancel())
    running = asyncio.create_task(stack(request(60)))
    waiting = asyncio.create_task(stack(request(1)))
    await clock.advance(1.1)
    with pytest.raises(DeadlineExceeded):
        await waiting
    assert (bound.running, bound.waiting) == (1, 0)
    running.cancel()


async def test_what_waits_for_a_slow_endpoint_takes_none_of_the_shared_slots():
    own, shared = Concurrency(1, 5, "own"), Concurrency(3, 0, "shared")
    slow = server(forever, bounds=[own, shared])
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


async def test_the_time_left_is_written_last(clock):
    """What the layers above spend counts."""
    sent = []

    async def send(outgoing):
        sent.append(parse(outgoing.head))
        return Response(b"")

    outgoing = request(2.0)
    await clock.advance(0.5)
    await client_stack(send, caller="rooms/1")(outgoing)
    assert sent == [{"Mesh-Caller": "rooms/1", "Mesh-Timeout": "1500"}]
