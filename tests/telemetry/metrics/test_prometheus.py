"""A real Prometheus reads what meshkit shows, and knows what was done."""

import asyncio
import re
import socket
import sys

import pytest
from prometheus import prometheus
from support import fetch

from meshkit import NotFound, connect

ROOMS = """
from meshkit import NotFound, Service

service = Service("rooms")

@service.endpoint("rooms.{number}")
async def book(number: int) -> int:
    if number > 100:
        raise NotFound("no such room")
    return number
"""


class Command:
    """A `meshkit` command that runs until the block ends; `said` waits until it has printed something."""

    def __init__(self, *arguments):
        self._arguments = arguments
        self._out = ""

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshkit", *self._arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def said(self, pattern):
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, self._out)):
                line = await self._process.stdout.readline()
                assert line, self._out
                self._out += line.decode()
        return found[1]

    async def __aexit__(self, *_):
        self._process.terminate()
        await self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def ports():
    """Two ports on which nothing listens."""
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


async def test_prometheus_reads_a_worker_and_the_whole_mesh(tmp_path, ports):
    (tmp_path / "rooms.py").write_text(ROOMS)
    worker_port, mesh_port = ports
    run = Command(
        "run", str(tmp_path / "rooms.py"), "--metrics-port", str(worker_port), "--monitor-port", "0"
    )
    async with run:
        url = await run.said(r"(nats://[0-9.:]+)")
        monitoring = await run.said(r"monitoring (http://\S+)")
        assert await run.said(r"rooms#1 ready, metrics on port (\d+)") == str(worker_port)
        metrics = Command("metrics", "--port", str(mesh_port), "--nats", url, "--server", monitoring)
        async with metrics, connect(url) as mesh:
            await metrics.said(r"(http://\S+/metrics)")
            for number in range(1, 121):
                if number > 100:
                    with pytest.raises(NotFound):
                        await mesh.call(f"rooms.{number}")
                else:
                    await mesh.call(f"rooms.{number}")
            targets = {"worker": f"127.0.0.1:{worker_port}", "mesh": f"127.0.0.1:{mesh_port}"}
            with prometheus(targets, interval="1s") as server:
                await seen(server, "rpc_server_call_duration_seconds_count", jobs=2)
                check(server, monitoring)
            assert (await fetch(mesh_port, "/readyz"))[0] == 200


async def seen(server, metric, *, jobs):
    async with asyncio.timeout(30):
        while len(await asyncio.to_thread(server.query, f"group by (job) ({metric})")) < jobs:
            await asyncio.sleep(0.1)


def check(server, monitoring):
    assert server.targets() == {"worker": ("up", ""), "mesh": ("up", "")}
    for job in ("worker", "mesh"):
        calls = (
            f'rpc_server_call_duration_seconds_count{{job="{job}",service_name="rooms",rpc_method="rooms.*"'
        )
        assert server.value(f'sum({calls},error_type=""}})') == 100
        assert server.value(f'sum({calls},error_type="NotFound"}})') == 20
        bins = calls.replace("_count", "_bucket")
        half = server.value(f"histogram_quantile(0.5, sum by (le) ({bins}}}))")
        assert 0 < half < 1
        assert server.value(f'max(meshkit_connection_up{{job="{job}",service_name="rooms"}})') == 1
        assert server.value(f'count(meshkit_instance_start_time_seconds{{job="{job}"}})') == 1
    assert server.value("meshkit_gather_instances") == 1
    assert server.value("meshkit_gather_up") == 1
    assert 0.2 < server.value("meshkit_gather_duration_seconds") < 1
    assert server.value(f'nats_server_up{{server_id="{monitoring}"}}') == 1
    # The worker, the test and the command.
    assert server.value(f'gnatsd_varz_connections{{server_id="{monitoring}"}}') == 3
    assert server.value("count(nats_connection_subscriptions) >= 3") == 3
