"""Each defect of nats-py that the guarded client mends, provoked; `close` and `until` bound the waiting."""

import asyncio
import socket

import pytest
from support import until

from meshkit import Disconnected, connect
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


def send_raw(port, data):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        connection.sendall(
            b'CONNECT {"verbose":false,"headers":true,"pedantic":false}\r\n' + data + b"PING\r\n"
        )
        while b"PONG" not in (got := connection.recv(4096)):
            assert got, "the server ended the hostile connection"


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
