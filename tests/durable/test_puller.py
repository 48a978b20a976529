"""Fetching ahead, and what a consumer, a server or a stranger may do meanwhile."""

import asyncio
import logging
import types

import pytest
from support import until

from meshkit import Service, connect
from meshkit.durable.jetstream import JetStream
from meshkit.durable.puller import Puller
from meshkit.transport import Message
from meshkit.transport.server import EmbeddedServer

REPLY = "$JS.ACK.S.c.1.{0}.{0}.1700000000000000000.0"


class Wire:
    """A transport of which a test decides whether it is connected; `told` is what was sent."""

    def __init__(self):
        self.told = []
        self.is_connected = True
        self.reconnects = 0

    def tell(self, subject, payload, head=b"", reply=""):
        assert self.is_connected
        self.told.append((subject, payload))

    async def subscribe(self, subject, callback, queue="", *, optional=False):
        self.deliver = callback

        async def drain():
            pass

        return types.SimpleNamespace(drain=drain)

    def asked(self):
        """For how many messages, each time."""
        return [
            int(payload.split(b":")[1].split(b",")[0])
            for to, payload in self.told
            if to.startswith("$JS.API")
        ]


@pytest.fixture
async def wire():
    return Wire()


@pytest.fixture
async def taken():
    return []


@pytest.fixture
async def puller(wire, taken, clock):
    puller = Puller(
        wire, "S", "c", window=10, ack_wait=30, take=lambda puller, message: taken.append(message.reply)
    )
    await puller.start()
    yield puller
    await puller.stop()
    await puller.close()


def send(wire, *numbers):
    for number in numbers:
        wire.deliver(Message("a", REPLY.format(number), b""))


async def test_it_asks_for_half_a_window_at_a_time(wire, puller, taken):
    assert wire.asked() == [10]
    send(wire, *range(1, 11))
    for reply in taken[:4]:
        puller.settle(reply, b"+ACK")
    assert wire.asked() == [10, 1]  # at once where nothing is owed
    for reply in taken[4:]:
        puller.settle(reply, b"+ACK")
    assert wire.asked() == [10, 1, 5]


async def test_what_a_request_has_left_is_owed_no_more(wire, puller, taken):
    send(wire, 1, 2, 3)
    wire.deliver(
        Message("a", "", b"", b" 408 Request Timeout\r\nNats-Pending-Messages: 7\r\nNats-Pending-Bytes: 0")
    )
    assert wire.asked() == [10, 7]
    assert (puller._owed, len(puller._here)) == (7, 3)


async def test_one_request_of_two_is_over(wire, puller, taken):
    send(wire, *range(1, 7))
    for reply in taken[:5]:
        puller.settle(reply, b"+ACK")
    assert wire.asked() == [10, 5]
    wire.deliver(Message("a", "", b"", b" 408 Request Timeout\r\nNats-Pending-Messages: 4"))
    assert puller._owed == 5  # of the other
    puller.settle(taken[5], b"+ACK")
    assert wire.asked() == [10, 5, 5]


async def test_a_heartbeat_is_heard_and_silence_too(wire, puller, clock, caplog):
    for _ in range(6):
        await clock.advance(5)
        wire.deliver(Message("a", "", b"", b" 100 Idle Heartbeat\r\nNats-Last-Consumer: 0"))
    assert wire.asked() == [10]
    assert not caplog.records
    await clock.advance(13)
    assert wire.asked() == [10, 10]
    assert "c of S: the server says nothing any more, it is asked again" in caplog.text
    # If it has not forgotten, twice as many come, and then none are asked for.
    send(wire, *range(1, 21))
    assert (puller._owed, len(puller._here)) == (0, 20)
    for number in range(1, 11):
        puller.settle(REPLY.format(number), b"+ACK")
    assert wire.asked() == [10, 10]


async def test_what_is_here_is_kept_until_it_is_settled(wire, puller, clock):
    send(wire, 1)
    await clock.advance(5)
    send(wire, 2)
    for _ in range(60):
        await clock.advance(1)
        wire.deliver(Message("a", "", b"", b" 100 Idle Heartbeat"))
    for number in (1, 2):
        working = [told for told in wire.told if told == (REPLY.format(number), b"+WPI")]
        assert 5 <= len(working) <= 6
    puller.settle(REPLY.format(1), b"+ACK")
    wire.told.clear()
    await clock.advance(11)
    assert {to for to, told in wire.told if told == b"+WPI"} == {REPLY.format(2)}
    puller.settle(REPLY.format(1), b"+ACK")
    assert (REPLY.format(1), b"+ACK") not in wire.told  # once


@pytest.mark.parametrize("how", ["later", "at the end"])
async def test_what_cannot_be_said_is_said_when_the_connection_is_back(wire, puller, clock, how):
    send(wire, 1, 2)
    wire.is_connected = False
    puller.settle(REPLY.format(1), b"+ACK")
    await clock.advance(20)
    wire.told.clear()
    wire.is_connected, wire.reconnects = True, 1
    if how == "later":
        await clock.advance(1)
        assert wire.asked() == [9]  # requests end with the connection
    else:
        await puller.stop()
        await puller.close()
    assert (REPLY.format(1), b"+ACK") in wire.told


async def test_nothing_is_asked_for_when_it_stops(wire, puller, clock):
    send(wire, *range(1, 11))
    await puller.stop()
    for number in range(1, 11):
        puller.settle(REPLY.format(number), b"+ACK")
    await clock.advance(2)
    assert wire.asked() == [10]
    assert len(wire.told) == 11


@pytest.mark.parametrize(
    ("reply", "head"),
    [
        ("$JS.ACK.x", b""),
        ("$JS.ACK.S.other.1.2.3.4.5", b""),
        ("$JS.ACK.S.c.x.2.3.4.5", b"\r\nA: b"),
        ("_INBOX.x", b"\r\nA: b"),
        ("", b""),
        ("", b" 100 Idle Heartbeat"),
    ],
)
async def test_what_a_stranger_sends_is_passed_over(wire, puller, taken, caplog, reply, head):
    wire.deliver(Message("a", reply, b"x", head))
    assert (taken, puller._owed, len(puller._here)) == ([], 10, 0)
    assert not caplog.records


async def test_a_consumer_that_is_gone_is_asked_for_now_and_then(wire, puller, clock, caplog):
    wire.deliver(Message("a", "", b"", b" 409 Consumer Deleted\r\nNats-Pending-Messages: 10"))
    for _ in range(20):
        await clock.advance(0.25)
        wire.deliver(Message("a", "", b"", b" 503"))
    assert 10 <= len(wire.asked()) <= 21
    assert [record.getMessage() for record in caplog.records] == ["c of S: 409 Consumer Deleted"]
    await clock.advance(0.25)
    send(wire, 1)
    wire.deliver(Message("a", "", b"", b" 503"))
    assert "c of S: it is not there; if it was deleted, it is made anew" in caplog.text


async def test_a_consumer_deleted_by_hand(mesh, stream, subject, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    service, handled = Service("shop"), []

    @service.consume(f"{subject}.a", stream=stream)
    async def work(number: int) -> None:
        handled.append(number)

    js, asked, tell = JetStream(mesh.transport), [], mesh.transport.tell

    def ask(to, *args, **options):
        asked.append(to)
        tell(to, *args, **options)

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", 1, durable=True)
        await until(lambda: handled)
        config = (await js.consumer(stream.name, "shop-work")).config
        monkeypatch.setattr(mesh.transport, "tell", ask)
        await js.ask(f"CONSUMER.DELETE.{stream.name}.shop-work", dict)
        await until(lambda: f"shop-work of {stream.name}: 409" in caplog.text)
        await asyncio.sleep(0.6)
        assert 1 <= len(asked) <= 4
        await js.put_consumer(stream.name, config | {"deliver_policy": "new"})
        await mesh.publish(f"{subject}.a", 2, durable=True)
        await until(lambda: handled == [1, 2])


async def test_nothing_is_left_when_an_instance_has_stopped(mesh, stream, subject):
    service = Service("shop")

    @service.consume(f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=5, deduplicate="1h")
    async def work(key: str) -> None: ...

    @service.consume(f"{subject}.>", stream=stream, name="other")
    async def other() -> None: ...

    async def left():
        await asyncio.sleep(0.05)
        interests = sorted(each.subject for each in mesh.transport._interests)
        return interests, dict(mesh.transport._waiting), len(asyncio.all_tasks())

    await mesh.declare(stream)
    before = await left()
    async with mesh.serve(service):
        for number in range(20):
            await mesh.publish(f"{subject}.{number}", durable=True)
    await until(lambda: not mesh.transport._waiting, 5)
    after = await left()
    assert after == before


async def test_consuming_goes_on_when_the_server_was_killed(tmp_path, subject):
    from meshkit import StreamConfig

    service, handled = Service("shop"), []
    stream = StreamConfig(subject.upper(), [f"{subject}.>"])

    @service.consume(f"{subject}.a", stream=stream, ack_wait="1s", concurrency=20)
    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        handled.append(number)

    with EmbeddedServer(store=tmp_path / "store") as server:
        async with connect(server.url) as mesh, mesh.serve(service):
            async with mesh.publisher() as publisher:
                for number in range(2_000):
                    await publisher.publish(f"{subject}.a", number)
            await until(lambda: len(handled) > 300)
            server.kill()
            await asyncio.sleep(0.05)  # what is handled now is acknowledged when it is back
            await asyncio.get_running_loop().run_in_executor(None, server.restart)
            await until(lambda: len(set(handled)) == 2_000, 15)
            async with asyncio.timeout(5):
                js = JetStream(mesh.transport)
                while (await js.consumer(stream.name, "shop-work")).num_ack_pending:
                    await asyncio.sleep(0.05)
            # What was acknowledged in the moment of the crash is handled again, and no more than that.
            assert len(handled) < 2_400


async def test_consuming_goes_on_when_the_connection_was_cut(mesh, stream, subject):
    service, handled = Service("shop"), []

    @service.consume(f"{subject}.a", stream=stream, ack_wait="1s", concurrency=20)
    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        handled.append(number)

    async with mesh.serve(service):
        async with mesh.publisher() as publisher:
            for number in range(1_000):
                await publisher.publish(f"{subject}.a", number)
        for _ in range(2):
            before, reconnects = len(handled), mesh.transport.reconnects
            await until(lambda before=before: len(handled) > before + 50)
            mesh.transport._client._drop_socket()
            await until(lambda reconnects=reconnects: mesh.transport.reconnects > reconnects)
        await until(lambda: len(set(handled)) == 1_000, 15)
        js = JetStream(mesh.transport)
        async with asyncio.timeout(5):
            while (await js.consumer(stream.name, "shop-work")).num_ack_pending:
                await asyncio.sleep(0.05)
    assert len(handled) < 1_100
