"""What becomes of dead letters."""

import asyncio

import pytest
from support import until

from meshkit import Context, MeshError, NotFound, Reject, Service
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
