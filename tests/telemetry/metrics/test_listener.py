import asyncio
import contextlib
import socket
import struct
from pathlib import Path

import anyio
import pytest
from support import fetch, gated, until

from meshkit import ConfigError, Service, connect
from meshkit.telemetry.metrics.listener import Answer, listening


@pytest.fixture
async def watched(nats_server, unused_port):
    """A mesh with a metrics port; gives both."""
    async with connect(nats_server.url, metrics_port=unused_port) as mesh:
        yield mesh, unused_port


async def test_metrics_are_on_the_page(watched):
    mesh, port = watched
    async with mesh.serve(gated("seen")) as instance:
        status, headers, body = await fetch(port)
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert int(headers["content-length"]) == len(body.encode())
    assert f'service_name="seen",service_instance_id="{instance.id}"' in body


async def test_it_lives_as_long_as_its_event_loop_answers(watched):
    _, port = watched
    status, _, body = await fetch(port, "/livez")
    assert (status, body) == (200, "ok\n")


async def test_head_has_the_headers_only(watched):
    _, port = watched
    status, headers, body = await fetch(port, "/livez", "HEAD")
    assert (status, headers["content-length"], body) == (200, "3", "")


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/", 404, "There is /metrics, /livez, /readyz here.\n"),
        ("GET", "/metrics?now=1", 200, None),
        ("POST", "/metrics", 405, "Only GET and HEAD are answered here.\n"),
        ("GET", "/metrics HTTP/2", 400, "This is an HTTP/1.1 port.\n"),
    ],
)
async def test_what_is_not_there_is_said_in_a_sentence(watched, method, path, status, text):
    _, port = watched
    answered = await fetch(port, path, method)
    assert answered[0] == status
    assert text is None or answered[2] == text
    assert (answered[1].get("allow") == "GET, HEAD") is (status == 405)


async def test_requests_are_bounded(watched):
    _, port = watched
    status, _, text = await fetch(port, "/" + "x" * 10_000)
    assert (status, text) == (431, "A request has 8192 bytes at most.\n")


@pytest.mark.parametrize(
    "request_in_parts",
    [
        [b"GET / HTTP/1.1\n\n"],
        [b"GET / HT", b"TP/1.1\r\nHost: x\r", b"\n\r", b"\n"],
        [b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * (8192 - 16 - 7) + b"\r\n\r\n"],
    ],
)
async def test_requests_come_in_parts_and_without_carriage_returns(unused_port, request_in_parts):
    async with listening(unused_port, {"/": here}):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        for part in request_in_parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            assert (await reader.read()).endswith(b"\r\n\r\nhere")
        writer.close()


async def test_who_says_nothing_is_hung_up_on(clock, unused_port):
    async with listening(unused_port, {}):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
        reading = asyncio.create_task(reader.read())
        await clock.advance(9)
        assert not reading.done()
        await clock.advance(1)
        async with asyncio.timeout(5):
            assert await reading == b""
        writer.close()


async def here():
    return Answer(b"here")


async def test_of_too_many_connections_the_oldest_ends(unused_port):
    async with listening(unused_port, {"/": here}), contextlib.AsyncExitStack() as connections:
        opened = []
        for _ in range(65):
            reader, writer = await asyncio.open_connection("127.0.0.1", unused_port)
            connections.callback(writer.close)
            opened.append(reader)
        async with asyncio.timeout(5):
            assert await opened[0].read() == b""
            assert (await fetch(unused_port, "/"))[2] == "here"
            assert await opened[1].read() == b""
        assert not opened[2].at_eof()


async def test_an_answer_that_nobody_reads_is_not_kept(clock, unused_port):
    async def much():
        return Answer(bytes(30_000_000))

    async with listening(unused_port, {"/": much}):
        with socket.create_connection(("127.0.0.1", unused_port)) as silent:
            before = descriptors()
            silent.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await clock.advance(9.9)
            assert descriptors() == before + 1
            await clock.advance(0.2)
            await until(lambda: descriptors() == before)


def descriptors():
    return len(list(Path("/dev/fd").iterdir()))


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_who_hangs_up_before_the_answer_leaves_no_trace(unused_port, caplog, use_uvloop):
    async def hang_up():
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow():
            asked.set()
            await may_answer.wait()
            return Answer(b"late")

        async with listening(unused_port, {"/": here, "/slow": slow}):
            with socket.create_connection(("127.0.0.1", unused_port)) as caller:
                caller.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
                await asked.wait()
                # Its end is a reset, not a goodbye.
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await fetch(unused_port, "/")
            may_answer.set()
            await fetch(unused_port, "/")

    anyio.run(hang_up, backend_options={"use_uvloop": use_uvloop})
    assert caplog.text == ""


async def test_a_page_that_fails_is_logged_and_the_others_go_on(unused_port, caplog):
    async def broken():
        raise RuntimeError("no ink")

    async def whole():
        return Answer(b"here")

    async with listening(unused_port, {"/broken": broken, "/whole": whole}):
        assert (await fetch(unused_port, "/broken"))[0] == 500
        assert (await fetch(unused_port, "/whole"))[2] == "here"
    assert "no ink" in caplog.text


async def test_a_port_that_is_taken_is_a_mistake(nats_server):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"the metrics port {port} is taken; choose another one"):
            async with connect(nats_server.url, metrics_port=port):
                pass


@pytest.mark.parametrize("port", [0, 65536, "9100"])
async def test_what_is_no_port_is_a_mistake(nats_server, port):
    with pytest.raises(ConfigError, match="metrics_port is a port such as 9100, not "):
        async with connect(nats_server.url, metrics_port=port):
            pass


async def test_the_port_is_free_when_the_connection_has_ended(nats_server, unused_port):
    for _ in range(2):
        async with connect(nats_server.url, metrics_port=unused_port):
            assert (await fetch(unused_port, "/livez"))[0] == 200
    with pytest.raises(OSError, match=r"Connect call failed|refused"):
        await fetch(unused_port)


async def test_a_client_is_ready_while_it_is_connected(watched):
    _, port = watched
    assert (await fetch(port, "/readyz"))[::2] == (200, '{"ready":true,"connected":true,"instances":[]}\n')


async def test_it_is_not_ready_before_it_is_up(watched):
    mesh, port = watched
    service = Service("slow-to-start")
    may_start = asyncio.Event()

    @service.lifespan
    async def lifespan():
        await may_start.wait()
        yield

    serving = contextlib.AsyncExitStack()
    entering = asyncio.create_task(serving.enter_async_context(mesh.serve(service, instance_id="one")))
    await until(lambda: mesh.telemetry.instances)
    status, _, text = await fetch(port, "/readyz")
    assert status == 503
    assert '{"service":"slow-to-start","id":"one","phase":"starting","checks":{}}' in text
    may_start.set()
    await entering
    assert (await fetch(port, "/readyz"))[0] == 200
    await serving.aclose()


async def test_while_it_drains_it_is_not_ready_and_goes_on_showing_metrics(watched):
    mesh, port = watched
    service = gated("draining")
    async with connect(mesh.transport.server_url) as caller, contextlib.AsyncExitStack() as serving:
        await serving.enter_async_context(mesh.serve(service, instance_id="one"))
        call = asyncio.create_task(caller.call("draining.wait"))
        await until(lambda: service.running)
        leaving = asyncio.create_task(serving.pop_all().aclose())
        await until(lambda: mesh.telemetry.instances["draining/one"].phase == "draining")
        status, headers, text = await fetch(port, "/readyz")
        assert (status, headers["content-type"]) == (503, "application/json")
        assert '"phase":"draining"' in text
        assert (await fetch(port, "/livez"))[0] == 200
        assert (
            'meshkit_server_in_flight{service_name="draining",service_instance_id="one",'
            'rpc_method="draining.wait"} 1'
        ) in (await fetch(port))[2]
        service.gate.set()
        assert await call == "done"
        await leaving


async def test_when_all_it_served_has_drained_it_is_not_ready(watched):
    mesh, port = watched
    async with mesh.serve(gated("one")):
        async with mesh.serve(gated("other")):
            pass
        assert (await fetch(port, "/readyz"))[0] == 200
    answer = '{"ready":false,"connected":true,"instances":[]}\n'
    assert (await fetch(port, "/readyz"))[::2] == (503, answer)
    assert (await fetch(port, "/livez"))[0] == 200
    async with mesh.serve(gated("again")):
        assert (await fetch(port, "/readyz"))[0] == 200


async def test_its_dependencies_are_asked(watched):
    mesh, port = watched
    service = Service("depending")
    service.broken = False

    @service.health
    async def database():
        if service.broken:
            raise ConnectionRefusedError("no database at db:5432")

    async with mesh.serve(service):
        status, _, text = await fetch(port, "/readyz")
        assert (status, '"checks":{"database":"ok"}' in text) == (200, True)
        service.broken = True
        status, _, text = await fetch(port, "/readyz")
        assert status == 503
        assert '"checks":{"database":"ConnectionRefusedError: no database at db:5432"}' in text


async def test_it_is_not_ready_while_it_is_disconnected(unused_port):
    from meshkit.transport.server import EmbeddedServer

    with EmbeddedServer() as server:
        async with connect(server.url, metrics_port=unused_port) as mesh, mesh.serve(gated("alone")):
            assert (await fetch(unused_port, "/readyz"))[0] == 200
            server.kill()
            await until(lambda: not mesh.transport.is_connected)
            status, _, text = await fetch(unused_port, "/readyz")
            assert (status, '"connected":false' in text) == (503, True)
            assert (await fetch(unused_port, "/livez"))[0] == 200
            assert 'meshkit_connection_up{service_name="alone"' in (await fetch(unused_port))[2]
            server.restart()
            await until(lambda: mesh.transport.is_connected, 10)
            assert (await fetch(unused_port, "/readyz"))[0] == 200
