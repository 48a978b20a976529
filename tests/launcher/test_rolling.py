"""Nothing is lost when a worker leaves, or when the server comes back."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from support import until

from meshkit import NoResponders, connect
from meshkit.transport.server import EmbeddedServer

SERVICE = """
import asyncio, os
from meshkit import Service

service = Service("echo")

@service.endpoint()
async def who(number: int) -> tuple[int, int]:
    await asyncio.sleep(0.003)
    return number, os.getpid()
"""


@pytest.fixture
def serve(tmp_path):
    """Run the service with so many workers against a server."""
    running = []

    def run(url, workers):
        (tmp_path / "echo.py").write_text(SERVICE)
        command = [
            sys.executable,
            "-m",
            "meshkit",
            "run",
            "echo.py",
            "--nats",
            url,
            "--workers",
            str(workers),
        ]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        running.append(process)
        ready = 0
        while ready < workers:
            line = process.stdout.readline()
            assert line, f"meshkit run ended with {process.wait()}"
            ready += line.rstrip().endswith(" ready")

    yield run
    for process in running:
        process.terminate()
    for process in running:
        process.communicate(timeout=30)
        assert process.returncode == 0


async def load(mesh, rate, seconds):
    """Calls at a fixed rate, whatever the answers take; gives the answers and the errors."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    calls = []
    for number in range(rate * seconds):
        if (wait := begin + number / rate - loop.time()) > 0:
            await asyncio.sleep(wait)
        calls.append(asyncio.create_task(mesh.call("echo.who", number, returns=tuple[int, int])))
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_a_worker_that_is_terminated_under_load_loses_no_call(nats_server, serve):
    await asyncio.to_thread(serve, nats_server.url, 2)
    async with connect(nats_server.url) as mesh:
        loading = asyncio.create_task(load(mesh, rate=1000, seconds=3))
        await asyncio.sleep(1)
        _, pid = await mesh.call("echo.who", 0, returns=tuple[int, int])
        os.kill(pid, signal.SIGTERM)
        answers = await loading
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    assert failed == []
    assert [answer[0] for answer in answers] == list(range(3000))
    assert len({answer[1] for answer in answers}) >= 2


async def test_a_killed_server_that_comes_back_answers_who_waited(serve):
    with EmbeddedServer() as server:
        await asyncio.to_thread(serve, server.url, 2)
        async with connect(server.url) as mesh:
            await mesh.call("echo.who", 0)
            await asyncio.to_thread(server.kill)
            await until(lambda: not mesh.transport.is_connected)
            waiting = [asyncio.create_task(patient(mesh, number)) for number in range(20)]
            await asyncio.to_thread(server.restart)
            assert await asyncio.gather(*waiting) == list(range(20))


async def patient(mesh, number):
    """The service may come back a moment after the caller: until then nobody listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await mesh.call("echo.who", number, returns=tuple[int, int], timeout=20))[0]
            except NoResponders:
                await asyncio.sleep(0.02)
