"""A running instance: its bounds, its statistics, and what hostile callers cannot do to it."""

import asyncio
import contextlib
import gc
import logging
import threading
import time
import tracemalloc

import pytest
from support import gated, until

from meshkit import (
    DeadlineExceeded,
    InternalError,
    MeshError,
    NotFound,
    Overloaded,
    Service,
)
from meshkit.errors import from_headers
from meshkit.headers import render

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
        await until(lambda: instance._accounts.statistics[note].errors == 1)
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
            await mesh.transport.request(subject, b"", b"", asyncio.get_running_loop().time() + 5)
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


async def test_several_services_on_one_connection(mesh):
    one, other = gated("one"), gated("other")
    one.gate.set()
    other.gate.set()
    async with mesh.serve(one), mesh.serve(other):
        assert await mesh.call("one.wait") == "done"
        assert await mesh.call("other.wait") == "done"
        assert {"one", "other"} <= {service.name for service in await mesh.services()}


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


async def test_a_timeout_with_much_white_space_is_not_kept(mesh):
    service = Service("padded")

    @service.endpoint()
    async def nothing() -> None: ...

    async with mesh.serve(service):
        await answered(mesh, "padded.nothing", b"")
        tracemalloc.start()
        try:
            for number in range(10):
                error = await answered(
                    mesh, "padded.nothing", b"", {"Mesh-Timeout": f"{' ' * 900_000}{5000 + number}"}
                )
                assert error is None or error.code == 400
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 4_000_000
        finally:
            tracemalloc.stop()


async def answered(mesh, subject, payload, headers=None):
    message = await mesh.transport.request(
        subject, payload, render(headers or {}), asyncio.get_running_loop().time() + 5
    )
    return from_headers(message.headers)


async def test_a_flood_is_answered_and_bounded(mesh, caplog):
    caplog.set_level(logging.ERROR)
    service = gated(concurrency=2, backlog=2)
    async with mesh.serve(service) as instance:
        calls = [asyncio.create_task(mesh.call("gated.wait", timeout=30)) for _ in range(1500)]
        await until(lambda: sum(call.done() for call in calls) == 1496)
        assert len(instance._running) == 4
        service.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(result == "done" for result in results) == 4
    assert sum(isinstance(result, Overloaded) for result in results) == 1496
