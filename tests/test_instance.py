"""A running instance: its life, its bounds, its drain, and what hostile callers cannot do to it."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
import time

import anyio
import pytest
from support import until

from meshkit import (
    Context,
    DeadlineExceeded,
    InternalError,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    Service,
    Unavailable,
    connect,
)
from meshkit import instance as instance_module
from meshkit.errors import from_headers


def gated(name="gated", **options):
    """A service whose handler waits for `gate`; `running` counts those that do."""
    service = Service(name, **options)
    service.gate = asyncio.Event()
    service.running = 0

    @service.endpoint()
    async def wait(ctx: Context) -> str:
        service.running += 1
        try:
            await service.gate.wait()
        finally:
            service.running -= 1
        return "done"

    return service


# Bounds


async def test_beyond_the_bound_a_call_is_refused_at_once(mesh):
    service = gated(concurrency=2, backlog=3)
    async with mesh.serve(service):
        calls = [asyncio.create_task(mesh.call("gated.wait", timeout=30)) for _ in range(5)]
        await until(lambda: service.running == 2)
        started = time.perf_counter()
        with pytest.raises(Overloaded, match="gated runs 2 requests and 3 wait") as e:
            await mesh.call("gated.wait")
        assert time.perf_counter() - started < 0.3
        assert e.value.executed is False
        assert e.value.instance
        assert service.running == 2
        service.gate.set()
        assert await asyncio.gather(*calls) == ["done"] * 5


async def test_what_waits_keeps_its_turn_and_its_deadline(mesh):
    service = gated(concurrency=1, backlog=10)
    order = []

    @service.endpoint()
    async def note(number: int) -> None:
        order.append(number)

    async with mesh.serve(service) as instance:
        first = asyncio.create_task(mesh.call("gated.wait", timeout=30))
        await until(lambda: service.running == 1)
        impatient = asyncio.create_task(mesh.call("gated.note", 99, timeout=0.1))
        rest = []
        for number in range(5):
            rest.append(asyncio.create_task(mesh.call("gated.note", number)))
            await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await impatient
        await until(lambda: instance._statistics[note].errors == 1)
        service.gate.set()
        await asyncio.gather(first, *rest)
    assert order == [0, 1, 2, 3, 4]


async def test_an_endpoints_own_bound_leaves_room_for_the_others(mesh):
    service = Service("shop", concurrency=4, backlog=0)
    gate = asyncio.Event()

    @service.endpoint(concurrency=2)
    async def slow() -> None:
        await gate.wait()

    @service.endpoint()
    async def quick() -> str:
        return "ok"

    async with mesh.serve(service):
        slow_ones = [asyncio.create_task(mesh.call(slow)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"shop.slow runs 2 requests"):
            await mesh.call(slow)
        assert await mesh.call(quick) == "ok"
        gate.set()
        await asyncio.gather(*slow_ones)


async def test_discovery_and_health_answer_while_every_slot_is_busy(mesh):
    service = gated(concurrency=1, backlog=1)

    @service.health
    async def database() -> None: ...

    async with mesh.serve(service):
        calls = [asyncio.create_task(mesh.call("gated.wait", timeout=30)) for _ in range(2)]
        await until(lambda: service.running == 1)
        for subject in ("$SRV.PING.gated", "$SRV.INFO.gated", "$SRV.STATS.gated", "_MESH.health.gated"):
            started = time.perf_counter()
            await mesh.transport.request(subject, b"", None, asyncio.get_running_loop().time() + 5)
            assert time.perf_counter() - started < 0.3
        service.gate.set()
        await asyncio.gather(*calls)


async def test_an_events_time_begins_with_its_turn(mesh):
    heard = []
    listener = Service("listener")

    @listener.subscribe("slow", timeout=0.2)
    async def on(number: int) -> None:
        await asyncio.sleep(0.1 if number else 0.5)
        heard.append(number)

    async with mesh.serve(listener):
        for number in range(5):
            await mesh.publish("slow", number)
        await until(lambda: heard == [1, 2, 3, 4])  # 0 took too long


async def test_too_many_events_are_dropped_with_a_word(mesh, caplog):
    gate = asyncio.Event()
    heard = []
    listener = Service("listener")

    @listener.subscribe("flood")
    async def on(number: int) -> None:
        await gate.wait()
        heard.append(number)

    listener.subscriptions[0].backlog = 5
    async with mesh.serve(listener):
        for number in range(10):
            await mesh.publish("flood", number)
        await mesh.transport.flush()
        await asyncio.sleep(0)
        gate.set()
    assert heard == [0, 1, 2, 3, 4, 5]
    assert "1 events dropped so far" in caplog.text
    assert "4 events dropped so far: on runs 1 requests and 5 wait" in caplog.text


# `def` handlers


async def test_def_handlers_run_side_by_side_in_threads(mesh):
    service = Service("sync")
    meet = threading.Barrier(5, timeout=5)

    @service.endpoint()
    def together() -> str:
        meet.wait()
        return threading.current_thread().name

    async with mesh.serve(service):
        names = await asyncio.gather(*(mesh.call(together) for _ in range(5)))
    assert len(set(names)) == 5


async def test_a_thread_that_does_not_stop_is_answered_for(mesh):
    service = Service("sync")
    release = threading.Event()

    @service.endpoint(timeout=0.1)
    def stuck() -> None:
        release.wait(10)

    @service.endpoint()
    def fine() -> str:
        return "ok"

    async with mesh.serve(service):
        with pytest.raises(DeadlineExceeded):
            await mesh.call(stuck)
        assert await mesh.call(fine) == "ok"
        release.set()


async def test_stop_iteration_is_a_failure_like_any_other(mesh):
    service = Service("sync")
    heard = []

    @service.endpoint()
    def empty() -> int:
        return next(iter(()))

    @service.subscribe("numbers")
    def on_number(number: int) -> None:
        heard.append(number)
        next(iter(()))

    async with mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call(empty)
        for number in range(3):
            await mesh.publish("numbers", number)
        await until(lambda: heard == [0, 1, 2])


async def test_a_def_around_an_async_def_is_awaited(mesh):
    service = Service("wrapped")

    def logged(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @service.endpoint()
    @logged
    async def hello(name: str) -> str:
        return f"hello {name}"

    async with mesh.serve(service):
        assert await mesh.call(hello, "Ann") == "hello Ann"


async def test_ctx_run_is_for_threads_only(mesh):
    service = Service("mixed")

    @service.endpoint()
    async def wrong(ctx: Context) -> str:
        with pytest.raises(RuntimeError, match="an `async def` handler awaits"):
            ctx.run(ctx.mesh.call("mixed.wrong"))
        return "ok"

    async with mesh.serve(service):
        assert await mesh.call(wrong) == "ok"


# Lifespan and health


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


async def test_health(mesh):
    well = {"disk": True}
    service = Service("patient")

    @service.lifespan
    async def around():
        yield well

    @service.health
    async def database() -> None:
        if not well["disk"]:
            raise ConnectionError("gone")

    @service.health
    def disk(state) -> bool:
        return state["disk"]

    async with mesh.serve(service):
        assert (await mesh.service("patient")).instances[0].healthy is True
        well["disk"] = False
        instance = (await mesh.service("patient")).instances[0]
        assert instance.healthy is False
        assert instance.checks["database"] == "ConnectionError: gone"
        assert "the check returned False" in instance.checks["disk"]


async def test_a_def_health_check_needs_none_of_the_handlers_threads(mesh):
    service = Service("busy")
    release = threading.Event()

    @service.endpoint()
    def stuck() -> None:
        release.wait(10)

    @service.health
    def well() -> None: ...

    async with mesh.serve(service):
        calls = [asyncio.create_task(mesh.call(stuck)) for _ in range(50)]
        await asyncio.sleep(0)
        assert (await mesh.service("busy")).instances[0].healthy is True
        release.set()
        await asyncio.gather(*calls)


async def test_several_services_on_one_connection(mesh):
    one, other = gated("one"), gated("other")
    one.gate.set()
    other.gate.set()
    async with mesh.serve(one), mesh.serve(other):
        assert await mesh.call("one.wait") == "done"
        assert await mesh.call("other.wait") == "done"
        assert {"one", "other"} <= {service.name for service in await mesh.services()}


# Statistics


async def test_statistics_count_calls_refusals_and_errors(mesh):
    service = Service("counted")

    @service.endpoint()
    async def maybe(number: int) -> int:
        if number == 3:
            raise NotFound("three")
        return number

    async with mesh.serve(service):
        for number in (1, 2, 3, "four"):
            with contextlib.suppress(MeshError):
                await mesh.call(maybe, number)
        await mesh.publish("counted.maybe", 5)  # nobody waits for the answer
        await mesh.transport.flush()
        (endpoint,) = (await mesh.service("counted")).endpoints
    assert (endpoint.num_requests, endpoint.num_errors) == (5, 2)
    assert endpoint.last_error.startswith("400:the message is not understood")
    assert endpoint.processing_time > 0
    assert endpoint.average_processing_time == endpoint.processing_time // 5


# Draining


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


# Hostile callers


async def test_hostile_input_gets_an_error_and_the_service_goes_on(mesh):
    service = Service("target")

    @service.endpoint("target.typed")
    async def typed(numbers: dict[str, list[int]]) -> int:
        return len(numbers)

    @service.endpoint("target.raw")
    async def raw(payload: bytes) -> int:
        return len(payload)

    @service.endpoint("target.large")
    async def large(size: int) -> bytes:
        return b"x" * size

    async with mesh.serve(service):
        for payload in (
            b"\x00\xff\xfe",
            b"{" * 100_000,
            b"[" * 500_000,
            b'{"a": [1, "two"]}',
            b'{"a": 1e999}',
            b"\xed\xa0\x80",
            b'"\xff"',
            b"null",
            b"9" * 900_000,
        ):
            error = await answered(mesh, "target.typed", payload)
            assert error.code == 400, payload[:20]
        most = mesh.transport.max_payload
        assert await mesh.call(raw, b"x" * (most - 100)) == most - 100
        with pytest.raises(
            InternalError, match=r"the reply cannot be sent: .* bytes, the server takes 1,048,576"
        ):
            await mesh.call(large, most + 1)
        for headers in ({"Mesh-Timeout": "x" * 4000}, {"Content-Type": "x" * 4000}, {"X" * 4000: "y"}):
            await answered(mesh, "target.typed", b"{}", headers)
        assert await mesh.call(typed, {"a": [1]}) == 1


async def answered(mesh, subject, payload, headers=None):
    message = await mesh.transport.request(subject, payload, headers, asyncio.get_running_loop().time() + 5)
    return from_headers(message.headers or {})


async def test_a_flood_is_answered_and_bounded(mesh, caplog):
    caplog.set_level(logging.ERROR)
    service = gated(concurrency=2, backlog=2)
    async with mesh.serve(service) as instance:
        calls = [asyncio.create_task(mesh.call("gated.wait", timeout=30)) for _ in range(1500)]
        await until(lambda: sum(call.done() for call in calls) == 1496)
        assert len(instance._tasks) == 4
        service.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(result == "done" for result in results) == 4
    assert sum(isinstance(result, Overloaded) for result in results) == 1496
