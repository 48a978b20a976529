"""Publishing that a stream acknowledges, whatever becomes of connection and server."""

import asyncio
import json

import pytest
from support import until

from meshkit import (
    BadRequest,
    Context,
    DeadlineExceeded,
    MeshError,
    NoResponders,
    NotStored,
    Service,
    StreamConfig,
    connect,
)
from meshkit.durable.jetstream import JetStream
from meshkit.durable.publisher import Stored
from meshkit.message import CURRENT, Request
from meshkit.transport.server import EmbeddedServer


async def messages(mesh, stream):
    """What a stream has: payloads, in order."""
    return [each.payload async for each in JetStream(mesh.transport).messages(stream.name, ">")]


async def sequence(mesh, stream):
    return (await JetStream(mesh.transport).stream(stream.name)).state.last_seq


async def imitate(mesh, subject, answers):
    """A stream of which a test decides what it answers."""

    def answer(message):
        got.append(message)
        if said := answers(len(got)):
            mesh.transport.tell(message.reply, said)

    got = []
    await mesh.transport.subscribe(subject, answer)
    await mesh.transport.flush()
    return got


async def test_a_message_is_stored_once_for_each_id(mesh, stream, subject):
    await mesh.declare(stream)
    first = await mesh.publish(f"{subject}.a", {"n": 1}, durable=True, id="order 1 ä=")
    again = await mesh.publish(f"{subject}.a", {"n": 2}, durable=True, id="order 1 ä=")
    other = await mesh.publish(f"{subject}.a", {"n": 3}, durable=True)
    assert first == Stored(stream.name, 1)
    assert again == Stored(stream.name, 1, duplicate=True)
    assert other == Stored(stream.name, 2)
    assert await messages(mesh, stream) == [b'{"n":1}', b'{"n":3}']
    assert await mesh.publish(f"{subject}.a", 4) is None


async def test_many_publishers_wait_each_for_its_own(mesh, stream, subject):
    await mesh.declare(stream)
    stored = await asyncio.gather(*(mesh.publish(f"{subject}.a", n, durable=True) for n in range(500)))
    assert sorted(each.seq for each in stored) == list(range(1, 501))
    assert not mesh.transport._waiting


async def test_what_cannot_be_stored_is_told_in_a_sentence(mesh, stream, subject):
    await mesh.declare(
        stream, StreamConfig(f"{stream.name}-full", [f"full.{subject}"], max_messages=2, discard="new")
    )
    with pytest.raises(NoResponders, match=f"no stream keeps 'no.{subject}', or NATS has no"):
        await mesh.publish(f"no.{subject}", durable=True)
    with pytest.raises(BadRequest, match=r"is 1,\d{3},\d{3} bytes, the server takes 1,048,576"):
        await mesh.publish(f"{subject}.a", b"x" * (1024 * 1024 - 20), durable=True)
    for _ in range(2):
        await mesh.publish(f"full.{subject}", durable=True)
    with pytest.raises(MeshError, match=f"full.{subject}: .*JetStream: maximum messages exceeded"):
        await mesh.publish(f"full.{subject}", durable=True)
    with pytest.raises(ValueError, match="only a stream looks at ids"):
        await mesh.publish(f"{subject}.a", id="x")
    for wrong in ("", " x", "a\r\nb", "x" * 501, 7):
        with pytest.raises(ValueError, match="a message's id is printable text of up to 500 characters"):
            await mesh.publish(f"{subject}.a", durable=True, id=wrong)
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="window is a whole number from 1"):
            mesh.publisher(wrong)
    assert not mesh.transport._waiting


@pytest.mark.parametrize("answer", [b"{}", b"", b"[]", b'"yes"', b'{"seq":7}'])
async def test_an_answer_that_is_not_of_jetstream_stores_nothing(mesh, subject, answer):
    await imitate(mesh, subject, lambda number: answer or b"no json")
    with pytest.raises(MeshError, match=f"what answers on '{subject}' is not JetStream"):
        await mesh.publish(subject, durable=True)


async def test_a_server_without_jetstream(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1MB\n")
    with EmbeddedServer(config=config) as server:
        async with connect(server.url) as mesh:
            with pytest.raises(NoResponders, match="no stream keeps 'a'"):
                await mesh.publish("a", durable=True)


async def test_so_many_are_under_way_and_no_more(mesh, subject):
    release, held = asyncio.Event(), []
    got = await imitate(mesh, subject, lambda number: None)
    mesh_told = mesh.transport.tell

    async def answer():
        while True:
            await release.wait()
            while held < got:
                mesh_told(got[len(held)].reply, json.dumps({"stream": "S", "seq": len(held)}).encode())
                held.append(got[len(held)])
            await asyncio.sleep(0.001)

    sent = []

    async def publish():
        async with mesh.publisher(window=8) as publisher:
            for number in range(40):
                await publisher.publish(subject, number)
                sent.append(number)
        sent.append("left")

    answering, publishing = asyncio.create_task(answer()), asyncio.create_task(publish())
    await until(lambda: len(got) == 8)
    await asyncio.sleep(0.05)
    assert (len(got), sent) == (8, list(range(8)))
    release.set()
    await publishing
    answering.cancel()
    assert sent == [*range(40), "left"]
    assert len({message.head for message in got}) == 40  # an id each


async def test_leaving_waits_until_all_is_stored(mesh, subject):
    got = await imitate(mesh, subject, lambda number: None)

    async def publish():
        async with mesh.publisher() as publisher:
            for number in range(3):
                await publisher.publish(subject, number)

    publishing = asyncio.create_task(publish())
    for number in range(3):
        await until(lambda: len(got) == 3)
        await asyncio.sleep(0.02)
        assert not publishing.done()
        mesh.transport.tell(got[number].reply, b'{"stream":"S","seq":1}')
    await publishing


async def test_failures_are_named_when_the_block_ends(mesh, stream, subject):
    await mesh.declare(stream)

    async def publish():
        async with mesh.publisher() as publisher:
            await publisher.publish(f"no.{subject}", id="bad1")
            await publisher.publish(f"{subject}.a", id="good")
            await publisher.publish(f"no.{subject}", headers={"Nats-Msg-Id": "bad2"})

    with pytest.raises(
        NotStored, match=r"2 of 3 messages .* not stored; the first has the id bad1: "
    ) as raised:
        await publish()
    assert [name for name, _ in raised.value.failures] == ["bad1", "bad2"]
    assert all(isinstance(error, NoResponders) for _, error in raised.value.failures)
    assert await sequence(mesh, stream) == 1


async def test_the_next_publish_says_that_one_before_was_not_stored(mesh, subject):
    published = []

    async def publish():
        async with mesh.publisher() as publisher:
            for number in range(10_000):
                await publisher.publish(f"no.{subject}")
                published.append(number)
                await asyncio.sleep(0)

    with pytest.raises(NotStored):
        await publish()
    assert len(published) < 10_000


async def test_an_exception_of_the_block_is_raised_with_a_note_of_the_failures(mesh, stream, subject):
    await mesh.declare(stream)

    async def publish():
        async with mesh.publisher() as publisher:
            await publisher.publish(f"{subject}.a", 1)
            await publisher.publish(f"no.{subject}", id="lost")
            raise KeyError("x")

    with pytest.raises(KeyError) as raised:
        await publish()
    assert (
        "1 of 2 messages published here were not stored; the first has the id lost"
        in raised.value.__notes__[0]
    )
    assert await sequence(mesh, stream) == 1


async def test_who_is_cancelled_does_not_wait(mesh, subject):
    got = await imitate(mesh, subject, lambda number: None)

    async def publish():
        async with mesh.publisher() as publisher:
            await publisher.publish(subject)
            await asyncio.sleep(60)

    task = asyncio.create_task(publish())
    await until(lambda: got)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1)
    storing = asyncio.create_task(mesh.publish(subject, durable=True))
    await until(lambda: len(got) == 2)
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert not mesh._storing._under_way


async def test_what_is_not_acknowledged_is_sent_again_and_then_given_up(mesh, subject, clock):
    got = await imitate(mesh, subject, lambda number: b'{"stream":"S","seq":1}' if number == 3 else None)
    first = asyncio.create_task(mesh.publish(subject, durable=True, id="one"))
    for _ in range(20):
        await clock.advance(1)
    assert (await first).seq == 1
    assert len(got) == 3
    assert {message.headers["Nats-Msg-Id"] for message in got} == {"one"}
    second = asyncio.create_task(mesh.publish(subject, durable=True, id="two"))
    for _ in range(31):
        await clock.advance(1)
    with pytest.raises(DeadlineExceeded, match=f"no stream has acknowledged the message to '{subject}'"):
        await second
    assert not mesh.transport._waiting


@pytest.mark.parametrize("number", [10008, 10023])
async def test_what_jetstream_cannot_take_at_the_moment_is_sent_again(mesh, subject, number):
    error = {"error": {"code": 503, "err_code": number, "description": "no leader"}}
    got = await imitate(
        mesh, subject, lambda at: json.dumps(error if at < 3 else {"stream": "S", "seq": 5}).encode()
    )
    assert (await mesh.publish(subject, durable=True)).seq == 5
    assert len(got) == 3


async def test_the_deadline_of_a_handler_bounds_what_it_publishes(mesh, subject):
    service, errors = Service("shop"), []
    await imitate(mesh, subject, lambda number: None)

    @service.endpoint("shop.pass_on")
    async def pass_on(ctx: Context) -> None:
        try:
            await ctx.mesh.publish(subject, durable=True)
        except BaseException as error:
            errors.append(error)
            raise

    async with mesh.serve(service):
        with pytest.raises(DeadlineExceeded):
            await mesh.call("shop.pass_on", timeout="200ms")
        await until(lambda: errors)
        assert isinstance(errors[0], DeadlineExceeded | asyncio.CancelledError)


async def test_the_trace_and_headers_of_what_is_handled_go_on(mesh, stream, subject):
    service, seen = Service("shop"), []
    await mesh.declare(stream)

    @service.endpoint("shop.pass_on")
    async def pass_on(ctx: Context) -> None:
        await ctx.mesh.publish(f"{subject}.a", 1, durable=True, headers={"Mine": "ü"}, id="1")
        async with ctx.mesh.publisher() as publisher:
            await publisher.publish(f"{subject}.a", 2)

    @service.consume(f"{subject}.a", stream=stream)
    async def work(number: int, ctx: Context) -> None:
        seen.append((number, dict(ctx.headers), ctx.delivery.id))

    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    async with mesh.serve(service):
        await mesh.call(
            "shop.pass_on", headers={"traceparent": trace, "Mesh-Priority": "critical", "Other": "x"}
        )
        await until(lambda: len(seen) == 2)
    assert seen[0] == (
        1,
        {"Mine": "ü", "traceparent": trace, "Mesh-Priority": "critical", "Nats-Msg-Id": "1"},
        "1",
    )
    assert (seen[1][1]["traceparent"], "Other" in seen[1][1]) == (trace, False)


async def publish_all(mesh, stream, disturb):
    """Five thousand messages, and something that happens amid them."""
    await mesh.declare(stream)
    async with mesh.publisher(window=128) as publisher:
        for number in range(5_000):
            await publisher.publish(stream.subjects[0].replace(">", "a"), number)
            await disturb(number)
    return [int(payload) for payload in await messages(mesh, stream)]


async def test_all_is_stored_once_and_in_order_though_the_connection_is_cut(mesh, stream):
    async def cut(number):
        if number % 1_000 == 500:
            mesh.transport._client._drop_socket()
        if number % 100 == 0:
            await asyncio.sleep(0)

    assert await publish_all(mesh, stream, cut) == list(range(5_000))
    assert mesh.transport.reconnects >= 3


async def test_all_is_stored_once_and_in_order_though_the_server_is_killed(tmp_path, stream):
    stream = StreamConfig(stream.name, stream.subjects)
    killed = []

    async def kill(number):
        if number == 2_000:
            server.kill()
            killed.append(asyncio.get_running_loop().run_in_executor(None, server.restart))

    with EmbeddedServer(store=tmp_path / "store") as server:
        async with connect(server.url) as mesh:
            assert await publish_all(mesh, stream, kill) == list(range(5_000))
            assert mesh.transport.reconnects == 1
            await killed[0]


async def test_what_waits_for_the_connection_behind_others_is_given_up_at_its_own_deadline(tmp_path):
    async def publish(seconds):
        CURRENT.set(Request("a", b"", b"", 0.0, asyncio.get_running_loop().time() + seconds))
        await publisher.send_bytes("a")

    with EmbeddedServer() as server:
        async with connect(server.url) as mesh:
            publisher = mesh.publisher()
            got = await imitate(mesh, "a", lambda number: None)
            patient, hasty = asyncio.create_task(publish(9)), asyncio.create_task(publish(0.4))
            await until(lambda: len(got) == 2)
            server.kill()
            with pytest.raises(DeadlineExceeded):
                await asyncio.wait_for(hasty, 1.5)
            patient.cancel()


async def test_so_many_are_under_way_whoever_publishes(mesh, subject):
    got = await imitate(mesh, subject, lambda number: None)
    publisher = mesh.publisher(window=4)
    tasks = [asyncio.create_task(publisher.publish(subject, number)) for number in range(100)]
    await until(lambda: len(got) == 4)
    await asyncio.sleep(0.05)
    assert len(got) == 4
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_all_that_is_not_stored_is_named(mesh, stream, subject):
    await mesh.declare(StreamConfig(f"{stream.name}-few", [f"few.{subject}"], max_messages=5, discard="new"))
    published = []

    async def publish():
        async with mesh.publisher(window=50) as publisher:
            for number in range(60):
                await publisher.publish(f"few.{subject}", id=str(number))
                published.append(str(number))

    with pytest.raises(NotStored) as error:
        await publish()
    assert len(published) > 5
    assert {each for each, _ in error.value.failures} == set(published[5:])


async def test_a_publisher_ends_with_its_block(mesh, stream, subject):
    await mesh.declare(stream)
    async with mesh.publisher() as publisher:
        await publisher.publish(f"{subject}.a")
    with pytest.raises(RuntimeError, match="block has ended; publish within it"):
        await publisher.publish(f"{subject}.a")


async def test_a_stream_that_has_stored_is_waited_for(mesh, stream, subject):
    js = JetStream(mesh.transport)
    await mesh.declare(stream)
    async with mesh.publisher() as publisher:
        await publisher.store(f"{subject}.a", 1, None, None)
        await js.ask(f"STREAM.DELETE.{stream.name}", dict)
        again = asyncio.create_task(publisher.store(f"{subject}.a", 2, None, None))
        await asyncio.sleep(0.3)
        assert not again.done()
        await mesh.declare(stream)
        assert (await again).seq == 1
