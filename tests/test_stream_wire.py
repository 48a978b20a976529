"""Streams on the wire: what others may send, what a plain client sees, and that nothing is lost unseen."""

import asyncio
import math
from collections.abc import AsyncIterator

import nats
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import until, until_by

from meshkit import (
    Context,
    DeadlineExceeded,
    Forbidden,
    MeshError,
    Service,
    StreamBroken,
    connect,
    producer,
    stream,
)
from meshkit.layers.statistics import Statistics
from meshkit.message import Request
from meshkit.producer import produce
from meshkit.stream import WINDOW, Arrivals
from meshkit.transport import Message
from meshkit.transport.server import EmbeddedServer

# What others may send


@pytest.fixture
def forged(mesh):
    """Reads a stream from a producer that answers with what the test says."""

    async def read(*messages):
        async def send(reply):
            for head, payload in messages:
                await mesh.transport.publish(reply, payload, head.encode())

        sending = []
        await mesh.transport.subscribe(
            "forged.tail", lambda message: sending.append(asyncio.ensure_future(send(message.reply)))
        )
        await mesh.transport.flush()
        try:
            async for each in mesh.stream("forged.tail"):
                read.got.append(each)
        except MeshError as error:
            return read.got, error
        finally:
            await asyncio.gather(*sending)
        return read.got, None

    read.got = []
    return read


def item(number, payload=b"1"):
    return f"\r\nMesh-Seq: {number}", payload


def end(number, error=""):
    error = error and f"\r\nNats-Service-Error: {error}\r\nNats-Service-Error-Code: 404"
    return f"{error}\r\nMesh-End: {number}", b""


@pytest.mark.parametrize(
    ("messages", "got", "why"),
    [
        ([item(1), item(3)], 1, "item 3 came where item 2 was due: item 2 is missing"),
        ([item(1), item(7)], 1, "item 7 came where item 2 was due: items 2 to 6 are missing"),
        ([item(2)], 0, "item 1 is missing"),
        ([item(1), item(1)], 1, "item 1 came where item 2 was due"),
        ([item(1), end(3)], 1, "ended after item 3: items 2 to 3 are missing"),
        ([end(1)], 0, "ended after item 1: item 1 is missing"),
        ([item(1), end(2, "no")], 1, "ended after item 2 with 404 NotFound: no: item 2 is missing"),
        ([item("x")], 0, "item x came where item 1 was due"),
        ([item("²")], 0, "came where item 1 was due"),
        ([item("9" * 5000)], 0, "999… came where item 1 was due"),
        ([item(1), end("many")], 1, "ended after item many"),
        ([item(1), ("", b"2")], 1, "a message without a number came after item 1"),
        (
            [item(number) for number in range(1, 90)],
            None,
            "item 65 was sent, and there is room up to item 64",
        ),
    ],
)
async def test_what_is_missing_is_named(forged, messages, got, why):
    read, error = await forged(*messages)
    assert isinstance(error, StreamBroken)
    assert why in error.message
    assert (error.executed, error.code, error.target) == (None, 503, "forged.tail")
    assert got is None or len(read) == got


async def test_the_producer_of_a_broken_stream_is_stopped(forged, mesh):
    told = []
    await mesh.transport.subscribe("_MESH.cancel.forged.tail", told.append)
    _, error = await forged(item(1), item(3))
    assert isinstance(error, StreamBroken)
    await until(lambda: told)
    assert told[0].payload.startswith(b"_INBOX.")


async def test_an_end_that_does_not_come_is_an_error(forged, clock):
    reading = asyncio.create_task(forged(item(1)))
    await until_by(clock, lambda: forged.got)
    await clock.advance(6)
    read, error = await reading
    assert (read, type(error)) == ([1], DeadlineExceeded)


async def test_headers_in_another_order_and_of_others(forged):
    read, error = await forged(
        ("\r\nX-Other: 1\r\nMesh-Seq: 1", b"1"), ("\r\nMesh-End: 1\r\nX-Other: 1", b""), item(2)
    )
    assert (read, error) == ([1], None)


# A plain client


class Counter(Service):
    """A stream of numbers without an end; `sent` is the last one, `ended` counts the streams that have."""

    def __init__(self):
        super().__init__("counter")
        self.sent = self.ended = 0
        self.head = {}

        @self.endpoint()
        async def count(most: int, ctx: Context) -> AsyncIterator[int]:
            self.head = dict(ctx.headers)
            try:
                for self.sent in range(1, most + 1):
                    yield self.sent
            finally:
                self.ended += 1


@pytest.fixture
async def counter(mesh):
    service = Counter()
    async with mesh.serve(service):
        yield service


class Plain:
    """nats-py, with nothing of ours; `read` is what has come."""

    def __init__(self, client):
        self.client = client
        self.read = []

    async def ask(self, most, **headers):
        async def take(message):
            self.read.append(message)

        inbox = self.client.new_inbox()
        self.subscription = await self.client.subscribe(inbox, cb=take)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.client.publish("counter.count", b"%d" % most, reply=inbox, headers=names or None)
        await self.client.flush()

    @property
    def last(self):
        return dict(self.read[-1].headers)


@pytest.fixture
async def plain(nats_server):
    client = await nats.connect(nats_server.url)
    yield Plain(client)
    await client.close()


async def test_what_a_plain_client_sees(counter, plain):
    await plain.ask(200)
    await until(lambda: plain.read and plain.read[-1].headers.get("Mesh-End"))
    *items, last = plain.read
    assert [(each.data, each.headers) for each in items] == [
        (b"%d" % number, {"Mesh-Seq": str(number)}) for number in range(1, 201)
    ]
    assert (last.data, last.headers, last.reply) == (b"", {"Mesh-End": "200"}, "")


async def test_a_plain_client_may_hold_the_producer_back(counter, plain):
    await plain.ask(10**6, Mesh_Credit="5", Mesh_Timeout="60000")
    await until(lambda: len(plain.read) == 5)
    assert counter.sent == 6
    for said in (b"7", b"7", b"6", b"x", b"9" * 5000, b"\xff"):
        await plain.read[0].respond(said)
    await until(lambda: len(plain.read) == 7)
    assert counter.sent <= 8
    # An empty answer says that nobody reads any more, as NATS does when that is so.
    await plain.read[-1].respond(b"")
    await until(lambda: counter.ended)
    await until(lambda: "Mesh-End" in plain.last)
    assert (plain.last["Nats-Service-Error-Code"], plain.last["Mesh-End"]) == ("499", "7")


async def test_a_plain_client_that_unsubscribes_stops_the_handler(counter, plain):
    await plain.ask(10**9)
    await until(lambda: plain.read)
    await plain.subscription.unsubscribe()
    await until(lambda: counter.ended)


@pytest.mark.parametrize("credit", ["0", "-1", "many", "1" * 13])
async def test_credit_that_is_none_is_refused(counter, plain, credit):
    await plain.ask(1, Mesh_Credit=credit)
    await until(lambda: plain.read)
    assert plain.last["Nats-Service-Error-Code"] == "400"
    assert "Mesh-Credit" in plain.last["Nats-Service-Error"]
    assert "Mesh-End" not in plain.last


async def test_without_a_reply_subject_nothing_runs(counter, mesh, plain):
    await plain.client.publish("counter.count", b"1")
    await plain.client.flush()
    assert [number async for number in mesh.stream("counter.count", 2)] == [1, 2]
    assert counter.ended == 1


async def test_a_silent_reader_counts_as_gone(counter, mesh, clock):
    sink = Sink()
    reply = mesh.transport.attach("counter.count", sink)
    await mesh.transport.publish(
        "counter.count", b"100", b"\r\nMesh-Credit: 2\r\nMesh-Timeout: 900000", reply
    )
    await until_by(clock, lambda: len(sink.taken) == 2)
    for _ in range(3):
        await clock.advance(29)
        assert not counter.ended
        mesh.transport.tell(sink.taken[0].reply, b"2")
        await mesh.transport.flush()
    await clock.advance(29)
    assert not counter.ended
    await clock.advance(2)
    assert counter.ended == 1
    await until_by(clock, lambda: "Mesh-End" in sink.taken[-1].headers)
    headers = sink.taken[-1].headers
    assert (headers["Nats-Service-Error-Code"], headers["Mesh-End"]) == ("499", "2")


class Sink:
    """Keeps what arrives."""

    def __init__(self):
        self.taken = []

    def done(self):
        return False

    def set_result(self, message):
        self.taken.append(message)

    def set_exception(self, error):
        pass


async def test_who_may_not_say_how_much_there_is_room_for_is_told(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "accounts { A { users = [ { user: ann, password: s, permissions: { publish: "
        '{ allow: ["counter.>", "_MESH.cancel.>"] } } }, { user: bob, password: s } ] } }'
    )
    service = Counter()
    with EmbeddedServer(config=config) as server:
        async with (
            connect(server.url, user="ann", password="s") as reader,
            connect(server.url, user="bob", password="s") as mesh,
            mesh.serve(service),
        ):
            read = []
            with pytest.raises(Forbidden, match="may not publish to '_INBOX"):
                read += [number async for number in reader.stream("counter.count", 100)]
            await until(lambda: service.ended)


async def test_a_service_that_may_only_answer_needs_leave_to_answer_often(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "accounts { A { users = [ { user: ann, password: s, permissions: { publish: [], "
        'subscribe: [">"], allow_responses: { max: -1 } } }, { user: bob, password: s } ] } }'
    )
    service = Counter()
    with EmbeddedServer(config=config) as server:
        async with (
            connect(server.url, user="bob", password="s") as reader,
            connect(server.url, user="ann", password="s") as mesh,
            mesh.serve(service),
        ):
            read = [number async for number in reader.stream("counter.count", 500)]
    assert read == list(range(1, 501))


# Whatever happens on the way


class Wire:
    """What both halves have as their transport: messages wait until the test lets them through."""

    def __init__(self):
        self.sinks, self.attached = {}, 0
        self.items, self.words = [], []

    def attach(self, subject, sink):
        self.attached += 1
        reply = f"_INBOX.{self.attached}"
        self.sinks[reply] = sink
        return reply

    def detach(self, reply):
        self.sinks.pop(reply, None)

    def tell(self, subject, payload, head=b"", reply=""):
        (self.items if head else self.words).append(Message(subject, reply, payload, head))

    def abandon(self, subject, reply):
        self.words.append(Message(f"_MESH.cancel.{subject}", "", reply.encode()))

    async def publish(self, subject, payload, head=b"", reply=""):
        self.items.append(Message(subject, reply, payload, head))

    def let_through(self, message):
        sink = self.sinks.get(message.subject)
        if sink is not None and not sink.done():
            sink.set_result(message)


async def _numbers(most, size):
    for number in range(1, most + 1):
        yield b"%0*d" % (size, number)


steps = st.lists(
    st.tuples(
        st.sampled_from(["item", "item", "word", "take", "take", "lose word", "repeat word"]),
        st.integers(1, 40),
    ),
    max_size=100,
)


@given(
    most=st.integers(0, 300),
    size=st.sampled_from([3, 100, 260, 1500]),
    steps=steps,
    lost=st.one_of(st.none(), st.integers(1, 301)),
)
@example(most=70, size=3, steps=[], lost=71)
@example(most=1, size=3, steps=[], lost=1)
@example(most=5, size=1500, steps=[], lost=1)
@example(most=100, size=100, steps=[("item", 1000), ("take", 9)], lost=None)
def test_nothing_is_lost_unseen_and_nobody_sends_without_room(most, size, steps, lost):
    """Whatever order things happen in, and whichever message to the reader is lost."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(producer, "WINDOW_BYTES", 1024)
        patched.setattr(stream, "_SOON_BYTES", 256)
        asyncio.run(Play(most, size, lost).go(steps))


class Play:
    """A producer, a reader, and what is on its way between them."""

    def __init__(self, most, size, lost):
        self.most, self.size, self.lost = most, size, lost
        self.wire = Wire()
        self.taken, self.passed = [], 0

    async def go(self, steps):
        self.arrivals = Arrivals(self.wire, "numbers")
        head = f"\r\nMesh-Credit: {WINDOW}".encode()
        self.request = Request("numbers", b"", head, 0, 0, reply=self.arrivals.reply)
        producing = asyncio.create_task(self.produce())
        for step, times in steps:
            await asyncio.sleep(0)
            await self.step(step, times)
        idle, before = 0, None
        while self.wire.items or self.wire.words or self.arrivals._items or not producing.done():
            now = self.request.sent, self.passed, len(self.taken)
            idle, before = idle + 1 if now == before else 0, now
            for step in ("item", "word", "take"):
                await self.step(step, 1000)
                await asyncio.sleep(0)
            if self.arrivals.done() or idle == 10:
                producing.cancel()  # as the reader asks for, or as both wait for each other
            elif self.arrivals._keeping and not producing.done():
                self.arrivals._keep_alive()  # in time it makes up for a word that was lost
        await self.check()
        self.arrivals.leave()

    async def produce(self):
        response = await produce(
            _numbers(self.most, self.size), self.request, "application/json", self.wire, Statistics()
        )
        await self.wire.publish(self.request.reply, b"", response.head)

    async def step(self, step, times):
        wire, arrivals = self.wire, self.arrivals
        for _ in range(times):
            if step == "item" and wire.items:
                self.passed += 1
                message = wire.items.pop(0)
                if self.passed != self.lost:
                    wire.let_through(message)
            elif step.endswith("word") and wire.words:
                word = wire.words[0] if step == "repeat word" else wire.words.pop(0)
                if step != "lose word":
                    wire.let_through(word)
            elif step == "take" and arrivals._items:
                self.taken.append(int((await arrivals.take(math.inf)).payload))
            else:
                break
            assert len(arrivals._items) <= WINDOW
            assert self.request.sent <= len(self.taken) + WINDOW
            assert (self.request.sent - len(self.taken) - 1) * self.size < 1024

    async def check(self):
        """All there is, or all before the gap and an error that names it."""
        complete = list(range(1, self.most + 1))
        ending = self.arrivals.take(asyncio.get_running_loop().time())
        if self.lost is None or self.lost > self.most + 1:
            assert await ending is None
            assert self.taken == complete
        elif self.lost in (
            self.most + 1,
            self.request.sent,
        ):  # the end itself, or the last there was room for
            with pytest.raises((DeadlineExceeded, StreamBroken)):
                await ending
            assert self.taken == complete[: self.lost - 1]
        else:
            with pytest.raises(StreamBroken, match=f"item {self.lost} is missing"):
                await ending
            assert self.taken == complete[: self.lost - 1]
