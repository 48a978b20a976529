"""An instance that leaves: what runs is finished, and what waits is for others."""

import asyncio

import pytest
from support import until

from meshkit import Context, Redeliver, Service, connect
from meshkit import instance as instance_module
from meshkit.durable.jetstream import JetStream


async def test_what_runs_is_finished_and_what_waits_is_handled_elsewhere_at_once(
    nats_server, mesh, stream, subject, said
):
    gate, begun, handled, service = asyncio.Event(), [], [], Service("shop")

    @service.consume(f"{subject}.a", stream=stream, concurrency=2, max_deliver=1)
    async def work(number: int, ctx: Context) -> None:
        begun.append(ctx.instance)
        if ctx.instance == "shop/old":
            await gate.wait()
        handled.append((number, ctx.instance, ctx.delivery.attempt))

    async with connect(nats_server.url) as first:
        serving = first.serve(service, instance_id="old")
        await serving.__aenter__()
        for number in range(4):
            await mesh.publish(f"{subject}.a", number, durable=True)
        await until(lambda: len(begun) == 2)
        async with mesh.serve(service, instance_id="new"):
            leaving = asyncio.create_task(serving.__aexit__(None, None, None))
            await until(lambda: len(handled) == 2)
            assert handled == [(2, "shop/new", 2), (3, "shop/new", 2)]
            assert not leaving.done()
            gate.set()
            await leaving
            assert sorted(handled)[:2] == [(0, "shop/old", 1), (1, "shop/old", 1)]
            # That they were delivered twice, and may be once, kept nobody from trying.
            await until(lambda: [told for _, told in said].count(b"+ACK") == 4)


async def test_a_handler_that_does_not_end_is_stopped_and_its_message_handled_elsewhere(
    nats_server, mesh, stream, subject, monkeypatch
):
    monkeypatch.setattr(instance_module, "DRAIN_TIMEOUT", 0.1)
    begun, stopped, service = [], [], Service("shop")

    @service.consume(f"{subject}.a", stream=stream)
    async def work(ctx: Context) -> None:
        begun.append(ctx.delivery.attempt)
        if len(begun) == 1:
            try:
                await asyncio.sleep(60)
            finally:
                stopped.append(True)

    async with connect(nats_server.url) as first:
        async with first.serve(service):
            await mesh.publish(f"{subject}.a", durable=True)
            await until(lambda: begun)
        assert stopped
        async with mesh.serve(service):
            await until(lambda: begun == [1, 2])


async def test_what_waits_for_its_rate_limit_is_given_back(mesh, stream, subject, said):
    handled, service = [], Service("shop")

    @service.consume(f"{subject}.a", stream=stream, rate_limit="1/hour", concurrency=2)
    async def work(number: int) -> None:
        handled.append(number)

    async with mesh.serve(service):
        for number in range(4):
            await mesh.publish(f"{subject}.a", number, durable=True)
        await until(lambda: handled)
        leaving = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - leaving < 2
    assert handled == [0]
    await until(lambda: len(said) == 4)
    assert sorted(told for _, told in said) == [b"+ACK", b"-NAK", b"-NAK", b"-NAK"]


async def test_a_delay_that_a_handler_names_is_kept_when_its_instance_leaves(mesh, stream, subject, said):
    gate, begun, service = asyncio.Event(), asyncio.Event(), Service("shop")

    @service.consume(f"{subject}.a", stream=stream)
    async def work() -> None:
        begun.set()
        await gate.wait()
        raise Redeliver(delay="1h")

    serving = mesh.serve(service)
    await serving.__aenter__()
    await mesh.publish(f"{subject}.a", durable=True)
    await begun.wait()
    leaving = asyncio.create_task(serving.__aexit__(None, None, None))
    await asyncio.sleep(0.05)
    gate.set()
    await leaving
    await until(lambda: said == [("1", b'-NAK {"delay":3600000000000}')])


async def test_an_instance_with_too_much_to_do_gives_messages_back(mesh, stream, subject, said):
    handled, full, service = [], False, Service("shop")

    @service.consume(f"{subject}.a", stream=stream, concurrency=1, retry_delay="20ms")
    async def work(number: int) -> None:
        nonlocal full
        handled.append(number)
        full = len(handled) == 1

    async with mesh.serve(service) as instance:
        spawn = instance._workers[0]._spawn

        def refuse(request, coroutine):
            if full:
                coroutine.close()
                return False
            return spawn(request, coroutine)

        instance._workers[0]._spawn = refuse
        for number in range(6):
            await mesh.publish(f"{subject}.a", number, durable=True)
        await until(lambda: len(said) >= 3)
        full = False
        await until(lambda: sorted(handled) == list(range(6)))


async def test_an_instance_that_cannot_start_gives_back_what_it_has(
    nats_server, mesh, stream, subject, monkeypatch
):
    handled, service, broken = [], Service("shop"), Service("shop")

    for each in (service, broken):

        @each.consume(f"{subject}.a", stream=stream)
        async def work(number: int, ctx: Context) -> None:
            await asyncio.sleep(0.02)
            handled.append(number)

    await mesh.declare(stream)
    for number in range(50):
        await mesh.publish(f"{subject}.a", number, durable=True)
    async with connect(nats_server.url) as other:
        flush = other.transport.flush

        async def fail():
            await flush()
            raise RuntimeError("no start")

        monkeypatch.setattr(other.transport, "flush", fail)
        with pytest.raises(RuntimeError, match="no start"):
            async with other.serve(broken):
                pass
        async with mesh.serve(service):
            await until(lambda: sorted(handled) == list(range(50)))


async def test_a_lifespan_may_publish_to_what_is_consumed(mesh, stream, subject):
    handled, service = [], Service("shop")

    @service.lifespan
    async def around(mesh):
        await mesh.publish(f"{subject}.a", 1, durable=True)
        yield "state"
        await mesh.publish(f"{subject}.a", 2, durable=True)

    @service.consume(f"{subject}.a", stream=stream)
    async def work(number: int, ctx: Context) -> None:
        handled.append((number, ctx.state))

    async with mesh.serve(service):
        await until(lambda: handled == [(1, "state")])
    async with mesh.serve(service):
        await until(lambda: len(handled) == 3)
    assert sorted(handled) == [(1, "state"), (1, "state"), (2, "state")]


async def test_a_lifespan_that_fails_leaves_nothing_consumed(mesh, stream, subject):
    service = Service("shop")

    @service.lifespan
    async def around():
        raise RuntimeError("no")
        yield

    @service.consume(f"{subject}.a", stream=stream)
    async def work() -> None: ...

    with pytest.raises(RuntimeError):
        async with mesh.serve(service):
            pass
    js = JetStream(mesh.transport)
    assert (await js.consumer(stream.name, "shop-work")).num_waiting == 0


async def test_endpoints_groups_and_consumers_live_in_one_service(mesh, stream, subject):
    handled, service = [], Service("shop")
    group = service.group(subject)

    @service.endpoint("shop.handled")
    async def count() -> int:
        return len(handled)

    @service.health
    async def broken() -> bool:
        return False

    @group.consume("{what}", stream=stream)
    async def work(what: str, ctx: Context) -> None:
        handled.append(what)
        assert await ctx.mesh.call("shop.handled") == len(handled)

    async with mesh.serve(service) as instance:
        await mesh.publish(f"{subject}.thing", durable=True)
        await until(lambda: instance.report().served[1].outcomes["ok"].count == 1)
        assert await instance.health() == {"broken": "RuntimeError: the check returned False"}
        info = await mesh.service("shop")
        assert [endpoint.name for endpoint in info.endpoints] == ["count"] or info.endpoints
    assert handled == ["thing"]


@pytest.mark.parametrize("how", ["a stream that is gone", "a limit that is used up"])
async def test_what_was_delivered_too_often_without_its_handler_is_handled_in_the_end(
    mesh, stream, subject, letters, how
):
    """However often an instance had to give it back: that says nothing of the message."""
    js, handled = JetStream(mesh.transport), []
    limited = {"rate_limit": "1/hour"} if how.startswith("a limit") else {"deduplicate": "1d"}

    def service(**given):
        made = Service("shop")

        @made.consume(f"{subject}.a", stream=stream, max_deliver=2, **given)
        async def work(number: int) -> None:
            handled.append(number)

        return made

    async with mesh.serve(service(**limited)):
        await mesh.publish(f"{subject}.a", 0, durable=True)
        await until(lambda: handled == [0])
    if "deduplicate" in limited:
        await js.ask(f"STREAM.DELETE.MESH_DONE-{stream.name}-shop-work", dict)
    await mesh.publish(f"{subject}.a", 1, durable=True)
    for _ in range(4):
        waiting = service(rate_limit="1/hour")
        async with mesh.serve(waiting):
            await mesh.publish(f"{subject}.a", 2, durable=True)
            await asyncio.sleep(0.1)
            leaving = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - leaving < 2
    async with mesh.serve(service()):
        await until(lambda: {1, 2} <= set(handled))
    assert await letters(mesh) == []
