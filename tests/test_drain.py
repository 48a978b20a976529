"""An instance that leaves: nothing is lost, and nothing stays."""

import asyncio
import contextlib
import os
import signal
import time

import pytest
from support import gated, until

from meshkit import (
    Context,
    DeadlineExceeded,
    NoResponders,
    NotFound,
    Service,
    Unavailable,
    connect,
)
from meshkit import instance as instance_module


async def test_a_drain_answers_what_runs_and_takes_nothing_new(nats_server):
    service = gated(concurrency=2)
    async with connect(nats_server.url) as caller, connect(nats_server.url) as mesh:
        serving = mesh.serve(service)
        await serving.__aenter__()
        calls = [asyncio.create_task(caller.call("gated.wait", timeout=30)) for _ in range(4)]
        await until(lambda: service.running == 2)
        leaving = asyncio.create_task(serving.__aexit__(None, None, None))
        # Gone from discovery and from the queue group before the calls are answered.
        await until_refused(caller, "gated.wait")
        with pytest.raises(NotFound):
            await caller.service("gated")
        assert not leaving.done()
        service.gate.set()
        assert await asyncio.gather(*calls) == ["done"] * 4
        await leaving


async def until_refused(mesh, subject):
    async with asyncio.timeout(5):
        while True:
            try:
                await mesh.call(subject, timeout=0.05)
            except NoResponders:
                return
            except DeadlineExceeded:
                pass


async def test_nested_calls_work_while_draining(nats_server):
    """nats-py drains the inbox of its requests together with everything else."""
    helper, service = Service("helper"), Service("outer")
    entered, go = asyncio.Event(), asyncio.Event()

    @helper.endpoint()
    async def help_out() -> str:
        return "helped"

    @service.endpoint()
    async def outer(ctx: Context) -> str:
        entered.set()
        await go.wait()
        return await ctx.mesh.call(help_out)

    async with connect(nats_server.url) as caller, caller.serve(helper), connect(nats_server.url) as mesh:
        serving = mesh.serve(service)
        await serving.__aenter__()
        call = asyncio.create_task(caller.call(outer))
        await entered.wait()
        leaving = asyncio.create_task(serving.__aexit__(None, None, None))
        await until_refused(caller, "outer.outer")
        go.set()
        assert await call == "helped"
        await leaving


async def test_what_outlasts_the_drain_is_answered_too(mesh, monkeypatch):
    monkeypatch.setattr(instance_module, "DRAIN_TIMEOUT", 0.05)
    service = gated(concurrency=1)
    async with mesh.serve(service):
        calls = [asyncio.create_task(mesh.call("gated.wait", timeout=30)) for _ in range(2)]
        await until(lambda: service.running == 1)
        await asyncio.sleep(0)
    for call in calls:
        with pytest.raises(Unavailable, match="stopped before the call was finished") as e:
            await call
        assert e.value.executed is None


async def test_a_handler_that_does_not_end_is_left(mesh, monkeypatch, caplog):
    monkeypatch.setattr(instance_module, "DRAIN_TIMEOUT", 0.05)
    monkeypatch.setattr(instance_module, "_CANCEL_TIMEOUT", 0.05)
    service = Service("stubborn")
    gate = asyncio.Event()

    @service.endpoint()
    async def stay() -> None:
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    async with mesh.serve(service):
        call = asyncio.create_task(mesh.call(stay))
        await asyncio.sleep(0.05)
    assert "1 handlers do not end when they are cancelled" in caplog.text
    gate.set()
    await asyncio.gather(call, return_exceptions=True)


async def test_a_drain_while_the_server_stalls_leaves_no_zombie(clock, caplog):
    from meshkit.transport.server import EmbeddedServer

    service = gated()
    left = []

    @service.lifespan
    async def around():
        yield
        left.append(service.running)

    with EmbeddedServer() as server:
        async with connect(server.url) as mesh:
            serving = mesh.serve(service)
            await serving.__aenter__()
            call = asyncio.create_task(mesh.call("gated.wait", timeout=100))
            while not service.running:
                await asyncio.to_thread(time.sleep, 0.01)
            os.kill(server.pid, signal.SIGSTOP)
            leaving = asyncio.create_task(serving.__aexit__(None, None, None))
            await clock.advance(11)
            assert not leaving.done()  # the handler still runs
            service.gate.set()
            await clock.advance(1)
            os.kill(server.pid, signal.SIGCONT)
            await leaving
            assert left == [0]
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.to_thread(server.restart)
            while not mesh.transport.is_connected:
                await clock.advance(0.1)
                await asyncio.to_thread(time.sleep, 0.01)
            with pytest.raises(NoResponders):
                await mesh.call("gated.wait")


async def test_no_call_is_lost_when_one_of_two_instances_leaves(nats_server):
    service = Service("relay")

    @service.endpoint()
    async def echo(number: int) -> int:
        await asyncio.sleep(0.002)
        return number

    async def caller(mesh, answers):
        for number in range(100):
            answers.append(await mesh.call(echo, number))

    answers = []
    async with (
        connect(nats_server.url) as calling,
        connect(nats_server.url) as first,
        connect(nats_server.url) as second,
        first.serve(service),
    ):
        load = [asyncio.create_task(caller(calling, answers)) for _ in range(10)]
        for _ in range(5):
            async with second.serve(service):
                seen = len(answers)
                await until(lambda seen=seen: len(answers) > seen + 50 or all(task.done() for task in load))
        await asyncio.gather(*load)
    assert len(answers) == 1000


async def test_an_instance_that_drains_without_a_server_ends(monkeypatch):
    from meshkit.transport.server import EmbeddedServer

    service = gated()
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh, mesh.serve(service):
            await asyncio.to_thread(server.kill)
            await until(lambda: not mesh.transport.is_connected)
