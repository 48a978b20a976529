import asyncio
import re
from collections import defaultdict
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshkit import Service
from meshkit.codec import Decoder
from meshkit.errors import ConfigError, RateLimited
from meshkit.knobs import RateLimit
from meshkit.message import Request
from meshkit.quota import quota
from meshkit.quota.keys import check_field


def request(payload=b"", head=b""):
    return Request("room.book", payload, head, 0.0, 1e9)


def admits(limit, asked=None):
    try:
        limit.take(asked or request())
    except RateLimited as error:
        return error.retry_after
    return True


WINDOWS = st.sampled_from(["moving", "fixed", "sliding"])
# Seconds between calls, of which sums are exact; many fall into one instant, some on the edges of windows.
GAPS = st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.125, 0.25, 0.5, 1.0, 1.875, 2.0, 3.625]), max_size=80)


def admitted(window, texts, gaps):
    """When calls were admitted, and what each refused one was told to wait."""
    times, waits = [], []

    async def run():
        loop = asyncio.get_running_loop()
        now = 1000.0
        loop.time = lambda: now
        limit = quota(RateLimit(texts, window=window), "test")
        for gap in gaps:
            now += gap
            wait = admits(limit)
            if wait is True:
                times.append(now)
            else:
                waits.append(wait)
                now += wait
                assert admits(limit) is True  # as it was told
                times.append(now)
        del loop.time

    asyncio.run(run())
    return times, waits


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), GAPS)
def test_a_moving_window_never_admits_more_than_its_limit_in_any_window(amount, seconds, gaps):
    times, _ = admitted("moving", f"{amount} per {seconds} second", gaps)
    for first, beyond in zip(times, times[amount:], strict=False):
        assert beyond >= first + seconds


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), GAPS)
def test_a_moving_window_makes_nobody_wait_without_need(amount, seconds, gaps):
    times, waits = admitted("moving", f"{amount} per {seconds} second", gaps)
    assert all(0 < wait <= seconds for wait in waits)
    full = [beyond for first, beyond in zip(times, times[amount:], strict=False) if beyond == first + seconds]
    assert len(full) >= len(waits)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), GAPS)
def test_a_fixed_window_counts_from_its_first_call(amount, seconds, gaps):
    times, _ = admitted("fixed", f"{amount} per {seconds} second", gaps)
    begin, count = -1e9, 0
    for time in times:
        if time >= begin + seconds:
            begin, count = time, 0
        count += 1
        assert count <= amount


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), GAPS)
def test_a_sliding_window_never_admits_more_than_its_estimate_allows(amount, seconds, gaps):
    times, _ = admitted("sliding", f"{amount} per {seconds} second", gaps)
    counts = defaultdict(int)
    for time in times:
        number, into = divmod(time, seconds)
        assert counts[number - 1] * (1 - into / seconds) + counts[number] < amount
        counts[number] += 1
    assert all(count <= amount for count in counts.values())


@settings(deadline=None)
@given(WINDOWS, GAPS)
@example("moving", [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.125])
def test_all_of_several_limits_hold_and_none_is_charged_for_a_refusal(window, gaps):
    both, _ = admitted(window, ("2/second", "3 per 4 second"), gaps)
    again, waits = admitted(window, ("2/second", "3 per 4 second"), pauses(both))
    assert not waits  # those that were refused in between made no difference
    assert again == pytest.approx(both)
    if window == "moving":
        for amount, seconds in (2, 1), (3, 4):
            assert all(beyond >= first + seconds for first, beyond in zip(both, both[amount:], strict=False))


def pauses(times):
    return [later - earlier for earlier, later in pairwise([1000.0, *times])]


@pytest.mark.parametrize("window", ["moving", "fixed", "sliding"])
async def test_a_refused_call_counts_for_none_of_several_limits(clock, window):
    limit = quota(RateLimit("1/second; 3/minute", window=window), "test")
    await clock.advance(60 - clock.now() % 60)  # where sliding windows begin
    assert admits(limit) is True
    for _ in range(10):
        assert admits(limit) is not True
    for _ in range(2):
        await clock.advance(2)
        assert admits(limit) is True
    await clock.advance(2)
    assert admits(limit) == pytest.approx(54, abs=0.01)


async def test_a_sliding_window_says_when_its_estimate_is_low_enough(clock):
    limit = quota(RateLimit("10/second", window="sliding"), "test")
    await clock.advance(1.875 - clock.now() % 1)
    for _ in range(10):
        assert admits(limit) is True
    assert admits(limit) == pytest.approx(0.125, abs=0.002)  # the previous window must count for less
    await clock.advance(0.1875)
    assert admits(limit) is True  # 9.375 of the previous window
    assert admits(limit) == pytest.approx(0.0375, abs=0.002)  # at 9 of it there is room again
    assert admits(limit) > 0.0375


async def test_an_amount_may_come_as_one_text_or_several(clock):
    for texts in "1/second, 5/minute", ("1/second", "5/minute"):
        limit = quota(RateLimit(texts), "test")
        assert admits(limit) is True
        assert admits(limit) == 1


@pytest.mark.parametrize("window", ["moving", "fixed", "sliding"])
async def test_idle_keys_are_forgotten_as_others_come(clock, window):
    limit = quota(RateLimit("5/second", by="caller", window=window), "test")
    ((limiter, _),) = limit._limiters
    for number in range(1000):
        admits(limit, request(head=b"\r\nMesh-Caller: c%d/1" % number))
    assert len(limiter.storage) == 1000
    busy = request(head=b"\r\nMesh-Caller: c0/1")
    for _ in range(4):
        await clock.advance(0.55)
        assert admits(limit, busy) is True
    for number in range(600):
        admits(limit, request(head=b"\r\nMesh-Caller: late%d/1" % (number % 3)))
    assert len(limiter.storage) == 4


async def test_made_up_keys_do_not_fill_the_memory(clock, monkeypatch):
    monkeypatch.setattr("meshkit.quota.memory.MOST_KEYS", 100)
    limit = quota(RateLimit("5/hour", by="caller"), "test")
    ((limiter, _),) = limit._limiters
    for number in range(1000):
        admits(limit, request(head=b"\r\nMesh-Caller: c%d/1" % number))
    assert len(limiter.storage) == 100


# What it counts by


async def same(by, one, other):
    """Whether two requests count together."""
    limit = quota(RateLimit("1/hour", by=by), "test")
    assert admits(limit, one) is True
    return admits(limit, other) is not True


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (b"\r\nMesh-Caller: front/1", b"\r\nMesh-Caller: front/2", True),
        (b"\r\nMesh-Caller: front/1", b"\r\nMesh-Caller: back/1", False),
        (b"", b"\r\nX: y", True),
        (b"", b"\r\nMesh-Caller: front/1", False),
        (b"\r\nMesh-Caller: front-%b/1" % (b"x" * 60), b"\r\nMesh-Caller: front-%b/2" % (b"x" * 60), True),
        (b"\r\nMesh-Caller: %b1/1" % (b"x" * 90), b"\r\nMesh-Caller: %b2/1" % (b"x" * 90), False),
    ],
)
async def test_by_caller(one, other, together):
    assert await same("caller", request(head=one), request(head=other)) is together


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (b"\r\nX-Tenant: a", b"\r\nx-tenant:a", True),
        (b"\r\nX-Tenant: a", b"\r\nX-Tenant: A", False),
        (b"\r\nX-Tenant: a", b"\r\nX-Tenant: b\r\nOther: a", False),
        (b"", b"\r\nOther: a", True),
        (b"\r\nX-Tenant: \xff", b"\r\nX-Tenant: \xff", True),
        (b"\r\nX-Tenant: " + b"a" * 9000, b"\r\nX-Tenant: " + b"a" * 8999 + b"b", False),
    ],
)
async def test_by_header(one, other, together):
    assert await same("header:X-tenant", request(head=one), request(head=other)) is together


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (b'{"guest": {"id": "a"}, "room": 1}', b'{"guest": {"id": "\\u0061", "x": []}, "room": 2}', True),
        (b'{"guest": {"id": "a"}}', b'{"guest": {"id": "b"}}', False),
        (b'{"guest": {"id": 1}}', b'{"guest": {"id": 1.0}}', True),
        (b'{"guest": {"id": 1}}', b'{"guest": {"id": true}}', False),
        (b'{"guest": {"id": 1}}', b'{"guest": {"id": "1"}}', True),
        (b"{}", b'{"guest": null}', True),
        (b"", b'{"guest": {"id": [1, 2]}}', True),
        (b"nonsense", b'{"guest": 1}', True),
        (b"\xff\xff", b'{"guest": {"id": "\\ud800"}}', True),
        (b'{"guest": {"id": 1e999}}', b'{"guest": {"id": %s}}' % (b"9" * 10_000), True),
        (b"{}", b"[" * 100_000, True),
        (b"{}", b'{"a":' * 100_000, True),
        (b"{}", b'{"guest": {"id": "\xff"}}', True),
    ],
)
async def test_by_field(one, other, together):
    assert await same("field:guest.id", request(one), request(other)) is together


@pytest.mark.parametrize("name", ["__init__", "__class__", "class", "_", "value"])
async def test_any_name_may_be_a_fields(name):
    one, other = (request(b'{"%b": "%b"}' % (name.encode(), value)) for value in (b"a", b"b"))
    assert not await same(f"field:{name}", one, other)
    assert await same(f"field:{name}", one, one)


class Guest(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1)] = msgspec.field(name="id")


class Booking(msgspec.Struct):
    guest: Guest
    other: Guest | int


@pytest.mark.parametrize(
    ("by", "type_", "wrong"),
    [
        (
            "gest",
            Booking,
            "hotel.book: its rate limit counts by field:gest, but Booking has no 'gest'; it has guest, other",
        ),
        ("guest.number", Booking, "but Guest has no 'number'; it has id"),
        ("guest", bytes, "but it takes bytes as they are"),
        ("guest", None, "but it takes no message"),
        ("guest.id", Booking, None),
        ("guest.id.x", Booking, None),
        ("other.x", Booking, None),
        ("x", dict[str, int], None),
        ("x", Any, None),
    ],
)
def test_a_field_that_messages_never_have_is_refused(by, type_, wrong):
    limit, message = RateLimit("1/hour", by=f"field:{by}"), type_ and Decoder(type_)
    if wrong is None:
        check_field(limit, message, "hotel.book")
    else:
        with pytest.raises(ConfigError, match=re.escape(wrong)):
            check_field(limit, message, "hotel.book")


async def test_a_service_with_such_a_limit_does_not_start(mesh):
    service = Service("hotel")

    @service.endpoint(rate_limit=RateLimit("1/hour", by="field:gest"))
    async def book(booking: Booking) -> None: ...

    with pytest.raises(ConfigError, match=r"hotel\.book: .*'gest'"):
        async with mesh.serve(service):
            pass


async def test_by_field_of_messagepack():
    as_json = request(b'{"guest": {"id": "a"}}')
    head = b"\r\nContent-Type: application/msgpack"
    as_msgpack = request(msgspec.msgpack.encode({"guest": {"id": "a"}}), head)
    assert await same("field:guest.id", as_json, as_msgpack)
    unknown = request(b'{"guest": {"id": "a"}}', b"\r\nContent-Type: text/csv")
    assert await same("field:guest.id", request(), unknown)


async def test_keys_have_a_bounded_length():
    limit = quota(RateLimit("5/second", by="field:id"), "test")
    ((limiter, _),) = limit._limiters
    for number in range(100):
        limit.take(request(b'{"id": "%s%d"}' % (b"x" * 10_000, number)))
    assert len(limiter.storage) == 100
    assert max(map(len, limiter.storage._windows)) < 100


async def test_an_error_names_what_one_key_may_have():
    limit = quota(RateLimit("10 per 2 minutes", by="header:X-Tenant"), "hotel")
    for _ in range(10):
        limit.take(request())
    with pytest.raises(RateLimited, match="of hotel is reached: 10 per 2 minutes for each header X-Tenant"):
        limit.take(request())
