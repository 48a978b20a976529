import asyncio
import os
import re
import signal
import socket
import sys
import textwrap

import pytest
from support import fetch

from meshkit import CallPolicy, connect

# Until the service is there.
PATIENT = CallPolicy(timeout=20, retries=100, retry_delay=0.1, retry_delay_most=0.2)

ROOMS = """
    import os
    from meshkit import Service

    service = Service("rooms")

    @service.endpoint(queue=None)
    async def process() -> int:
        return os.getpid()
"""


@pytest.fixture
def ports():
    """The first of two ports in a row on which nothing listens."""
    while True:
        with socket.create_server(("", 0)) as one:
            port = one.getsockname()[1]
            try:
                socket.create_server(("", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port


def rooms(folder):
    (folder / "rooms.py").write_text(textwrap.dedent(ROOMS))
    return folder


async def test_each_worker_has_a_port_and_keeps_it(launch, tmp_path, ports):
    run = launch(rooms(tmp_path), "rooms.py", "--workers", "2", "--metrics-port", str(ports))
    run.wait_for(rf"rooms#1 ready, metrics on port {ports}$", rf"rooms#2 ready, metrics on port {ports + 1}$")
    instances = set()
    for port in (ports, ports + 1):
        status, _, text = await fetch(port, "/readyz")
        assert status == 200
        instances |= set(re.findall(r'"id":"(\w+)"', text))
    assert len(instances) == 2
    os.kill(run.workers()[0], signal.SIGKILL)
    run.wait_for(r"rooms#\d ready, metrics on port")
    for port in (ports, ports + 1):
        assert (await fetch(port, "/readyz"))[0] == 200


async def test_a_port_that_is_taken_ends_it_with_a_sentence(launch, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        run = launch(rooms(tmp_path), "rooms.py", "--metrics-port", str(port))
        assert run.ended() == 78
    assert f"meshkit: rooms#1: the metrics port {port} is taken; choose another one" in str(run)
    assert "Traceback" not in str(run)


def test_a_port_that_is_taken_when_a_worker_comes_back_is_tried_again(launch, tmp_path, unused_port):
    taking = f"""
    import pathlib, socket

    if pathlib.Path("taken").exists():
        taken = socket.create_server(("", {unused_port}))
    """
    (tmp_path / "rooms.py").write_text(textwrap.dedent(ROOMS) + textwrap.dedent(taking))
    run = launch(tmp_path, "rooms.py", "--metrics-port", str(unused_port))
    run.wait_for("rooms#1 ready")
    (tmp_path / "taken").touch()
    os.kill(run.workers()[0], signal.SIGKILL)
    run.wait_for(rf"rooms#1 failed \(the metrics port {unused_port} is taken; .*starts again in")
    (tmp_path / "taken").unlink()
    run.wait_for(f"rooms#1 ready, metrics on port {unused_port}$")


def test_there_must_be_a_port_for_each(launch, tmp_path):
    run = launch(rooms(tmp_path), "rooms.py", "--workers", "2", "--metrics-port", "65535")
    assert run.ended() == 78
    assert "2 workers need the ports 65535 to 65536, and 65535 is the last one" in str(run)


async def test_the_embedded_server_tells_of_itself(launch, tmp_path):
    run = launch(rooms(tmp_path), "rooms.py", "--monitor-port", "0")
    [found] = run.wait_for(r"^nats-server .* \(embedded\) nats://\S+, monitoring http://127.0.0.1:(\d+)$")
    assert (await fetch(int(found[1]), "/healthz"))[0] == 200


def test_another_server_does_not(launch, tmp_path, nats_server):
    run = launch(rooms(tmp_path), "rooms.py", "--monitor-port", "0", "--nats", nats_server.url)
    assert run.ended() == 78
    assert "--monitor-port is for an embedded nats-server" in str(run)


async def test_a_service_that_runs_itself_has_a_port_too(tmp_path, nats_server, unused_port):
    code = textwrap.dedent(ROOMS) + f"\nservice.run({nats_server.url!r}, metrics_port={unused_port})\n"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    async with connect(nats_server.url) as mesh:
        assert await mesh.call("rooms.process", policy=PATIENT) == process.pid
    status, _, text = await fetch(unused_port, "/readyz")
    assert (status, '"service":"rooms"' in text) == (200, True)
    assert 'rpc_method="rooms.process"' in (await fetch(unused_port))[2]
    process.terminate()
    assert await process.wait() == 0


SLOW_TO_START = """
    import asyncio
    import pathlib

    @service.lifespan
    async def lifespan():
        while not pathlib.Path("may-start").exists():
            await asyncio.sleep(0.01)
        yield
"""


async def statuses(port, up):
    """What /readyz says from the first answer on, until it is well; `up` is created after a few."""
    said = []
    async with asyncio.timeout(20):
        while 200 not in said:
            try:
                said.append((await fetch(port, "/readyz"))[0])
            except ConnectionRefusedError:
                await asyncio.sleep(0)
            if len(said) == 10:
                assert 200 not in said
                up.touch()
    return said


async def test_a_worker_is_not_ready_before_its_service_is_up(launch, tmp_path, unused_port):
    (tmp_path / "rooms.py").write_text(textwrap.dedent(ROOMS) + textwrap.dedent(SLOW_TO_START))
    launch(tmp_path, "rooms.py", "--metrics-port", str(unused_port))
    assert len(await statuses(unused_port, tmp_path / "may-start")) > 10


async def test_a_service_that_runs_itself_is_not_ready_before_it_is_up(tmp_path, nats_server, unused_port):
    code = textwrap.dedent(ROOMS) + textwrap.dedent(SLOW_TO_START)
    code += f"\nservice.run({nats_server.url!r}, metrics_port={unused_port})\n"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=tmp_path)
    assert len(await statuses(unused_port, tmp_path / "may-start")) > 10
    process.terminate()
    assert await process.wait() == 0
