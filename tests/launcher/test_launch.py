import asyncio
import os
import signal
import textwrap

import pytest

import meshkit

ROOMS = """
    import asyncio, logging, os
    from meshkit import Context, Service

    service = Service("rooms")

    @service.endpoint()
    async def process() -> int:
        return os.getpid()

    @service.endpoint()
    async def environment(name: str) -> str:
        return os.environ.get(name, "")

    @service.endpoint()
    async def slow() -> str:
        logging.getLogger("hotel").info("slowly")
        await asyncio.sleep(1)
        return "done"

    @service.endpoint()
    async def left(ctx: Context) -> float:
        return ctx.remaining

    @service.endpoint()
    async def left_elsewhere(ctx: Context) -> float:
        return await ctx.mesh.call("rooms.left")
"""


def hotel(folder, **files):
    for name, code in ({"rooms": ROOMS} | files).items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return folder


@pytest.fixture(scope="module")
def shared(launch, tmp_path_factory):
    """Services with two workers each; what a test does to them it waits to be mended."""
    limited = ROOMS.replace('"rooms"', '"limited"')
    patient = ROOMS.replace('"rooms"', '"patient", timeout="200ms"')
    folder = hotel(tmp_path_factory.mktemp("hotel"), limited=limited, patient=patient)
    (folder / "meshkit.toml").write_text("""
        [services.rooms]
        workers = 2
        env = { HOTEL = "Ritz" }
        [services.limited]
        concurrency = 1
        backlog = 0
        timeout = "200ms"
        [services.patient]
        timeout = false
        [call."rooms.left"]
        timeout = 0.1
        [serve."rooms.*"]
        timeout = 2
    """)
    launched = launch(folder)
    launched.wait_for("rooms#1 ready", "rooms#2 ready", "limited#1 ready", "patient#1 ready")
    return launched


async def test_workers_share_the_calls(shared):
    async with meshkit.connect(shared.url) as mesh:
        processes = {await mesh.call("rooms.process") for _ in range(50)}
    assert processes == set(shared.workers("rooms"))


def test_worker_has_a_session_of_its_own_that_ctrl_c_does_not_reach(shared):
    assert [os.getsid(worker) for worker in shared.workers()] == shared.workers()


async def test_worker_has_the_environment_of_its_table_and_the_servers_url(shared):
    async with meshkit.connect(shared.url) as mesh:
        assert await mesh.call("rooms.environment", "HOTEL") == "Ritz"
        assert await mesh.call("rooms.environment", "NATS_URL") == shared.url
        assert await mesh.call("limited.environment", "HOTEL") == ""


async def test_configuration_overrides_the_code(shared):
    async with meshkit.connect(shared.url) as mesh:
        first, second = await asyncio.gather(
            mesh.call("limited.slow"), mesh.call("limited.slow"), return_exceptions=True
        )
    assert {type(first), type(second)} == {meshkit.DeadlineExceeded, meshkit.Overloaded}
    assert max(first.elapsed, second.elapsed) < 1


async def test_callers_are_told_of_the_configuration(shared):
    async with meshkit.connect(shared.url) as mesh:
        await mesh.directory.learn()
        await mesh.call("limited.process")
    callee = mesh.callees["limited.process"]
    assert (callee.policy.timeout, callee.stands["timeout"]) == (0.2, "service limited 0.1.0 (announced)")


async def test_a_timeout_that_is_switched_off_is_so_for_callers(shared):
    async with meshkit.connect(shared.url) as mesh:
        await mesh.directory.learn()
        assert await mesh.call("patient.slow") == "done"
    callee = mesh.callees["patient.slow"]
    assert (callee.policy.timeout, callee.stands["timeout"]) == (5, "default")


async def test_policies_hold_for_what_is_served_and_called(shared):
    async with meshkit.connect(shared.url) as mesh:
        assert 1 < await mesh.call("rooms.left") <= 2
        assert await mesh.call("rooms.left_elsewhere") <= 0.1


async def test_log_lines_begin_with_the_worker(shared):
    async with meshkit.connect(shared.url) as mesh:
        await mesh.call("rooms.slow")
    shared.wait_for(r"^\d\d:\d\d:\d\d rooms#[12] INFO hotel: slowly \[rooms/\w+ rooms\.slow\]$")


async def test_killed_worker_comes_back(shared):
    victim = shared.workers("limited")[0]
    os.kill(victim, signal.SIGKILL)
    shared.wait_for(r"limited#1 crashed \(SIGKILL\), starts again in 0\.\d s$", "limited#1 ready")
    async with meshkit.connect(shared.url) as mesh:
        assert await mesh.call("limited.process") != victim


def test_killed_worker_that_has_forked_comes_back(launch, tmp_path):
    """What it forked holds its pipes and its connection, and would go on holding them."""
    (tmp_path / "forks.py").write_text(
        "import os, time\n"
        "from meshkit import Service\n"
        "service = Service('forks')\n"
        "@service.lifespan\n"
        "async def around():\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(300)\n"
        "    yield\n"
    )
    launched = launch(tmp_path, "forks.py")
    launched.wait_for("forks#1 ready")
    [victim] = launched.workers()
    os.kill(victim, signal.SIGKILL)
    launched.wait_for(r"forks#1 crashed \(SIGKILL\), starts again", "forks#1 ready")


async def test_killed_server_comes_back_where_it_was(shared):
    url = shared.url
    os.kill(shared.nats_server(), signal.SIGKILL)
    again = [f"{worker} .* connected to NATS again" for worker in ("rooms#1", "rooms#2", "limited#1")]
    shared.wait_for(f"nats-server runs again at {url}", *again)
    async with meshkit.connect(url) as mesh:
        assert await mesh.call("rooms.process") in shared.workers("rooms")


@pytest.mark.parametrize(
    ("number", "loop"),
    [(signal.SIGTERM, "uvloop"), (signal.SIGTERM, "asyncio"), (signal.SIGHUP, "uvloop")],
)
async def test_signal_drains(launch, tmp_path, number, loop):
    launched = launch(hotel(tmp_path), "rooms.py", "--workers", "2", "--loop", loop)
    launched.wait_for("rooms#1 ready", "rooms#2 ready")
    processes = [*launched.workers(), launched.nats_server()]
    async with meshkit.connect(launched.url) as mesh:
        call = asyncio.create_task(mesh.call("rooms.slow"))
        await asyncio.to_thread(launched.wait_for, "hotel: slowly")
        launched.signal(number)
        assert await call == "done"
    assert await asyncio.to_thread(launched.ended) == 0
    launched.wait_for(f"meshkit draining on {number.name}", "rooms#1 stopped", "rooms#2 stopped")
    launched.wait_until_gone(*processes)


async def test_second_signal_kills(launch, tmp_path):
    launched = launch(hotel(tmp_path), "rooms.py")
    launched.wait_for("rooms#1 ready")
    processes = [*launched.workers(), launched.nats_server()]
    async with meshkit.connect(launched.url) as mesh:
        call = asyncio.create_task(mesh.call("rooms.slow"))
        await asyncio.to_thread(launched.wait_for, "hotel: slowly")
        launched.signal(signal.SIGINT)
        await asyncio.to_thread(launched.wait_for, "draining on SIGINT")
        launched.signal(signal.SIGINT)
        assert await asyncio.to_thread(launched.ended) == 128 + signal.SIGINT
        with pytest.raises(meshkit.ConnectionLost):
            await call
    launched.wait_until_gone(*processes)


async def test_second_word_of_a_closing_terminal_does_not_kill(launch, tmp_path):
    """A shell passes SIGHUP on, and the system sends it too."""
    launched = launch(hotel(tmp_path), "rooms.py")
    launched.wait_for("rooms#1 ready")
    async with meshkit.connect(launched.url) as mesh:
        call = asyncio.create_task(mesh.call("rooms.slow"))
        await asyncio.to_thread(launched.wait_for, "hotel: slowly")
        launched.signal(signal.SIGHUP)
        await asyncio.to_thread(launched.wait_for, "draining on SIGHUP")
        launched.signal(signal.SIGHUP)
        assert await call == "done"
    assert await asyncio.to_thread(launched.ended) == 0


def test_closing_terminal_does_not_matter_to_nohup(launch, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launched = launch(hotel(tmp_path), "rooms.py")
    finally:
        signal.signal(signal.SIGHUP, before)
    launched.wait_for("rooms#1 ready")
    launched.signal(signal.SIGHUP)
    [worker] = launched.workers()
    os.kill(worker, signal.SIGKILL)  # to see that it goes on: it would not be started again
    launched.wait_for("starts again", "rooms#1 ready")
    assert "draining" not in str(launched)


async def test_nothing_outlives_a_killed_launcher(launch, tmp_path, nats_server):
    launched = launch(hotel(tmp_path), "rooms.py", NATS_URL=nats_server.url)
    launched.wait_for("rooms#1 ready")
    workers = launched.workers()
    async with meshkit.connect(nats_server.url) as mesh:
        call = asyncio.create_task(mesh.call("rooms.slow"))
        await asyncio.to_thread(launched.wait_for, "hotel: slowly")
        launched.signal(signal.SIGKILL)
        assert await call == "done"  # it drains
    launched.wait_until_gone(*workers)


def test_embedded_server_does_not_outlive_a_killed_launcher(launch, tmp_path):
    launched = launch(hotel(tmp_path), "rooms.py")
    launched.wait_for("rooms#1 ready")
    processes = [*launched.workers(), launched.nats_server()]
    launched.signal(signal.SIGKILL)
    launched.wait_until_gone(*processes)


def test_mistake_that_shows_at_the_start_drains_everything(launch, tmp_path):
    hotel(
        tmp_path,
        bills="""
        from meshkit import ConfigError, Service

        service = Service("bills")

        @service.lifespan
        async def lifespan():
            raise ConfigError("BILLS_DB is not set")
            yield
    """,
    )
    launched = launch(tmp_path, "rooms.py", "bills.py")
    assert launched.ended() == 78
    assert launched.lines[-1] == "meshkit: bills#1: BILLS_DB is not set"


def test_worker_that_crashes_at_its_start_is_tried_again_ever_more_slowly(launch, tmp_path):
    hotel(
        tmp_path,
        bills="""
        from meshkit import Service

        service = Service("bills")

        @service.lifespan
        async def lifespan():
            raise OSError("no database")
            yield
    """,
    )
    launched = launch(tmp_path, "bills.py")
    waits = []
    while len(waits) < 3:
        failed = r"bills#1 failed \(OSError: no database\), starts again in (\d\.\d) s"
        waits.append(float(launched.wait_for(failed)[0][1]))
    assert 0.05 <= waits[0] <= 0.1 <= waits[1] <= 0.2 <= waits[2] <= 0.4
    first = next(index for index, line in enumerate(launched.lines) if line.startswith("Traceback"))
    assert "bills.py" in launched.lines[first + 1]
