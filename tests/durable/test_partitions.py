"""Messages of the same key are handled in order, whatever fails and whoever handles them."""

import asyncio
import random

import pytest
from support import until

from meshkit import ConfigError, Context, Reject, Service, StreamConfig, connect
from meshkit.durable import dead
from meshkit.durable.jetstream import JetStream


async def test_messages_of_a_key_are_handled_in_order_by_two_instances_that_fail(
    nats_server, mesh, stream, subject
):
    handled, running, instances = {}, set(), set()
    chance = random.Random(7)
    service = Service("shop")

    @service.consume(
        f"{subject}.{{region}}.{{customer}}.changed.>",
        stream=stream,
        ordered_by="customer",
        partitions=4,
        retry_delay="10ms",
        max_deliver=50,
        concurrency=3,
    )
    async def follow(region: str, customer: str, number: int, ctx: Context) -> None:
        assert customer not in running
        running.add(customer)
        try:
            await asyncio.sleep(0.001)
            if chance.random() < 0.1:
                raise ValueError("try again")
        finally:
            running.discard(customer)
        instances.add(ctx.instance)
        assert ctx.subject == f"{subject}.{region}.{customer}.changed.x.y"
        assert (ctx.delivery.stream, ctx.delivery.id.startswith(customer)) == (
            f"{stream.name}-shop-follow",
            True,
        )
        handled.setdefault(customer, []).append(number)

    async with connect(nats_server.url) as other, mesh.serve(service), other.serve(service):
        async with mesh.publisher() as publisher:
            for number in range(300):
                customer, region = "abcdefg"[number % 7], "us" if number % 2 else "eu"
                await publisher.publish(
                    f"{subject}.{region}.{customer}.changed.x.y", number, id=f"{customer}{number}"
                )
        await until(lambda: sum(map(len, handled.values())) == 300, 15)
    assert {customer: sorted(numbers) for customer, numbers in handled.items()} == handled
    assert len(instances) == 2


async def test_a_message_that_fails_blocks_its_own_partition_alone(mesh, stream, subject):
    handled, service = [], Service("shop")

    @service.consume(f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=8, retry_delay="60s")
    async def follow(key: str, number: int) -> None:
        if number == 0 and key == "a":
            raise ValueError("not now")
        handled.append((key, number))

    async with mesh.serve(service):
        for key in "abcdefgh":
            for number in range(3):
                await mesh.publish(f"{subject}.{key}", number, durable=True)
        js, name = JetStream(mesh.transport), f"{stream.name}-shop-follow"
        async with asyncio.timeout(5):  # until only that partition's are left
            while (state := (await js.stream(name)).state).last_seq < 24 or state.messages > 24 - len(
                handled
            ):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        left = [message.subject.split(".")[-3:] async for message in js.messages(name, ">")]
    assert len({partition for partition, *_ in left}) == 1
    blocked = {key for *_, key in left}
    assert "a" in blocked
    assert sorted(handled) == [(key, n) for key in "abcdefgh" if key not in blocked for n in range(3)]
    assert handled


async def test_more_partitions_than_are_handled_at_a_time(mesh, stream, subject, letters):
    running, most, done, service = 0, 0, [], Service("shop")

    @service.consume(
        f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=40, concurrency=2, max_deliver=1
    )
    async def follow(key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        done.append(key)

    async with mesh.serve(service) as instance:
        async with mesh.publisher() as publisher:
            for number in range(200):
                await publisher.publish(f"{subject}.{number}")
        await until(lambda: len(done) == 200)
        assert not await letters(mesh)
        assert instance.report().served[0].consumed.redelivered == 0
    assert most == 2


async def test_another_number_of_partitions_is_refused(mesh, stream, subject):
    def service(partitions, key):
        made = Service("shop")

        @made.consume(f"{subject}.{{a}}.{{b}}", stream=stream, ordered_by=key, partitions=partitions)
        async def follow(a: str, b: str) -> None: ...

        return made

    for _ in range(2):
        async with mesh.serve(service(4, "b")):
            pass
    for wrong in (service(5, "b"), service(4, "a")):
        with pytest.raises(
            ConfigError, match="another subject or number of partitions would change the order"
        ):
            async with mesh.serve(wrong):
                pass


async def test_new_messages_alone(mesh, stream, subject):
    handled, service = [], Service("shop")

    @service.consume(f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=2, start="new")
    async def follow(key: str) -> None:
        handled.append(key)

    await mesh.declare(stream)
    await mesh.publish(f"{subject}.old", durable=True)
    await asyncio.sleep(0.01)
    async with mesh.serve(service):
        await mesh.publish(f"{subject}.new", durable=True)
        await until(lambda: handled)
        await asyncio.sleep(0.1)
    # What comes while nobody runs is no less new, and later starts begin where the last ended.
    await mesh.publish(f"{subject}.meanwhile", durable=True)
    async with mesh.serve(service):
        await until(lambda: len(handled) == 2)
    assert handled == ["new", "meanwhile"]


async def test_an_id_that_the_stream_takes_again_is_handled_again(mesh, subject):
    stream = StreamConfig(subject.upper(), [f"{subject}.>"], storage="memory", duplicate_window="100ms")
    handled, service = [], Service("shop")

    @service.consume(f"{subject}.{{key}}", stream=stream, ordered_by="key", partitions=2)
    async def follow(key: str, number: int) -> None:
        handled.append(number)

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", 1, durable=True, id="same")
        await asyncio.sleep(0.25)
        stored = await mesh.publish(f"{subject}.a", 2, durable=True, id="same")
        assert not stored.duplicate
        await until(lambda: handled == [1, 2])


async def test_a_dead_letter_of_a_partition_is_replayed(mesh, stream, subject, letters):
    handled, is_broken, service = [], True, Service("shop")

    @service.consume(f"{subject}.{{key}}.x", stream=stream, ordered_by="key", partitions=3)
    async def follow(key: str, number: int, ctx: Context) -> None:
        if number == 1 and is_broken:
            raise Reject("no")
        handled.append((key, number, ctx.delivery.id))

    async with mesh.serve(service):
        for number in range(3):
            await mesh.publish(f"{subject}.k.x", number, durable=True, id=f"id{number}")
        await until(lambda: len(handled) == 2)
        [letter] = await letters(mesh)
        assert (letter.stream, letter.consumer, letter.id) == (stream.name, "shop-follow", "id1")
        assert letter.subject == f"{subject}.k.x"
        is_broken = False
        await dead.replay(JetStream(mesh.transport), mesh.publisher(), letter)
        await until(lambda: len(handled) == 3)
    assert handled[-1] == ("k", 1, "id1")
