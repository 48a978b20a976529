import asyncio
import contextlib

import pytest

from meshkit.errors import NACK, RETRY_AFTER, RateLimited, from_headers, to_headers
from meshkit.knobs import RateLimit
from meshkit.layers.rate_limit import rate_limit
from meshkit.message import Request, Response
from meshkit.quota import quota


def request():
    return Request("room.book", b"", b"", 0.0, 1e9)


async def answer(request):
    return Response(b"done")


async def test_what_is_too_many_is_refused_and_told_when_to_come_back(clock):
    call = rate_limit(quota(RateLimit("2/second"), "room.book"))(answer)
    assert (await call(request())).payload == b"done"
    await clock.advance(0.25)
    await call(request())
    with pytest.raises(RateLimited, match=r"of room\.book is reached: 2 per second") as caught:
        await call(request())
    assert caught.value.executed is False
    assert caught.value.retry_after == pytest.approx(0.75)
    await clock.advance(caught.value.retry_after)
    assert (await call(request())).payload == b"done"


async def test_a_refusal_is_a_nack_on_the_wire(clock):
    call = rate_limit(quota(RateLimit("1/minute"), "room.book"))(answer)
    await call(request())
    with pytest.raises(RateLimited) as caught:
        await call(request())
    headers = to_headers(caught.value, "rooms/1")
    assert headers[NACK]
    assert headers[RETRY_AFTER] == "60000"


async def test_a_quota_that_has_to_ask_lets_the_call_wait():
    gate = asyncio.Event()

    class Asking:
        def take(self, request):
            return gate.wait()

    call = asyncio.ensure_future(rate_limit(Asking())(answer)(request()))
    await asyncio.sleep(0)
    assert not call.done()
    gate.set()
    assert (await call).payload == b"done"


@pytest.mark.parametrize("window", ["moving", "fixed", "sliding"])
async def test_what_one_of_several_refuses_uses_up_no_other(clock, window):
    own = quota(RateLimit("5/minute", window=window), "room.book")
    shared = quota(RateLimit("1/second", window=window), "room")
    call = rate_limit(own, shared)(answer)
    await clock.advance(-clock.now() % 60)
    admitted = 0
    for _ in range(5):
        for _ in range(4):
            with contextlib.suppress(RateLimited):
                await call(request())
                admitted += 1
        await clock.advance(2)
    assert admitted == 5
    with pytest.raises(RateLimited, match=r"of room\.book is reached"):
        await call(request())


class Asking:
    """A quota that has to ask; `taken` has what became of it."""

    def __init__(self, name, taken, *, refuses=False):
        self.name, self.taken, self.refuses = name, taken, refuses

    def take(self, request):
        return self.wait()

    async def wait(self):
        await asyncio.sleep(0)
        if self.refuses:
            raise RateLimited
        self.taken.append(self.name)

    def give_back(self, request):
        self.taken.append(f"not {self.name}")


async def test_all_of_several_that_have_to_ask_are_asked_in_turn():
    taken = []
    several = [Asking(name, taken) for name in "abc"]
    assert (await rate_limit(*several)(answer)(request())).payload == b"done"
    assert taken == ["a", "b", "c"]


async def test_what_one_that_had_to_ask_refuses_is_given_back_to_those_before_it():
    taken = []
    several = [Asking(name, taken, refuses=name == "c") for name in "abcd"]
    with pytest.raises(RateLimited):
        await rate_limit(*several)(answer)(request())
    assert taken == ["a", "b", "not a", "not b"]


@pytest.mark.parametrize("window", ["moving", "fixed", "sliding"])
async def test_what_a_later_limit_refuses_uses_up_nothing_of_an_earlier_one(clock, window):
    await clock.advance(60 - clock.now() % 60)
    wide = quota(RateLimit("3/minute", window=window), "room.book")
    narrow = quota(RateLimit("1/second", window=window), "rooms")
    call = rate_limit(wide, narrow)(answer)
    for _ in range(2):
        await call(request())
        for _ in range(5):
            with pytest.raises(RateLimited, match="of rooms is reached"):
                await call(request())
        await clock.advance(2)
    await call(request())
    await clock.advance(2)
    with pytest.raises(RateLimited, match=r"of room\.book is reached"):
        await call(request())


async def test_who_waits_as_long_as_the_wire_says_is_let_through(clock):
    call = rate_limit(quota(RateLimit("1/second"), "room.book"))(answer)
    await call(request())
    await clock.advance(0.1237)
    with pytest.raises(RateLimited) as caught:
        await call(request())
    told = from_headers(to_headers(caught.value, "rooms/1")).retry_after
    assert told == pytest.approx(0.877)
    await clock.advance(told)
    assert (await call(request())).payload == b"done"
