"""Each defect of nats-py that the guarded client mends, provoked; `close` and `until` bound the waiting."""

import asyncio
import contextlib
import socket
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from support import gated, until

from meshkit import ConnectionLost, Context, Disconnected, Service, connect
from meshkit.transport.server import EmbeddedServer


def hpub(headers):
    return b"HPUB alive %d %d\r\n%b\r\n" % (len(headers), len(headers), headers)


async def listen(mesh, subject):
    heard = asyncio.Queue()
    await mesh.transport.subscribe(subject, heard.put_nowait)
    await mesh.transport.flush()
    return heard


async def works(mesh, heard, subject):
    await mesh.publish(subject, b"still here")
    async with asyncio.timeout(2):
        assert (await heard.get()).payload == b"still here"


async def test_a_flush_that_is_given_up_leaves_the_connection_alive(proxy):
    async with connect(proxy.url) as mesh:
        heard = await listen(mesh, "alive")
        proxy.hold_replies()
        flush = asyncio.create_task(mesh.transport.flush())
        await asyncio.sleep(0.05)
        flush.cancel()
        await asyncio.gather(flush, return_exceptions=True)
        proxy.release()
        await works(mesh, heard, "alive")
        assert not mesh.transport._client._reading_task.done()
    assert proxy.connections == 1


async def test_a_flush_does_not_overtake_what_it_flushes(proxy):
    """The PING went ahead of what waited to be written, also that of a drain ahead of its UNSUB."""
    async with connect(proxy.url) as mesh:
        interest = await mesh.transport.subscribe("order", lambda _message: None)
        await mesh.transport.flush()
        await proxy.stall(mesh)
        await mesh.transport.publish("order", b"")
        flush = asyncio.create_task(mesh.transport.flush())
        drain = asyncio.create_task(interest.drain())
        await asyncio.sleep(0.01)
        proxy.release()
        await asyncio.gather(flush, drain)
    last = proxy.sent.index(b"PUB order")
    rest = proxy.sent[last:]
    assert b"PING" not in proxy.sent[proxy.sent.index(b"PUB bulk") : last]
    assert rest.index(b"PING") < rest.index(b"UNSUB") < rest.rindex(b"PING")


async def test_a_drain_hands_out_all_that_was_delivered(nats_server):
    async with (
        connect(nats_server.url) as sender,
        connect(nats_server.url) as taker,
        connect(nats_server.url) as other,
    ):
        taken = []
        await other.transport.subscribe("work", taken.append, "q")
        await other.transport.flush()
        sent = 0
        for _ in range(20):
            interest = await taker.transport.subscribe("work", taken.append, "q")
            await taker.transport.flush()
            draining = None
            for number in range(200):
                await sender.transport.publish("work", b"")
                sent += 1
                if number == 100:
                    draining = asyncio.create_task(interest.drain())
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await draining
        await sender.transport.flush()
        await until(lambda: len(taken) == sent)


@pytest.mark.parametrize(
    "said",
    ["User Authentication Expired", "Account Authentication Expired", "maximum subscriptions exceeded"],
)
async def test_an_error_that_the_server_names_is_no_end(proxy, said):
    async with connect(proxy.url) as mesh:
        heard = await listen(mesh, "alive")
        proxy.inject(f"-ERR '{said}'\r\n".encode())
        await until(lambda: proxy.connections == 2 and mesh.transport.is_connected)
        await works(mesh, heard, "alive")


async def test_a_message_over_the_limit_that_got_past_the_check_is_no_end(nats_server):
    async with connect(nats_server.url) as mesh:
        heard = await listen(mesh, "alive")
        client = mesh.transport._client
        before = client.client_id
        await client.publish("large", b"x" * client.max_payload, headers={"One": "too many"})
        await until(lambda: mesh.transport.is_connected and client.client_id != before)
        await works(mesh, heard, "alive")


async def test_credentials_are_not_sent_in_plain_text(proxy):
    with pytest.raises(Disconnected, match="TLS is wanted, but the server does not offer it"):
        async with connect(proxy.url.replace("nats:", "tls:"), user="ann", password="secret", timeout=30):
            pass
    assert b"CONNECT" not in proxy.sent
    assert b"secret" not in proxy.sent


@pytest.mark.parametrize(
    "hostile",
    [
        hpub(b"NATS/1.0"),
        hpub(b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        hpub(b"NATS/1.0\r\n\xff\xfe: \xff\r\n\r\n"),
        hpub(b"\r\n\r\n\r\n\r\n\r\n\r\n"),
        b"PUB alive.\xff\xfe 1\r\nx\r\n",
        b"PUB alive x\xff\xfe 1\r\nx\r\n",
    ],
)
async def test_hostile_bytes_do_not_end_the_connection(nats_server, hostile):
    """Anybody who may publish could end the connection of whoever listens."""
    async with connect(nats_server.url) as mesh:
        heard = await listen(mesh, "alive.>")
        await mesh.transport.subscribe("alive", heard.put_nowait)
        await mesh.transport.flush()
        before = mesh.transport._client.client_id
        await asyncio.to_thread(send_raw, nats_server.port, hostile)
        await works(mesh, heard_after(heard), "alive")
        assert mesh.transport._client.client_id == before


def heard_after(queue):
    """Pass over what the hostile client sent."""

    class Rest:
        async def get(self):
            while (message := await queue.get()).payload != b"still here":
                pass
            return message

    return Rest()


def send_raw(port, data, user=""):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        options = f'"verbose":false,"headers":true,"pedantic":false,"user":"{user}","pass":"secret"'
        connection.sendall(b"CONNECT {%b}\r\n%bPING\r\n" % (options.encode(), data))
        while b"PONG" not in (got := connection.recv(4096)):
            assert got, "the server ended the hostile connection"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A server with a user who may publish below `ev` only."""
    config = tmp_path_factory.mktemp("narrow") / "nats.conf"
    config.write_text("""
        authorization { users: [
            { user: service, password: secret }
            { user: low, password: secret, permissions: { publish: { allow: ["ev.>"] } } }
        ] }
    """)
    with EmbeddedServer(config=config) as server:
        yield server


@pytest.mark.parametrize("fast_path", ["on", "off"])
@pytest.mark.parametrize("space", [b"\x0b", b"\x0c"])
async def test_white_space_in_a_subject_reaches_no_other_subscription_and_ends_no_connection(
    narrow, monkeypatch, space, fast_path
):
    """What followed a form feed was taken for the number of the subscription."""
    monkeypatch.setenv("MESHKIT_FAST_PATH", fast_path)
    erased, heard = [], []
    service = Service("vault")

    @service.endpoint()
    async def erase(payload: bytes) -> None:
        erased.append(payload)

    @service.subscribe("ev.>")
    async def on(payload: bytes, ctx: Context) -> None:
        heard.append(ctx.subject)

    async def forge(mesh, ends):
        heard.clear()
        subjects = [b"ev.x%b%b" % (space, end) for end in ends]
        data = b"PUB vault.erase 2\r\nhi\r\n"
        for to in subjects:
            data += b"PUB %b 2\r\nhi\r\nHPUB %b 12 14\r\nNATS/1.0\r\n\r\nhi\r\n" % (to, to)
        await asyncio.to_thread(send_raw, narrow.port, data, "low")
        await mesh.transport.flush()
        await until(lambda: erased or len(heard) == 2 * len(subjects), 2)
        assert erased == []
        assert heard == [subject.decode() for subject in subjects for _ in range(2)]

    async with connect(narrow.url, user="service", password="secret") as mesh, mesh.serve(service):
        client = mesh.transport._client
        before = client.client_id
        await forge(mesh, [b"%d" % number for number in client._subs])
        await forge(mesh, [b"y"])
        assert client.client_id == before


async def test_a_service_that_did_not_start_does_not_come_back_with_the_connection(proxy, nats_server):
    """It took its share of the calls, and nobody answered them."""
    service = gated("zombie")
    service.gate.set()
    async with (
        connect(nats_server.url) as healthy,
        healthy.serve(service),
        connect(nats_server.url) as caller,
        connect(proxy.url) as mesh,
    ):
        before = len(mesh.transport._client._subs)
        await proxy.stall(mesh)

        async def start():
            async with mesh.serve(service):
                pass

        starting = asyncio.create_task(start())
        await until(lambda: len(mesh.transport._client._subs) > before)
        await come_back(proxy, mesh, starting)
        assert len(mesh.transport._client._subs) == before
        calls = [caller.call("zombie.wait", returns=str, timeout=2) for _ in range(30)]
        assert await asyncio.gather(*calls) == ["done"] * 30


async def test_who_is_there_is_not_asked_later_for_who_was_told_that_the_connection_is_lost(proxy):
    async with connect(proxy.url) as mesh:
        await proxy.stall(mesh)
        asking = asyncio.create_task(mesh.services())
        await until(lambda: any(b"PUB $SRV" in command for command in mesh.transport._client._pending))
        await come_back(proxy, mesh, asking)
    assert b"CONNECT" in proxy.sent
    assert b"$SRV" not in proxy.sent


async def come_back(proxy, mesh, failing):
    """Cut the connection, see what was begun on it fail, and wait for the next one to be in use."""
    proxy.sent = b""
    proxy.cut()
    with pytest.raises(ConnectionLost):
        await failing
    proxy.release()
    await until(lambda: proxy.connections == 2 and mesh.transport.is_connected)
    await mesh.transport.flush()


@asynccontextmanager
async def made_by_hand(answer):
    """A server that answers each line with what `answer` gives for it and the number of the connection."""
    writers = []

    async def talk(reader, writer):
        writers.append(writer)
        number = len(writers)
        writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1000000,"headers":true}\r\n')
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(await answer(number, line))
        writer.transport.abort()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=1024 * 1024)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", writers
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()
        await server.wait_closed()


async def test_a_flush_is_not_answered_by_the_answer_to_one_of_a_lost_connection(proxy_to):
    """Its PING was sent again, and each PONG of the new connection answered the flush before."""
    got = []

    async def answer(_number, line):
        got.append(line)
        if line != b"PING\r\n":
            return b""
        if got.count(line) > 4:  # after two connections, each with one of the handshake and one more
            await asyncio.sleep(0.05)
        confirmed.extend(got)
        return b"PONG\r\n"

    confirmed = []
    async with (
        made_by_hand(answer) as (url, _),
        proxy_to(urlsplit(url).port) as proxy,
        connect(proxy.url) as mesh,
    ):
        await mesh.transport.flush()
        await proxy.stall(mesh)
        flush = asyncio.create_task(mesh.transport.flush())
        await until(lambda: b"PING\r\n" in mesh.transport._client._pending)
        await come_back(proxy, mesh, flush)
        await mesh.transport.publish("late", b"")
        await mesh.transport.flush()
        assert any(line.startswith(b"PUB late") for line in confirmed)


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")  # that of the attempt
async def test_an_attempt_to_reconnect_that_failed_leaves_no_task_behind(clock):
    pings = []

    async def answer(number, line):
        # The second connection is good for the handshake, and no more.
        if line != b"PING\r\n" or (number == 2 and 2 in pings):
            return b""
        pings.append(number)
        return b"PONG\r\n"

    async with made_by_hand(answer) as (url, connections):
        before = asyncio.all_tasks()
        async with connect(url) as mesh:
            await mesh.transport.flush()
            connections[0].transport.abort()
            for _ in range(30):
                await clock.advance(1)
                if len(connections) == 3 and mesh.transport.is_connected:
                    break
            assert len(connections) == 3
            await mesh.transport.flush()
        for _ in range(100):
            if left := asyncio.all_tasks() - before:
                await clock.advance(0.1)
        assert left == set()


async def test_a_reader_that_died_is_replaced(proxy):
    async with connect(proxy.url) as mesh:
        heard = await listen(mesh, "alive")
        mesh.transport._client._reading_task.cancel()
        await until(lambda: proxy.connections == 2 and mesh.transport.is_connected)
        await works(mesh, heard, "alive")


async def test_a_reconnect_that_died_is_taken_up_again():
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh:
            heard = await listen(mesh, "alive")
            await asyncio.to_thread(server.kill)
            await until(lambda: not mesh.transport.is_connected)
            mesh.transport._client._reconnection_task.cancel()
            await asyncio.to_thread(server.restart)
            await until(lambda: mesh.transport.is_connected)
            await works(mesh, heard, "alive")


async def test_a_callback_that_raises_is_logged_and_the_subscription_goes_on(mesh, caplog):
    heard = asyncio.Queue()

    def take(message):
        if message.payload == b"bad":
            raise RuntimeError("no")
        heard.put_nowait(message)

    await mesh.transport.subscribe("raises", take)
    await mesh.publish("raises", b"bad")
    await works(mesh, heard, "raises")
    assert "a message on raises was not handled" in caplog.text
