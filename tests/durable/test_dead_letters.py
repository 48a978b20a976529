"""What becomes of dead letters."""

import asyncio

import pytest
from support import until

from meshkit import BadRequest, Context, MeshError, NotFound, Reject, Service
from meshkit.durable import dead
from meshkit.durable.jetstream import JetStream
from meshkit.headers import render


def two(subject, stream, handled, broken):
    """Two consumers of the same messages."""
    service = Service("shop")

    @service.consume(f"{subject}.>", stream=stream, max_deliver=1)
    async def first(what: str, ctx: Context) -> None:
        handled.append(("first", what, ctx.delivery.id))
        if what in broken:
            raise ValueError("broken")

    @service.consume(f"{subject}.>", stream=stream)
    async def second(what: str, ctx: Context) -> None:
        handled.append(("second", what, ctx.delivery.id))

    return service


async def test_a_replay_reaches_the_consumer_that_failed_alone(mesh, stream, subject, letters):
    handled, broken = [], {"a"}
    js = JetStream(mesh.transport)
    async with mesh.serve(two(subject, stream, handled, broken)):
        await mesh.publish(f"{subject}.x", "a", durable=True, id="id a")
        await mesh.publish(f"{subject}.x", "b", durable=True)
        await until(lambda: len(handled) == 4)
        [letter] = await letters(mesh)
        assert await dead.dead_letter(js, letter.number) == letter
        handled.clear()
        # Once more, in vain, then with success.
        await dead.replay(js, mesh.publisher(), letter)
        await until(lambda: handled == [("first", "a", "id a")])
        async with asyncio.timeout(5):
            while not (found := await letters(mesh)) or found[0].number == letter.number:
                await asyncio.sleep(0.01)
        assert (found[0].id, found[0].error, found[0].headers) == ("id a", "ValueError: broken", {})
        broken.clear()
        await dead.replay(js, mesh.publisher(), found[0])
        await until(lambda: len(handled) == 2)
        await asyncio.sleep(0.05)
        assert handled == [("first", "a", "id a")] * 2
        assert not await letters(mesh)


async def test_two_who_replay_a_letter_at_the_same_time_have_it_handled_once(mesh, stream, subject, letters):
    handled, broken = [], {"a"}
    js = JetStream(mesh.transport)
    async with mesh.serve(two(subject, stream, handled, broken)):
        await mesh.publish(f"{subject}.x", "a", durable=True)
        await until(lambda: len(handled) == 2)
        async with asyncio.timeout(5):
            while not (found := await letters(mesh)):
                await asyncio.sleep(0.01)
        broken.clear()
        outcomes = await asyncio.gather(
            *(dead.replay(js, mesh.publisher(), found[0]) for _ in range(3)), return_exceptions=True
        )
        assert outcomes == [None] * 3
        await until(lambda: len(handled) == 3)
        await asyncio.sleep(0.05)
        assert len(handled) == 3
        assert not await letters(mesh)


async def test_what_is_dropped_is_gone(mesh, stream, subject, letters):
    handled = []
    js = JetStream(mesh.transport)
    async with mesh.serve(two(subject, stream, handled, {"a", "b"})):
        for what in "ab":
            await mesh.publish(f"{subject}.x", what, durable=True)
        async with asyncio.timeout(5):
            while len(found := await letters(mesh)) < 2:
                await asyncio.sleep(0.01)
        await dead.drop(js, found[0])
        assert [letter.number for letter in await letters(mesh)] == [found[1].number]
        with pytest.raises(NotFound, match=f"there is no dead letter {found[0].number}"):
            await dead.dead_letter(js, found[0].number)


async def test_headers_stay_as_they_were_but_for_those_of_nats(mesh, stream, subject, letters):
    service = Service("shop")

    @service.consume(f"{subject}.>", stream=stream)
    async def work(ctx: Context) -> None:
        raise Reject("no")

    given = {
        "Tenant": "ünser",
        "Content-Type": "application/json; charset=utf-8",
        "Mesh-Dead-Error": "forged",
        "mesh-dead-consumer": "forged",
        "Nats-Expected-Stream": stream.name,
    }
    async with mesh.serve(service):
        await mesh.publish(f"{subject}.x", b"\xff\x00", durable=True, headers=given)
        async with asyncio.timeout(5):
            while not (found := await letters(mesh)):
                await asyncio.sleep(0.01)
    [letter] = found
    assert letter.headers == {name: given[name] for name in ("Tenant", "Content-Type", "mesh-dead-consumer")}
    assert (letter.payload, letter.error, letter.consumer) == (b"\xff\x00", "422 Reject: no", "shop-work")


@pytest.mark.parametrize(
    "headers", [{}, {"Mesh-Dead-Subject": "a b"}, {"Mesh-Dead-Subject": "$JS.API.STREAM.PURGE.X"}]
)
async def test_a_letter_that_says_no_subject_cannot_be_replayed(mesh, subject, letters, headers):
    await mesh.declare()
    js = JetStream(mesh.transport)
    if await js.stream(dead.STREAM) is None:
        await js.create_stream(dead.DEAD)
    publisher = mesh.publisher()
    stored = await publisher.send_bytes(f"_MESH.dead.{subject.upper()}.odd", b"", render(headers))
    letter = await dead.dead_letter(js, stored.seq)
    assert (letter.stream, letter.consumer, letter.sequence, letter.attempts) == (
        subject.upper(),
        "odd",
        0,
        0,
    )
    with pytest.raises(MeshError, match="it cannot be published where it says: subject"):
        await dead.replay(js, publisher, letter)
    await dead.drop(js, letter)


async def test_a_message_that_leaves_no_room_is_cut(mesh, stream, subject, letters):
    service, handled = Service("shop"), []

    @service.consume(f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=1)
    async def work(key: str, what: bytes) -> None:
        if len(what) > 1:
            raise Reject("too much")
        handled.append(what)

    most = mesh.transport.max_payload - 200
    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", b"x" * most, durable=True, id="large", headers={"Tenant": "blue"})
        await mesh.publish(f"{subject}.a", b"y", durable=True)
        await until(lambda: handled == [b"y"])
        [letter] = await letters(mesh)
        assert (letter.cut, letter.id, letter.headers, letter.error) == (
            most,
            "large",
            {},
            "422 Reject: too much",
        )
        assert most - 2000 < len(letter.payload) < most
        with pytest.raises(BadRequest, match=rf"of its {most:,} bytes; the message is, or was, number 1 of"):
            await dead.replay(JetStream(mesh.transport), mesh.publisher(), letter)


async def test_what_fails_again_is_a_letter_again_though_the_first_was_dropped(
    mesh, stream, subject, letters
):
    js = JetStream(mesh.transport)
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream)
    async def work() -> None:
        raise Reject("never")

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        async with asyncio.timeout(5):
            while not (found := await letters(mesh)):
                await asyncio.sleep(0.01)
    await dead.drop(js, found[0])
    await js.ask(f"CONSUMER.DELETE.{stream.name}.shop-work", dict)
    async with mesh.serve(service), asyncio.timeout(5):
        while not await letters(mesh):
            await asyncio.sleep(0.01)


async def test_a_mark_is_no_dead_letter(mesh, stream, subject):
    await mesh.declare(stream)
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream)
    async def work() -> None: ...

    async with mesh.serve(service):
        mark = await mesh.publisher().send_bytes(f"{dead.subject_of(stream.name, 'shop-work')}.suspect.1")
        js = JetStream(mesh.transport)
        with pytest.raises(NotFound):
            await dead.dead_letter(js, mark.seq)
        assert [each async for each in dead.dead_letters(js, stream.name)] == []
