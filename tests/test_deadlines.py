import asyncio
import contextvars
import gc
import weakref

import pytest

from meshkit import Service
from meshkit.deadlines import Deadlines

SECONDS = (0.0, 0.001, 0.0999, 0.1, 0.15, 1.0, 1.05, 1.0500001, 5.0, 61.0, 61.05, 200.0, 86_400.0)


@pytest.fixture
async def watched(clock):
    """Deadlines, the time they begin at, and what happened when."""
    happened = []
    return Deadlines(lambda entry: happened.append((entry, clock.now()))), clock.now(), happened


async def test_each_happens_at_its_own_time_in_order(clock, watched):
    deadlines, begin, happened = watched
    for seconds in reversed(SECONDS):
        deadlines.add(seconds, begin + seconds)
    await clock.advance(86_401)
    assert [entry for entry, _ in happened] == list(SECONDS)
    for entry, at in happened:
        assert at - begin == pytest.approx(entry, abs=1e-4)


async def test_what_is_taken_out_does_not_happen(clock, watched):
    deadlines, begin, happened = watched
    for seconds in SECONDS:
        deadlines.add(f"out after {seconds}", begin + seconds).pop(f"out after {seconds}")
    slot = deadlines.add("out late", begin + 1.05)
    deadlines.add("in", begin + 1.05)
    # Its slot has begun by then, and it has a timer of its own.
    await clock.advance(1.04)
    slot.pop("out late")
    await clock.advance(86_400)
    assert [entry for entry, _ in happened] == ["in"]


async def test_a_slot_that_has_begun_takes_more(clock, watched):
    deadlines, begin, happened = watched
    deadlines.add("early", begin + 1.05)
    await clock.advance(1.04)
    deadlines.add("late", begin + 1.06)
    await clock.advance(0.5)
    assert [entry for entry, _ in happened] == ["early", "late"]


async def test_what_is_taken_out_is_let_go(clock, watched):
    class Answer:
        pass

    deadlines, begin, _ = watched
    answer = Answer()
    deadlines.add(answer, begin + 60).pop(answer)
    gone = weakref.ref(answer)
    del answer
    gc.collect()
    assert gone() is None


async def test_what_is_taken_out_late_is_let_go_however_far_off_its_deadline(clock, watched):
    class Stream:
        pass

    deadlines, begin, happened = watched
    timers = len(asyncio.get_running_loop()._scheduled)
    stream = Stream()
    slot = deadlines.add(stream, begin + 1e8)
    assert deadlines.add("minutes", begin + 130) is slot
    assert deadlines.add("soon", begin + 60.05) is slot
    await clock.advance(100)  # its slot has begun long ago
    slot.pop(stream)
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    await clock.advance(100)
    assert happened == [("soon", pytest.approx(begin + 60.05)), ("minutes", pytest.approx(begin + 130))]
    assert len(asyncio.get_running_loop()._scheduled) == timers


async def test_however_far_off_what_is_over_leaves_neither_slot_nor_timer(mesh):
    service = Service("far")

    @service.endpoint()
    async def away() -> None: ...

    timers = asyncio.get_running_loop()._scheduled
    async with mesh.serve(service) as instance:
        before = len(timers)
        for hours in range(100):
            far = (3600 * hours + second for second in range(60, 70))
            await asyncio.gather(*(mesh.call(away, timeout=seconds) for seconds in far))
        slots = len(instance._deadlines._slots), len(mesh.transport._deadlines._slots)
        assert max(slots) < 50  # of a tenth of a second, while the test runs
        assert len(timers) - before < 100


@pytest.mark.parametrize("seconds", [0.05, 5, 86_400])
async def test_a_timer_does_not_keep_the_context_that_it_was_set_in(watched, seconds):
    class Payload:
        pass

    deadlines, begin, _ = watched
    handled = contextvars.ContextVar("handled")

    def handle(payload):
        handled.set(payload)
        deadlines.add("call", begin + seconds).pop("call")

    payload = Payload()
    contextvars.Context().run(handle, payload)
    gone = weakref.ref(payload)
    del payload
    gc.collect()
    assert gone() is None
