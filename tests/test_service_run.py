"""`service.run()`, the blocking form: a script of its own."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest
from support import until

from meshkit import connect
from meshkit.transport.server import EmbeddedServer

SCRIPT = """
import asyncio
from meshkit import Service

service = Service("script", version="3.1.4")

@service.endpoint()
async def hello() -> str:
    return "hello"

@service.endpoint()
async def loop() -> str:
    return type(asyncio.get_running_loop()).__module__

service.run()
"""


@pytest.fixture
def server(tmp_path):
    """With a system account, to look at its connections."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "accounts {\n A { users = [{ user: ann, password: secret }] }\n"
        " SYS { users = [{ user: sys, password: secret }] }\n}\nsystem_account: SYS\n"
    )
    with EmbeddedServer(config=config) as server:
        yield server


@pytest.fixture
def script(server, tmp_path, monkeypatch):
    """The script, running."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("NATS_URL", server.url)
    monkeypatch.setenv("NATS_USER", "ann")
    monkeypatch.setenv("NATS_PASSWORD", "secret")
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    yield process
    process.kill()
    process.wait()


async def test_it_serves_under_its_name_until_it_is_told_to_stop(script, monkeypatch):
    async with connect() as mesh:
        async with asyncio.timeout(10):
            while not await mesh.services():
                pass
        assert await mesh.call("script.hello") == "hello"
        assert await mesh.call("script.loop") == "uvloop"
        (instance,) = (await mesh.service("script")).instances
    monkeypatch.setenv("NATS_USER", "sys")
    async with connect() as system:
        (reply,) = await system.transport.gather("$SYS.REQ.SERVER.PING.CONNZ", b'{"auth": true}')
    names = [connection.get("name") for connection in json.loads(reply.payload)["data"]["connections"]]
    assert f"script/3.1.4/{instance.id}" in names
    script.send_signal(signal.SIGTERM)
    await until(lambda: script.poll() is not None)
    assert script.returncode == 0
