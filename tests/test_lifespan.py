"""What surrounds an instance's life."""

import asyncio

import anyio
import pytest
from support import gated, until

from meshkit import (
    Context,
    NoResponders,
    NotFound,
    Service,
    connect,
)


async def test_the_lifespan_surrounds_everything(mesh):
    happened = []
    service = Service("alive")

    @service.lifespan
    async def around(own_mesh):
        happened.append("enter")
        yield {"mesh": own_mesh}
        happened.append("leave")

    @service.endpoint()
    async def who(ctx: Context) -> bool:
        happened.append("call")
        return ctx.state["mesh"] is ctx.mesh

    async with mesh.serve(service):
        assert await mesh.call(who)
    assert happened == ["enter", "call", "leave"]


async def test_a_lifespan_without_a_parameter(mesh):
    service = Service("alive")

    @service.lifespan
    async def around():
        yield 7

    async with mesh.serve(service) as instance:
        assert instance.state == 7


async def test_a_lifespan_may_have_a_task_group(mesh):
    service = Service("alive")
    ended = []

    async def background():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("background")

    @service.lifespan
    async def around():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(background)
            yield
            tasks.cancel_scope.cancel()

    async with mesh.serve(service):
        pass
    assert ended == ["background"]


async def test_a_drain_is_not_cut_short_by_a_scope_that_is_cancelled(nats_server):
    service = gated()
    async with connect(nats_server.url) as caller:
        with anyio.CancelScope() as scope:
            async with connect(nats_server.url) as mesh, mesh.serve(service):
                call = asyncio.create_task(caller.call("gated.wait"))
                await until(lambda: service.running == 1)
                asyncio.get_running_loop().call_later(0.1, service.gate.set)
                scope.cancel()
                await asyncio.sleep(0)
        assert await call == "done"


async def test_a_lifespan_is_left_in_full_when_the_serving_task_is_cancelled(nats_server):
    closed = []
    service = Service("alive")

    @service.lifespan
    async def around():
        try:
            yield
        finally:
            await asyncio.sleep(0.01)
            closed.append("pool")

    with anyio.CancelScope() as scope:
        async with connect(nats_server.url) as mesh, mesh.serve(service):
            scope.cancel()
            await asyncio.sleep(0)
    assert closed == ["pool"]


async def test_a_lifespan_that_fails_meanwhile_stops_the_service(mesh):
    service = Service("alive")
    fail = asyncio.Event()

    async def background():
        await fail.wait()
        raise ConnectionError("the queue is gone")

    @service.lifespan
    async def around():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(background())
            yield

    async def serve():
        async with mesh.serve(service):
            fail.set()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as raised:
        await serve()
    assert raised.group_contains(ConnectionError, match="the queue is gone")
    with pytest.raises(NotFound):
        await mesh.service("alive")


async def test_a_second_cancellation_leaves_the_drain_to_itself(mesh):
    """The lifespan is not left under a handler that runs."""
    service = gated()
    left = asyncio.Event()

    @service.lifespan
    async def around():
        yield
        assert service.running == 0
        left.set()

    async def serve():
        async with mesh.serve(service):
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    call = asyncio.create_task(answered_at_last(mesh, "gated.wait"))
    await until(lambda: service.running == 1)
    for _ in range(2):
        serving.cancel()
        await asyncio.sleep(0.01)
    assert serving.cancelled()
    assert not left.is_set()
    service.gate.set()
    await left.wait()
    assert await call == "done"


async def answered_at_last(mesh, subject):
    async with asyncio.timeout(5):
        while True:
            try:
                return await mesh.call(subject)
            except NoResponders:
                await asyncio.sleep(0.01)


async def test_a_lifespan_that_fails_leaves_nothing_behind(mesh):
    service = Service("broken")

    @service.lifespan
    async def around():
        raise RuntimeError("no database")
        yield

    @service.endpoint()
    async def never() -> None: ...

    with pytest.raises(RuntimeError, match="no database"):
        async with mesh.serve(service):
            pass
    with pytest.raises(NotFound):
        await mesh.service("broken")
