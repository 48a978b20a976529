import asyncio
import gc
import logging
import weakref
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.errors import DeadlineExceeded, NoResponders, RateLimited
from meshkit.knobs import RateLimit
from meshkit.message import CURRENT, Request
from meshkit.quota import quota
from meshkit.testing import Clock
from meshkit.transport import Message


class JetStream:
    """Counters as nats-server keeps them, behind a transport.

    Answers take `delay()` seconds there and as many back; `ahead` is what its clock is ahead of the loop's.
    """

    def __init__(self, *, ahead=1.7e9 + 0.0037, delay=lambda: 0.0):
        self.counts, self.added = Counter(), []
        self.seq = self.looks = 0
        self.ahead, self.delay = ahead, delay
        self.mood = "well"
        self.instances, self.pings = 4, 0
        self.is_connected = self.is_settled = True
        self.created = datetime.fromtimestamp(0, UTC)
        self.callbacks = []

    def on_reconnect(self, callback):
        self.callbacks.append(callback)

    def restart(self):
        """Lose all, with the connections; others that lost them are back three seconds later."""
        self.forget()
        self.created = self.now()
        self.is_settled = False
        asyncio.get_running_loop().call_later(3, setattr, self, "is_settled", True)
        for callback in self.callbacks:
            callback()

    def now(self):
        return datetime.fromtimestamp(asyncio.get_running_loop().time() + self.ahead, UTC)

    async def request(self, subject, payload, head, deadline):
        loop = asyncio.get_running_loop()
        delay = self.delay()
        if self.mood == "silent":
            await asyncio.sleep(max(0, deadline - loop.time()))
            raise DeadlineExceeded
        await asyncio.sleep(delay)
        if self.mood == "gone":
            raise NoResponders
        answer = self.answer(subject, head)
        await asyncio.sleep(delay)
        return Message("", "", msgspec.json.encode(answer))

    def answer(self, subject, head):
        if subject.startswith("$JS.API.STREAM.INFO."):
            self.looks += 1
            return {"ts": self.now(), "created": self.created, "state": {"last_seq": self.seq}}
        amount = int(head.removeprefix(b"\r\nNats-Incr: +"))
        self.added.append(amount)
        self.counts[subject] += amount
        self.seq += 1
        return {"stream": "MESH_QUOTA", "seq": self.seq, "val": str(self.counts[subject])}

    def forget(self):
        """As a restart does."""
        self.counts.clear()
        self.seq = 0

    async def gather(self, subject):
        self.pings += 1
        await asyncio.sleep(0.3)
        ping = {"type": "io.nats.micro.v1.ping_response", "name": "hotel", "version": "1.0.0"}
        return [Message("", "", msgspec.json.encode(ping | {"id": f"i{n}"})) for n in range(self.instances)]


def shared(limits, jetstream, *, by=""):
    return quota(RateLimit(limits, by=by, scope="mesh"), "hotel", transport=jetstream, service="hotel")


async def call(limit, *, patience=1e6, caller="front"):
    """Whether a call is let through."""
    head = b"\r\nMesh-Caller: %b/1" % caller.encode()
    request = Request("hotel.book", b"", head, 0.0, asyncio.get_running_loop().time() + patience)
    try:
        waiting = limit.take(request)
        if waiting is not None:
            await waiting
    except RateLimited:
        return False
    return True


async def calls(limit, number, **options):
    return sum(await asyncio.gather(*(call(limit, **options) for _ in range(number))))


async def into_window(clock, jetstream, seconds, into=0.5):
    """Move to so many seconds after the beginning of a window on the server's clock."""
    now = clock.now() + jetstream.ahead
    await clock.advance((into - now) % seconds)


# Exactness


@settings(deadline=None, max_examples=100)
@given(
    instances=st.integers(1, 4),
    amount=st.integers(1, 60),
    seconds=st.integers(1, 3),
    delays=st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.1]), min_size=1, max_size=10),
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.3])),
        max_size=25,
    ),
)
def test_all_instances_together_never_admit_more_than_the_limit(instances, amount, seconds, delays, steps):
    admitted = Counter()

    async def run():
        loop = asyncio.get_running_loop()
        clock = Clock(loop)
        loop.time = clock.now
        order = iter(delays * 1000)
        jetstream = JetStream(delay=lambda: next(order))
        limits = [shared(f"{amount} per {seconds} seconds", jetstream) for _ in range(instances)]

        async def one(limit):
            if await call(limit):
                admitted[int((loop.time() + jetstream.ahead) // seconds)] += 1

        tasks = []
        for which, burst, pause in steps:
            tasks += [asyncio.create_task(one(limits[which % instances])) for _ in range(burst)]
            await clock.advance(pause)
        await clock.advance(10)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert all(count <= amount for count in admitted.values())


async def test_nothing_is_left_when_all_instances_are_busy(clock):
    jetstream = JetStream()
    limits = [shared("100/minute", jetstream) for _ in range(4)]
    assert sum([await call(limits[n % 4]) for n in range(1000)]) == 100


async def test_a_busy_instance_hardly_waits_for_one_that_has_little_to_do(clock):
    jetstream = JetStream()
    idle, busy = shared("100/minute", jetstream), shared("100/minute", jetstream)
    await into_window(clock, jetstream, 60)
    assert await calls(idle, 20) == 20
    assert await calls(busy, 200) >= 100 - 20 - 5  # a quarter of what it used
    await clock.advance(60)
    assert await calls(busy, 200) == 100


async def test_most_calls_find_a_token_here(clock):
    jetstream = JetStream()
    limit = shared("100000/minute", jetstream)
    await into_window(clock, jetstream, 60)
    await calls(limit, 500)
    before, waited = len(jetstream.added), 0
    for _ in range(20_000):
        waiting = limit.take(Request("hotel.book", b"", b"", 0.0, 1e9))
        if waiting is not None:
            waited += 1
            await waiting
        await asyncio.sleep(0)
    assert waited <= 5
    assert len(jetstream.added) - before < 50


async def test_a_window_begins_with_what_the_last_one_needed(clock):
    jetstream = JetStream()
    limit = shared("1000/minute", jetstream)
    await into_window(clock, jetstream, 60)
    await calls(limit, 200)
    await clock.advance(60)
    assert await call(limit)
    assert jetstream.added[-1] == 1 + 50


async def test_leases_become_single_calls_as_the_limit_nears(clock):
    jetstream = JetStream()
    limit = shared("1000/minute", jetstream)
    await into_window(clock, jetstream, 60)
    assert await calls(limit, 400) == 400
    before = len(jetstream.added)
    assert sum([await call(limit) for _ in range(1000)]) == 600
    leases = jetstream.added[before:]
    assert leases[0] > 60
    assert leases == sorted(leases, reverse=True)
    assert leases[-5:] == [1] * 5


async def test_who_is_refused_is_told_when_the_window_ends(clock):
    jetstream = JetStream()
    limit = shared("2/minute", jetstream)
    await into_window(clock, jetstream, 60, into=15)
    assert await calls(limit, 5) == 2
    with pytest.raises(RateLimited, match="of hotel is reached: 2 per minute") as caught:
        limit.take(Request("hotel.book", b"", b"", 0.0, 1e9))
    assert caught.value.executed is False
    assert caught.value.retry_after == pytest.approx(45, abs=0.001)
    await clock.advance(caught.value.retry_after + 0.001)
    assert await calls(limit, 5) == 2


async def test_windows_go_by_the_clock_of_the_server(clock):
    jetstream = JetStream()
    limits = [shared("10/minute", jetstream) for _ in range(2)]
    for limit, wrong in zip(limits, (-300.0, 300.0), strict=True):
        late = SimpleNamespace(time=lambda wrong=wrong: clock.now() + wrong)
        for pool in limit._pools:
            pool.storage._loop = late
    await into_window(clock, jetstream, 60, into=1)
    assert sum([await call(limits[n % 2]) for n in range(30)]) == 10
    await clock.advance(58)
    assert sum([await call(limits[n % 2]) for n in range(30)]) == 0
    await clock.advance(2)
    assert sum([await call(limits[n % 2]) for n in range(30)]) == 10


async def test_a_server_whose_clock_is_set_is_followed(clock):
    jetstream = JetStream()
    limit = shared("1/minute", jetstream)
    await into_window(clock, jetstream, 60, into=1)
    assert await call(limit)
    jetstream.ahead += 1000 * 60
    await clock.advance(60)
    assert await call(limit)
    await clock.advance(60)
    assert await call(limit)
    windows = sorted(int(subject.rpartition(".")[2]) for subject in jetstream.counts)
    assert windows[-1] - windows[0] > 1000


async def test_the_servers_clock_is_looked_at_once_a_minute(clock):
    jetstream = JetStream()
    limit = shared("100000/minute", jetstream, by="caller")
    await call(limit)
    await clock.advance(61)
    before = jetstream.looks
    await asyncio.gather(*(call(limit, caller=f"c{number}") for number in range(50)))
    await clock.advance(50)
    await asyncio.gather(*(call(limit, caller=f"c{number}") for number in range(50)))
    assert jetstream.looks == before + 1


async def test_several_limits_hold_and_none_is_charged_for_a_refusal(clock):
    jetstream = JetStream()
    limit = shared("2/second; 5/minute", jetstream)
    await into_window(clock, jetstream, 60, into=0.1)
    assert await calls(limit, 20) == 2
    await clock.advance(1)
    assert await calls(limit, 20) == 2
    await clock.advance(1)
    assert await calls(limit, 20) == 1
    await clock.advance(1)
    assert await calls(limit, 20) == 0
    await clock.advance(60)
    assert await calls(limit, 20) == 2


async def test_keys_are_apart_and_forgotten(clock):
    jetstream = JetStream()
    limit = shared("2/minute", jetstream, by="caller")
    await into_window(clock, jetstream, 60)
    for number in range(200):
        assert await calls(limit, 3, caller=f"c{number}") == 2
    (pool,) = limit._pools
    assert len(pool._leases) == 200
    for _ in range(3):
        await clock.advance(60)
        for number in range(100):
            await call(limit, caller=f"later{number}")
    assert len(pool._leases) == 100


async def test_counters_that_the_server_has_lost_are_made_good(clock):
    jetstream = JetStream()
    limits = [shared("1000/hour", jetstream) for _ in range(2)]
    await into_window(clock, jetstream, 3600, into=1)
    admitted = sum([await call(limits[n % 2]) for n in range(700)])
    jetstream.forget()
    admitted += sum([await call(limits[n % 2]) for n in range(2000)])
    assert 900 < admitted <= 1000


@pytest.mark.parametrize("both", [True, False])
async def test_nobody_takes_more_of_a_lost_counter_than_was_left_when_it_was_last_seen(clock, both):
    jetstream = JetStream()
    limits = [shared("1000/hour", jetstream) for _ in range(2)]
    await into_window(clock, jetstream, 3600, into=1)
    admitted = sum([await call(limits[n % 2]) for n in range(980)])
    jetstream.forget()
    if both:
        admitted += sum(await asyncio.gather(*(calls(limit, 100) for limit in limits)))
    else:
        admitted += await calls(limits[0], 300)
    assert 980 < admitted <= 1000 + 5  # what the other one took since


async def test_who_has_used_up_the_limit_tells_a_restarted_server_before_others_ask(clock):
    jetstream = JetStream()
    one, other = (shared("10/hour", jetstream) for _ in range(2))
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(one, 15) == 10
    jetstream.restart()
    late = asyncio.create_task(calls(other, 15))
    await clock.advance(4)
    assert late.done()
    assert await late == 0
    assert await calls(one, 5) == 0


async def test_who_is_back_first_waits_for_the_others(clock):
    jetstream = JetStream()
    one, other = (shared("10/hour", jetstream) for _ in range(2))
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(one, 7) == 7
    to_one = jetstream.callbacks.pop(0)
    jetstream.restart()
    early = asyncio.create_task(calls(other, 15))
    await clock.advance(1.9)
    assert not early.done()
    to_one()
    await clock.advance(2)
    assert early.done()
    assert 2 <= await early <= 3  # the other one may hold a token


async def test_windows_that_begin_after_the_restart_wait_for_nobody(clock):
    jetstream = JetStream()
    limit = shared("10 per 2 seconds", jetstream)
    await into_window(clock, jetstream, 2, into=1.5)
    assert await calls(limit, 3) == 3
    jetstream.restart()
    await clock.advance(0.6)
    waiting = asyncio.create_task(calls(limit, 15))
    await clock.advance(0.2)
    assert waiting.done()
    assert await waiting == 10


async def test_a_connection_that_breaks_alone_is_no_reason_to_tell_or_to_wait(clock):
    jetstream = JetStream()
    limit = shared("100/hour", jetstream)
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(limit, 8) == 8
    told = len(jetstream.added)
    jetstream.is_settled = False
    jetstream.callbacks[0]()
    await clock.advance(0.2)
    assert len(jetstream.added) == told
    waiting = asyncio.create_task(calls(limit, 200))
    await clock.advance(0.2)
    assert waiting.done()
    assert await waiting == 92


async def test_all_keys_are_told_and_each_once(clock):
    jetstream = JetStream()
    limit = shared("10/hour", jetstream, by="caller")
    await into_window(clock, jetstream, 3600, into=1)
    for number in range(250):
        await calls(limit, 2, caller=f"c{number}")
    jetstream.restart()
    await clock.advance(4)
    assert len(jetstream.counts) == 250
    assert set(jetstream.counts.values()) == {2}
    assert await calls(limit, 20, caller="c7") == 8


async def test_a_new_stream_is_known_by_its_creation_however_busy_it_is(clock):
    jetstream = JetStream()
    one, other = (shared("10/hour", jetstream) for _ in range(2))
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(one, 10) == 10
    jetstream.forget()  # by a server that nobody was connected to
    jetstream.seq, jetstream.created = 1000, jetstream.now()
    await clock.advance(61)
    assert await calls(one, 1) == 0
    await clock.advance(1)
    assert await calls(other, 10) == 0


async def test_a_restarted_server_without_its_counters_yet_is_told_later(clock):
    jetstream = JetStream()
    one, other = (shared("10/hour", jetstream) for _ in range(2))
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(one, 10) == 10
    jetstream.mood = "gone"
    jetstream.restart()
    await clock.advance(3)
    jetstream.mood = "well"
    await clock.advance(2)
    assert await calls(other, 10) == 0


async def test_a_quota_that_is_no_more_is_not_kept_by_the_connection(clock):
    jetstream = JetStream()
    kept = weakref.ref(shared("10/hour", jetstream))
    gc.collect()
    assert kept() is None
    jetstream.restart()


# Waiting


async def test_tokens_are_asked_for_outside_of_the_call_that_needs_them(clock):
    during = []
    jetstream = JetStream(delay=lambda: during.append(CURRENT.get()) or 0.0)
    token = CURRENT.set(Request("hotel.book", b"", b"", 0.0, 1e9))
    assert await calls(shared("1000/minute", jetstream), 100) == 100
    CURRENT.reset(token)
    assert set(during) == {None}


async def test_all_who_wait_share_one_lease(clock):
    jetstream = JetStream(delay=lambda: 0.05)
    limit = shared("1000/minute", jetstream)
    await into_window(clock, jetstream, 60)
    tasks = [asyncio.create_task(call(limit)) for _ in range(50)]
    await clock.advance(0.3)
    assert all(task.done() and task.result() for task in tasks)
    assert len(jetstream.added) <= 2


async def test_a_call_waits_until_its_deadline_and_no_longer(clock):
    jetstream = JetStream()
    jetstream.mood = "silent"
    limit = shared("1000/minute", jetstream)
    waiting = asyncio.create_task(call(limit, patience=0.125))
    await clock.advance(0.124)
    assert not waiting.done()
    await clock.advance(0.001)
    assert waiting.done()
    with pytest.raises(DeadlineExceeded) as caught:
        await waiting
    assert caught.value.executed is False


async def test_who_gives_up_takes_no_token(clock):
    jetstream = JetStream(delay=lambda: 0.05)
    limit = shared("2/hour", jetstream)
    given_up = asyncio.create_task(call(limit))
    await clock.advance(0.01)
    given_up.cancel()
    await clock.advance(1)
    assert given_up.cancelled()
    tasks = [asyncio.create_task(call(limit)) for _ in range(3)]
    await clock.advance(1)
    assert sum(task.result() for task in tasks) == 2


async def test_no_task_is_left(clock):
    before = asyncio.all_tasks()
    jetstream = JetStream()
    limit = shared("100/minute", jetstream)
    await calls(limit, 200)
    jetstream.mood = "gone"
    await clock.advance(60)
    waiting = asyncio.create_task(calls(limit, 200))
    await clock.advance(10)
    await waiting
    assert asyncio.all_tasks() == before


def test_a_loop_may_end_while_tokens_are_asked_for():
    async def main():
        limit = shared("100/minute", JetStream(delay=lambda: 60))
        with pytest.raises(DeadlineExceeded):
            await call(limit, patience=0.01)

    asyncio.run(main())


# Without JetStream


async def alone(clock, jetstream, limit, number):
    """How many of so many calls are let through, JetStream being away."""
    tasks = [asyncio.create_task(call(limit)) for _ in range(number)]
    await clock.advance(0.25 + 0.31)
    return sum(task.result() for task in tasks)


@pytest.mark.parametrize("mood", ["gone", "silent"])
async def test_each_instance_takes_its_part_while_jetstream_is_away(clock, caplog, mood):
    caplog.set_level(logging.INFO, "meshkit.quota")
    jetstream = JetStream()
    jetstream.mood = mood
    limit = shared("100/minute", jetstream)
    await into_window(clock, jetstream, 60)
    assert await alone(clock, jetstream, limit, 200) == 25
    for _ in range(4):
        await clock.advance(5)
        await calls(limit, 3)
    assert len(caplog.records) == 1
    assert "the rate limit of hotel is not shared" in caplog.text
    jetstream.mood = "well"
    await clock.advance(5)
    await call(limit)
    await clock.advance(1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "is shared by all instances again" in caplog.text


async def test_calls_do_not_wait_while_jetstream_is_tried_again(clock):
    jetstream = JetStream()
    jetstream.mood = "silent"
    limit = shared("1000/minute", jetstream)
    await alone(clock, jetstream, limit, 1)
    for _ in range(10):
        await clock.advance(2)
        assert limit.take(Request("hotel.book", b"", b"", 0.0, 1e9)) is None
    assert 2 <= jetstream.pings <= 4


async def test_what_was_let_through_without_jetstream_is_charged_when_it_is_back(clock):
    jetstream = JetStream()
    limit = shared("100/hour", jetstream)
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(limit, 8) == 8
    jetstream.mood = "gone"
    assert await alone(clock, jetstream, limit, 200) == 25 - 8
    jetstream.mood = "well"
    await clock.advance(6)
    await call(limit)
    await clock.advance(1)
    assert max(jetstream.counts.values()) >= 25
    assert 25 + await calls(limit, 200) == 100


async def test_who_knows_that_the_limit_is_reached_lets_nothing_through(clock):
    jetstream = JetStream()
    one, other = (shared("100/hour", jetstream) for _ in range(2))
    await into_window(clock, jetstream, 3600, into=1)
    assert await calls(one, 3) + await calls(other, 200) == 100
    jetstream.mood = "gone"
    assert await alone(clock, jetstream, other, 10) == 0


async def test_many_instances_share_a_small_limit_as_one_each(clock):
    jetstream = JetStream()
    jetstream.mood, jetstream.instances = "gone", 50
    limit = shared("10/minute", jetstream)
    assert await alone(clock, jetstream, limit, 20) == 1


async def test_who_is_no_service_has_the_limit_for_itself(clock):
    jetstream = JetStream()
    jetstream.mood = "gone"
    limit = quota(RateLimit("10/minute", scope="mesh"), "hotel.book", transport=jetstream)
    assert await calls(limit, 20) == 10
    assert jetstream.pings == 0
