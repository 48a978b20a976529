"""The adaptive limit, on a service of known capacity."""

import asyncio
import random
from collections import deque

import pytest

from meshkit import MeshError
from meshkit.layers.adaptive import Gradient
from meshkit.layers.concurrency import Concurrency
from meshkit.message import Request, Response


class Simulated:
    """Handles `capacity` requests at a time in about `usual` seconds each; the others wait inside.

    How long one takes is between 0.8 and 1.2 times that, or `varied`: anything, with that as its mean.
    """

    def __init__(self, capacity, usual, *, varied=False):
        self.capacity, self.usual, self.varied = capacity, usual, varied
        self.answered = 0
        self._busy = 0
        self._waiting = deque()
        self._random = random.Random(4)

    async def __call__(self, request):
        if self._busy >= self.capacity:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._busy += 1
        factor = self._random.expovariate(1) if self.varied else self._random.uniform(0.8, 1.2)
        await asyncio.sleep(self.usual * factor)
        self._busy -= 1
        self.answered += 1
        for _ in range(min(self.capacity - self._busy, len(self._waiting))):
            self._waiting.popleft().set_result(None)
        return Response(b"")


class Load:
    """Clients that always want something, and come again soon when they are refused."""

    def __init__(self, service, clients, *, most=200):
        self.service = service
        self.bound = Concurrency(most, 0, "test", adaptive=True)
        self._call = self.bound.layer(service)
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(clients)]

    async def _ask(self):
        while True:
            try:
                await self._call(Request("x", b"", b"", 0.0, 1e9))
            except MeshError:
                await asyncio.sleep(self.service.usual)

    async def run(self, clock, seconds):
        """Share of its capacity that the service has used, and the mean of the limit."""
        answered, limits = self.service.answered, []
        for _ in range(seconds):
            await clock.advance(1)
            limits.append(self.bound.limit)
        share = (self.service.answered - answered) * self.service.usual / self.service.capacity / seconds
        return share, sum(limits) / seconds

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_it_finds_the_capacity_from_below(clock):
    async with Load(Simulated(60, 0.2), clients=180) as load:
        assert load.bound.limit < 60
        await load.run(clock, 12)
        share, limit = await load.run(clock, 20)
    assert share > 0.96
    assert 55 <= limit <= 95


async def test_it_finds_the_capacity_from_above(clock):
    service = Simulated(60, 0.1)
    async with Load(service, clients=150) as load:
        await load.run(clock, 5)
        service.capacity = 8
        _, before = await load.run(clock, 1)
        assert before > 20
        await load.run(clock, 15)
        share, limit = await load.run(clock, 20)
    assert share > 0.96
    assert 7 <= limit <= 20


async def test_it_does_not_get_used_to_an_overload_that_lasts(clock):
    async with Load(Simulated(10, 0.1), clients=60) as load:
        await load.run(clock, 10)
        _, early = await load.run(clock, 20)
        await load.run(clock, 60)
        _, late = await load.run(clock, 20)
    assert late < early * 1.3
    assert late < 25


async def test_the_quick_ones_that_end_first_are_not_taken_for_all(clock):
    async with Load(Simulated(100, 0.5, varied=True), clients=150) as load:
        share, _ = await load.run(clock, 10)
    assert share > 0.4


@pytest.mark.parametrize("factor", [4, 20])
async def test_where_everything_takes_longer_for_good_it_does_not_stay_low(clock, factor):
    """With as many at a time as before; a limit that only sees latency first takes it for load."""
    service = Simulated(100, 0.05)
    async with Load(service, clients=100) as load:
        await load.run(clock, 10)
        service.usual *= factor
        await load.run(clock, 30)
        share, limit = await load.run(clock, 10)
    assert share > 0.9
    assert limit > 90


@pytest.mark.parametrize("what", ["capacity", "latency"])
async def test_after_a_brown_out_it_is_back_in_five_seconds(clock, what):
    service = Simulated(50, 0.1)
    async with Load(service, clients=60) as load:
        await load.run(clock, 10)
        if what == "capacity":
            service.capacity = 5
        else:
            service.usual = 1.0
        _, limit = await load.run(clock, 20)
        assert limit >= 4
        service.capacity, service.usual = 50, 0.1
        await load.run(clock, 5)
        share, limit = await load.run(clock, 5)
    assert share > 0.95
    assert limit > 45


async def test_a_limit_that_is_not_used_stays(clock):
    service = Simulated(100, 0.05)
    async with Load(service, clients=9) as load:
        before = load.bound.limit
        for service.usual in (0.05, 0.5, 0.01):
            await load.run(clock, 5)
            assert load.bound.limit == before


async def test_who_waits_gets_the_slots_that_are_added(clock):
    service = Simulated(1000, 0.1)
    bound = Concurrency(1000, 200, "test", adaptive=True)
    call = bound.layer(service)
    tasks = [asyncio.create_task(call(Request("x", b"", b"", 0.0, 1e9))) for _ in range(150)]
    for _ in range(10):
        await clock.advance(0.1)
        assert bound.running == bound.limit or bound.waiting == 0
    await clock.advance(2)
    assert service.answered == 150
    await asyncio.gather(*tasks)
    assert (bound.running, bound.waiting) == (0, 0)


@pytest.mark.parametrize("most", [1, 2, 10, 50])
async def test_it_keeps_to_the_limit_that_is_declared(clock, most):
    async with Load(Simulated(500, 0.05), clients=100, most=most) as load:
        for _ in range(25):
            await clock.advance(0.1)
            assert min(4, most) <= load.bound.limit <= most
            assert load.bound.running <= most
        assert load.bound.limit == most


@pytest.mark.parametrize(("before", "now", "shrinks"), [(0.1, 0.3, False), (1.0, 0.1, True)])
async def test_what_becomes_usual_while_the_limit_is_not_used(clock, before, now, shrinks):
    gradient = Gradient(100)
    for latency, running, windows in ((before, 20, 5), (now, 1, 700), (0.3, 1000, 5)):
        limit = gradient.limit
        for _ in range(windows):
            await clock.advance(0.1)
            for _ in range(100):
                gradient.add(latency, clock.now(), running=running, answered=True)
    assert (gradient.limit < limit) == shrinks


async def test_what_it_takes_with_the_fewest_at_a_time_is_usual(clock):
    """Where it takes long the next dip may be minutes away."""
    gradient = Gradient(100)
    limits = []
    for latency, windows in ((0.1, 58), (2.0, 30)):
        for _ in range(windows):
            await clock.advance(0.1)
            for _ in range(100):
                gradient.add(latency, clock.now(), running=gradient.limit, answered=True)
            limits.append(gradient.limit)
    assert min(limits[-30:]) == 4
    assert limits[-1] > 20


async def test_a_failure_says_how_long_it_takes_only_if_it_took_long(clock):
    gradient = Gradient(100)

    async def see(latency, *, answered):
        for _ in range(5):
            await clock.advance(0.1)
            for _ in range(100):
                gradient.add(latency, clock.now(), running=gradient.limit, answered=answered)
        return gradient.limit, gradient._usual

    used_to = await see(0.1, answered=True)
    assert await see(0.001, answered=False) == used_to
    limit, _ = await see(2.0, answered=False)
    assert limit < used_to[0] / 2
