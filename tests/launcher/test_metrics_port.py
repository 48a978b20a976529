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
    assert f"meshkit: the metrics port {port} is taken; choose another one" in str(run)
    assert "Traceback" not in str(run)


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
