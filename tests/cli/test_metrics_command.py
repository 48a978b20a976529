import asyncio
import os
import signal
import socket
import sys

from support import fetch, gated, until, values

from meshkit import connect
from meshkit.transport.server import EmbeddedServer


async def test_once_prints_the_page(meshkit, mesh):
    async with mesh.serve(gated("printed"), instance_id="one"):
        code, out, err = await meshkit("metrics", "--once")
    assert (code, err) == (0, "")
    found = values(out)
    assert (
        found[
            'meshkit_server_in_flight{service_name="printed",service_instance_id="one",rpc_method="printed.wait"}'
        ]
        == 0
    )
    assert found["meshkit_gather_up"] == 1
    assert "# TYPE meshkit_gather_instances gauge\n" in out


async def test_once_with_a_server_prints_what_it_says(meshkit, tmp_path):
    with EmbeddedServer(monitor=0) as server:
        code, out, err = await meshkit(
            "metrics", "--once", "--nats", server.url, "--server", server.monitor_url
        )
    assert (code, err) == (0, "")
    assert values(out)[f'gnatsd_varz_connections{{server_id="{server.monitor_url}"}}'] == 1


async def test_what_strangers_call_themselves_does_not_drive_the_terminal(on_terminal, mesh):
    evil = b'{"name": "evil", "id": "1", "served": [{"name": "e", "subject": "\\u001b[2Jx", "requests": 1}]}'

    def answer(message):
        mesh.transport.tell(message.reply, evil)

    await mesh.transport.subscribe("_MESH.stats", answer)
    await mesh.transport.flush()
    shown = await on_terminal("metrics", "--once")
    assert 'rpc_method=" [2Jx"' in shown
    assert "\x1b" not in shown


async def test_what_strangers_call_themselves_adds_no_lines(meshkit, mesh):
    evil = '{"name": "evil", "id": "1", "published": 1, "version": "v%sforged 1%sforged 2\\rforged 3"}'

    def answer(message):
        mesh.transport.tell(message.reply, (evil % ("\u2028", "\x85")).encode())

    await mesh.transport.subscribe("_MESH.stats", answer)
    await mesh.transport.flush()
    code, out, _ = await meshkit("metrics", "--once")
    assert code == 0
    assert "v\u2028forged 1\x85forged 2\rforged 3" in out
    assert "\nforged" not in out


async def test_it_shows_them_until_it_is_told_to_stop(nats_server, unused_port, mesh):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "metrics", "--port", str(unused_port), "--nats", nats_server.url),
        stdout=asyncio.subprocess.PIPE,
    )
    said = await process.stdout.readline()
    assert said.decode() == f"{nats_server.url} is shown at http://127.0.0.1:{unused_port}/metrics\n"
    async with mesh.serve(gated("watched")):
        status, headers, body = await fetch(unused_port)
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'service_name="watched"' in body
        assert (await fetch(unused_port, "/livez"))[0] == 200
        assert (await fetch(unused_port, "/readyz"))[0] == 200
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_a_port_that_is_taken_is_said(meshkit):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = await meshkit("metrics", "--port", str(port))
    assert (code, out, err) == (78, "", f"meshkit: the metrics port {port} is taken; choose another one\n")


async def test_what_is_no_url_of_a_server_is_said(meshkit):
    code, _, err = await meshkit("metrics", "--once", "--server", "nats://127.0.0.1:4222")
    assert (code, err.count("\n")) == (78, 1)
    assert "is not where a nats-server's monitoring is; write http://127.0.0.1:8222" in err


async def test_without_a_server_it_ends(meshkit, unused_port):
    code, _, err = await meshkit("metrics", "--once", "--nats", f"nats://127.0.0.1:{unused_port}")
    assert (code, err.count("\n")) == (69, 1)


async def test_a_server_can_be_asked_to_tell_of_itself(tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "server", "--port", "0", "--monitor-port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    name, _, url, monitor = (await process.stdout.readline()).decode().split()
    assert (name, monitor.startswith("http://127.0.0.1:")) == ("nats-server", True)
    assert (await fetch(int(monitor.rpartition(":")[2]), "/healthz"))[0] == 200
    async with connect(url) as mesh:
        await until(lambda: mesh.transport.is_connected)
    process.terminate()
    assert await process.wait() == 0
