import asyncio
import subprocess
import sys
import time

import anyio
import nats
import pytest

from meshkit import Service
from meshkit.testing import Clock


@pytest.fixture
def run_pytest(tmp_path):
    """Runs tests in a project of their own, as those of a user of meshkit."""

    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\n")

    def run(tests):
        (tmp_path / "test_users.py").write_text(f"import asyncio\nimport pytest\n{tests}")
        command = [sys.executable, "-m", "pytest", "-q"]
        return subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True).stdout

    return run


async def test_nats_server_is_a_real_one(nats_server):
    async with await nats.connect(nats_server.url) as nc:
        await nc.jetstream().account_info()


async def test_mesh_serves_and_calls(mesh, nats_server):
    service = Service("greeter")

    @service.endpoint()
    async def hello(name: str) -> str:
        return f"Hello {name}"

    async with mesh.serve(service):
        assert await mesh.call(hello, "Ann") == "Hello Ann"
    assert mesh.transport.server_url == nats_server.url


def test_users_need_nothing_but_the_fixtures(run_pytest):
    output = run_pytest("""
@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_server_and_clock(nats_server, clock):
    before = clock.now()
    await clock.advance(60)
    assert clock.now() == asyncio.get_running_loop().time() == before + 60

@pytest.fixture(scope="module")
def url(nats_server):
    return nats_server.url

def test_one_server_for_the_session(nats_server, url):
    assert nats_server.url == url
""")
    assert "2 passed" in output, output


async def test_time_stands_still(clock):
    loop = asyncio.get_running_loop()
    before = loop.time()
    time.sleep(0.01)  # noqa: ASYNC251 - real time has to pass
    await anyio.to_thread.run_sync(time.sleep, 0.01)
    assert loop.time() == clock.now() == before


async def test_advance_is_exact(clock):
    loop = asyncio.get_running_loop()
    before = loop.time()
    for _ in range(100):
        await clock.advance(0.25)
    assert loop.time() == before + 25


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1 / 3, 0.7, 1e-4, 86400.1])
async def test_no_less_than_what_was_asked_for_passes(clock, seconds):
    for _ in range(50):
        before = clock.now()
        await clock.advance(seconds)
        assert seconds <= clock.now() - before < seconds + 1e-6


async def test_a_long_wait_takes_no_time(clock):
    began = time.monotonic()
    waiting = asyncio.create_task(asyncio.sleep(3600))
    await clock.advance(3599.9)
    assert not waiting.done()
    await clock.advance(0.1)
    assert waiting.done()
    assert time.monotonic() - began < 5


async def test_timers_fire_in_their_order_each_at_its_time(clock):
    start = clock.now()
    fired = []

    async def wait(seconds):
        await asyncio.sleep(seconds)
        fired.append((seconds, clock.now() - start))

    async with asyncio.TaskGroup() as group:
        for seconds in (0.75, 0.25, 2.0, 0.5):
            group.create_task(wait(seconds))
        await clock.advance(1)
        assert fired == [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75)]
        await clock.advance(1)
    assert fired[-1] == (2.0, 2.0)


@pytest.mark.parametrize(("interval", "span"), [(1.0, 60), (0.1, 1.0), (0.1, 10), (0.3, 0.9)])
async def test_timers_set_on_the_way_fire_too(clock, interval, span):
    beats = []

    async def beat():
        while True:
            await asyncio.sleep(interval)
            beats.append(clock.now())

    heart = asyncio.create_task(beat())
    await clock.advance(span)
    assert len(beats) == round(span / interval)
    heart.cancel()


async def test_what_a_timer_wakes_has_run(clock):
    done = []

    async def deep(level):
        if level:
            await asyncio.create_task(deep(level - 1))
        else:
            await asyncio.sleep(1)
        done.append(level)

    task = asyncio.create_task(deep(20))
    await clock.advance(1)
    assert done == list(range(21))
    await task


async def test_polling_does_not_stop_the_clock(clock):
    loop = asyncio.get_running_loop()
    polls = iter(range(1_000_000))

    def poll():
        next(polls)
        loop.call_soon(poll)

    poll()
    waiting = asyncio.create_task(asyncio.sleep(1))
    await clock.advance(1)
    assert waiting.done()


async def test_timeouts_go_by_the_clock(clock):
    async def late():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        with anyio.move_on_after(5) as scope:
            await anyio.sleep_forever()
        return scope.cancelled_caught

    task = asyncio.create_task(late())
    await clock.advance(9.5)
    assert not task.done()
    await clock.advance(0.5)
    assert await task


async def test_a_timer_that_a_sum_of_floats_put_off_fires_too(clock):
    fired = []
    due = clock.now() + 1 + 5e-7
    asyncio.get_running_loop().call_at(due, fired.append, "fired")
    await clock.advance(1)
    assert fired
    assert clock.now() == due


async def test_a_cancelled_timer_neither_fires_nor_counts(clock):
    before = clock.now()
    fired = []
    asyncio.get_running_loop().call_at(before + 1 + 5e-7, fired.append, "cancelled").cancel()
    await clock.advance(1)
    assert not fired
    assert clock.now() == before + 1


async def test_the_network_goes_on(clock, nats_server):
    async with await nats.connect(nats_server.url) as nc:

        async def echo(message):
            await message.respond(message.data)

        await nc.subscribe("echo", cb=echo)
        assert (await nc.request("echo", b"1")).data == b"1"


async def test_what_is_on_its_way_arrives_before_time_moves(clock, nats_server):
    async with await nats.connect(nats_server.url) as nc:

        async def echo(message):
            await asyncio.sleep(0.5)
            await message.respond(message.data)

        await nc.subscribe("echo", cb=echo)
        request = asyncio.create_task(nc.request("echo", b"1", timeout=1))
        await clock.advance(60)
        assert (await request).data == b"1"


async def test_connections_outlive_a_long_advance(clock, nats_server):
    lost = []

    async def note():
        lost.append(clock.now())

    async with await nats.connect(nats_server.url, ping_interval=10, disconnected_cb=note) as nc:
        await clock.advance(600)
        await nc.flush()
        assert not lost


async def test_a_forgotten_timer_does_not_hang_the_test(clock, monkeypatch):
    monkeypatch.setattr("meshkit.testing._PATIENCE", 0.1)
    began = clock.now()
    await asyncio.sleep(0.1)
    assert clock.now() - began >= 0.1
    later = clock.now()
    await clock.advance(1)
    assert clock.now() >= later + 1


def test_time_is_never_set_back(run_pytest):
    output = run_pytest("""
@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.fixture(scope="module", autouse=True)
async def times():  # one event loop for the module
    return []

async def test_advance(clock, times):
    await clock.advance(3600)
    times.append(clock.now())

async def test_afterwards(times):
    await asyncio.sleep(0.01)
    assert 0 < asyncio.get_running_loop().time() - times[0] < 60

async def test_again(clock, times):
    await clock.advance(3600)
    assert 3600 < clock.now() - times[0] < 3660
""")
    assert "3 passed" in output, output


def test_another_kind_of_loop_is_refused():
    class Loop(asyncio.AbstractEventLoop):
        pass

    with pytest.raises(TypeError, match="The clock needs asyncio's own event loop, not one of test_testing"):
        Clock(Loop())
