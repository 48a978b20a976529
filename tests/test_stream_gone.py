"""Streams, and calls, whose reader is gone, leaves late, or was never one."""

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from support import gated, until, until_by

from meshkit import BadReply, ConnectionLost, Service, connect


class Quiet(Service):
    """A stream that after one item waits for `gate`; `running` counts those that do."""

    def __init__(self):
        super().__init__("quiet")
        self.running = 0
        self.gate = asyncio.Event()

        @self.endpoint()
        async def tail() -> AsyncIterator[int]:
            self.running += 1
            try:
                yield 1
                await self.gate.wait()
                yield 2
            finally:
                self.running -= 1

        self.tail = tail


@pytest.fixture
async def quiet(mesh):
    service = Quiet()
    async with mesh.serve(service):
        yield service
        service.gate.set()


@pytest.fixture
async def plain(nats_server):
    """A client of nats-py; `ask` opens the stream, `read` is what has come of it."""
    client = await nats.connect(nats_server.url)
    client.read = []

    async def take(message):
        client.read.append((message.data, message.headers))

    async def ask(**headers):
        inbox = client.new_inbox()
        await client.subscribe(inbox, cb=take)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        await client.publish("quiet.tail", reply=inbox, headers=headers)
        await client.flush()

    client.ask = ask
    yield client
    await client.close()


# Nothing is said, and nothing is sent


async def test_a_quiet_producer_finds_out_that_nobody_listens(quiet, plain, clock):
    await plain.ask(Mesh_Credit="64", Mesh_Timeout="99999999999")
    await until_by(clock, lambda: plain.read)
    await clock.advance(3600)
    assert quiet.running == 1
    (first, *probes) = plain.read
    assert first == (b"1", {"Mesh-Seq": "1"})
    assert probes[0] == probes[-1] == (b"", {"Mesh-Seq": "0"})
    assert len(probes) >= 3600 / 20
    await plain.close()
    await clock.advance(20)
    await until_by(clock, lambda: not quiet.running)


async def test_who_does_not_say_what_there_is_room_for_is_asked_nothing(quiet, plain, clock):
    await plain.ask(Mesh_Timeout="99999999999")
    await until_by(clock, lambda: plain.read)
    await clock.advance(60)
    assert len(plain.read) == 1


async def test_a_reader_passes_over_what_only_asks(quiet, nats_server, clock):
    async with connect(nats_server.url) as reader:
        stream = reader.stream(quiet.tail, message_timeout="5m")
        assert await anext(stream) == 1
        reading = asyncio.create_task(anext(stream))
        await clock.advance(100)
        assert not reading.done()
        quiet.gate.set()
        assert await reading == 2
        assert [number async for number in stream] == []


async def test_a_connection_answers_for_a_reader_that_it_has_no_more(quiet, mesh, clock):
    class Sink:
        taken = ()

        def done(self):
            return False

        def set_result(self, message):
            self.taken += (message,)

    sink = Sink()
    reply = mesh.transport.attach("quiet.tail", sink)
    await mesh.transport.publish("quiet.tail", b"", b"\r\nMesh-Credit: 64\r\nMesh-Timeout: 99999999", reply)
    await until_by(clock, lambda: sink.taken)
    mesh.transport.detach(reply)
    await clock.advance(20)
    await until_by(clock, lambda: not quiet.running)


# Whoever leaves says so


async def test_a_connection_that_is_closed_stops_what_its_calls_and_streams_run(quiet, mesh, nats_server):
    service = gated()
    async with mesh.serve(service):
        async with connect(nats_server.url) as reader:
            kept = reader.stream(quiet.tail)
            await anext(kept)
            read = reader.stream(quiet.tail)
            await anext(read)
            waiting = [
                asyncio.ensure_future(anext(read)),
                asyncio.ensure_future(reader.call("gated.wait", timeout=60)),
            ]
            await until(lambda: quiet.running == 2 and service.running == 1)
        for each in (*waiting, anext(kept)):
            with pytest.raises(ConnectionLost):
                await each
        await until(lambda: not quiet.running and not service.running)


@pytest.mark.parametrize("fast", ["on", "off"])
async def test_a_lost_reader_says_so_when_its_connection_is_back(quiet, nats_server, monkeypatch, fast):
    monkeypatch.setenv("MESHKIT_FAST_PATH", fast)
    async with connect(nats_server.url) as reader:
        stream = reader.stream(quiet.tail)
        await anext(stream)
        reader.transport._client._transport._io_writer.transport.abort()
        with pytest.raises(ConnectionLost):
            await anext(stream)
        await until(lambda: not quiet.running)
        assert not reader.transport._untold


# A handler that goes on


@pytest.mark.parametrize("how", ["nobody listens", "closed"])
async def test_a_handler_that_swallows_its_cancellation_ends_at_its_yield(mesh, plain, how):
    service = Service("quiet")
    sent, ended = [], []

    @service.endpoint()
    async def tail() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                sent.append(1)
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    sent.append("cancelled")
        finally:
            ended.append(True)

    async with mesh.serve(service):
        if how == "closed":
            async with mesh.stream(tail) as stream:
                await anext(stream)
                await until(lambda: sent)
        else:
            await plain.ask(Mesh_Timeout="99999999")
            await until(lambda: plain.read)
            await plain.close()
        await until(lambda: ended)
    assert sent.count("cancelled") == 1


# Answers that lead elsewhere


async def test_nothing_is_said_where_an_answer_sends_its_caller(mesh, nats_server):
    heard = []
    sent = []

    async def answer(message):
        for number in range(1, 65):
            await evil.transport.publish(message.reply, b"1", b"\r\nMesh-Seq: %d" % number, "bank.reset")

    async with connect(nats_server.url) as evil:
        await mesh.transport.subscribe("bank.reset", heard.append)
        await evil.transport.subscribe(
            "evil", lambda message: sent.append(asyncio.ensure_future(answer(message)))
        )
        await evil.transport.flush()
        with pytest.raises(BadReply):
            await mesh.call("evil")
        stream = mesh.stream("evil")
        assert [await anext(stream) for _ in range(64)] == [1] * 64
        await stream.aclose()
        await asyncio.gather(*sent)
        await mesh.transport.flush()
    assert heard == []
