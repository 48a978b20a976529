import asyncio

import pytest

from meshkit import Disconnected, NoResponders
from meshkit.layers.connection import connection
from meshkit.message import Request, Response


class Link:
    """A connection that is back after so many seconds, and settled so many later."""

    def __init__(self, back, settled):
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._back, self._settled = loop.time() + back, loop.time() + settled

    @property
    def is_settled(self):
        return self._time() >= self._settled

    async def ready(self, deadline):
        if self._time() < self._back:
            await asyncio.sleep(min(self._back, deadline) - self._time())
        if self._time() < self._back:
            raise Disconnected("there was no more time to wait")


def request(seconds):
    now = asyncio.get_running_loop().time()
    return Request("x", b"", b"", now, now + seconds)


async def outcome(clock, link, listening_after, seconds=5.0):
    """The seconds that a call took, its result, and how often it was sent."""
    loop = asyncio.get_running_loop()
    began, sent, ended = loop.time(), [], []

    async def send(outgoing):
        sent.append(outgoing.head)
        outgoing.head += b"below"
        if loop.time() < began + listening_after:
            raise NoResponders
        return Response(b"42")

    async def call():
        try:
            return await connection(link)(send)(request(seconds))
        finally:
            ended.append(loop.time() - began)

    task = asyncio.create_task(call())
    while not ended:
        await clock.advance(0.01)
    return ended[0], task.exception() or task.result(), sent


async def test_a_connection_that_is_there_is_no_matter(clock):
    took, result, sent = await outcome(clock, Link(0, 0), listening_after=9)
    assert (took, type(result), len(sent)) == (0, NoResponders, 1)


async def test_a_call_waits_for_the_connection(clock):
    took, result, sent = await outcome(clock, Link(1.5, 4.5), listening_after=0)
    assert took == pytest.approx(1.5)
    assert (result.payload, len(sent)) == (b"42", 1)


async def test_a_call_waits_for_the_connection_until_its_deadline(clock):
    took, result, sent = await outcome(clock, Link(9, 9), listening_after=0, seconds=2)
    assert took == pytest.approx(2.0)
    assert (type(result), sent) == (Disconnected, [])


async def test_a_callee_that_comes_back_later_is_waited_for(clock):
    took, result, sent = await outcome(clock, Link(1, 4), listening_after=2)
    assert 2 <= took <= 2.25
    assert result.payload == b"42"
    assert 4 < len(sent) < 22
    assert set(sent) == {b""}  # what the layers below have added is not sent twice


async def test_nobody_is_waited_for_when_all_had_the_time_to_come_back(clock):
    took, result, _ = await outcome(clock, Link(1, 3), listening_after=9)
    assert 3 <= took <= 3.25
    assert isinstance(result, NoResponders)


async def test_nobody_is_waited_for_beyond_the_deadline(clock):
    took, result, _ = await outcome(clock, Link(1, 4), listening_after=9, seconds=1.7)
    assert 1.4 < took < 1.7
    assert isinstance(result, NoResponders)


async def test_a_cancelled_call_waits_no_more(clock):
    async def send(_outgoing):
        raise NoResponders

    task = asyncio.create_task(connection(Link(0, 9))(send)(request(5)))
    await clock.advance(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
