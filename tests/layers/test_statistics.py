"""What is counted of calls, on both sides."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support import until

from meshkit import (
    BadRequest,
    CallPolicy,
    Context,
    MeshError,
    NoResponders,
    NotFound,
    Overloaded,
    Policies,
    Service,
    ServiceError,
    Unavailable,
    connect,
)
from meshkit.telemetry.distribution import total
from meshkit.telemetry.report import Called


def counts(outcomes):
    return {outcome: taken.count for outcome, taken in outcomes.items() if taken.count}


def served(instance, name):
    return next(each for each in instance.report().served if each.name == name)


def called(mesh, target):
    return next((each for each in mesh.called() if each.target == target), Called(target))


def pile(**options):
    """A service whose handler fails as it is told, and one that waits."""
    service = Service("pile", **options)
    service.gate = asyncio.Event()

    @service.endpoint(idempotent=True)
    async def answer(code: int) -> str:
        match code:
            case 0:
                return "well"
            case 1:
                raise RuntimeError("a bug")
            case 404:
                raise NotFound("not here")
            case 503:
                raise Unavailable("not now")
            case _:
                raise ServiceError(code, "on purpose")

    @service.endpoint()
    async def wait() -> str:
        await service.gate.wait()
        return "at last"

    return service


async def outcome(call):
    try:
        await call
    except (MeshError, StopAsyncIteration) as error:
        return error


async def test_calls_are_counted_by_outcome_the_same_on_both_sides(mesh):
    async with mesh.serve(pile()) as instance:
        for code in (0, 0, 0, 1, 404, 409, 477):
            await outcome(mesh.call("pile.answer", code, policy=CallPolicy(retries=0)))
        await outcome(mesh.call("pile.answer", "no number"))
        expected = {"ok": 3, "InternalError": 1, "NotFound": 1, "409": 1, "477": 1, "BadRequest": 1}
        assert counts(served(instance, "answer").outcomes) == expected
        assert counts(called(mesh, "pile.answer").outcomes) == expected
        assert served(instance, "answer").requests == called(mesh, "pile.answer").requests == 8


async def test_success_is_counted_with_the_retries_and_without(mesh):
    service = Service("shaky")
    left = [2]

    @service.endpoint(idempotent=True)
    async def answer() -> str:
        if left[0]:
            left[0] -= 1
            raise Unavailable("not yet")
        return "well"

    async with mesh.serve(service) as instance:
        await mesh.call(answer)
        report = called(mesh, "shaky.answer")
        assert counts(report.outcomes) == {"ok": 1}
        assert report.attempts == {"ok": 1, "Unavailable": 2}
        assert (report.requests, report.retries) == (1, 2)
        assert counts(served(instance, "answer").outcomes) == {"ok": 1, "Unavailable": 2}


async def test_what_is_never_sent_is_no_attempt(mesh):
    service = pile()
    own = Policies(call={"pile.wait": CallPolicy(concurrency=1, backlog=0)})
    async with connect(mesh.transport.server_url, policies=own) as caller, mesh.serve(service):
        first = asyncio.create_task(caller.call("pile.wait"))
        await until(lambda: called(caller, "pile.wait").in_flight == 1)
        error = await outcome(caller.call("pile.wait"))
        assert isinstance(error, Overloaded)
        report = called(caller, "pile.wait")
        assert (report.requests, report.in_flight, report.refusals) == (2, 1, {"Overloaded": 1})
        assert report.bound.running == report.bound.limit == 1
        service.gate.set()
        await first
        report = called(caller, "pile.wait")
        assert report.attempts == {"ok": 1}
        assert (report.in_flight, counts(report.outcomes)) == (0, {"ok": 1, "Overloaded": 1})


async def test_nobody_there_is_an_attempt_and_no_request_of_anybody(mesh):
    error = await outcome(mesh.call("nobody.there", policy=CallPolicy(retries=0)))
    assert isinstance(error, NoResponders)
    assert called(mesh, "nobody.there").attempts == {"ok": 0, "NoResponders": 1}


async def test_a_call_that_is_cancelled_is_over(mesh):
    async with mesh.serve(pile()) as instance:
        call = asyncio.create_task(mesh.call("pile.wait"))
        await until(lambda: served(instance, "wait").in_flight == 1)
        call.cancel()
        await asyncio.wait([call])
        report = called(mesh, "pile.wait")
        assert (report.in_flight, counts(report.outcomes)) == (0, {"Cancelled": 1})
        assert report.attempts == {"ok": 0, "Cancelled": 1}
        await until(lambda: served(instance, "wait").in_flight == 0)
        assert counts(served(instance, "wait").outcomes) == {"Cancelled": 1}


async def test_what_waits_for_a_slot_is_counted_with_how_long_it_did(mesh):
    service = pile(concurrency=1)
    async with mesh.serve(service) as instance:
        calls = [asyncio.create_task(mesh.call("pile.wait")) for _ in range(3)]
        await until(lambda: served(instance, "wait").in_flight == 3)
        bound = instance.report().bound
        assert (bound.running, bound.waiting, bound.limit) == (1, 2, 1)
        endpoints = (await mesh.service("pile")).instances[0].endpoints
        assert [each.data["bound"]["waiting"] for each in endpoints] == [2, 2]
        service.gate.set()
        await asyncio.gather(*calls)
        report = served(instance, "wait")
        assert report.queued.count == 2
        assert 0 < report.queued.sum <= total(report.outcomes.values()).sum


async def test_bytes_of_both_ways_are_counted_on_both_sides(mesh):
    service = Service("bytes")

    @service.endpoint()
    async def double(payload: bytes) -> bytes:
        return payload * 2

    async with mesh.serve(service) as instance:
        for _ in range(3):
            await mesh.call(double, b"x" * 100)
        report = served(instance, "double")
        assert (report.received, report.sent) == (300, 600)
        report = called(mesh, "bytes.double")
        assert (report.sent, report.received) == (300, 600)


async def test_events_are_counted_and_what_is_published(mesh):
    service = Service("listens")

    @service.subscribe("things.*")
    async def on_thing(number: int) -> None:
        if number < 0:
            raise BadRequest("below zero")

    async with mesh.serve(service) as instance:
        for number in (1, 2, -1):
            await mesh.publish("things.new", number)
        assert isinstance(await outcome(mesh.publish("things.new", "x" * 2_000_000)), BadRequest)
        await until(lambda: served(instance, "on_thing").requests == 3)
        await until(lambda: served(instance, "on_thing").in_flight == 0)
        report = served(instance, "on_thing")
        assert report.is_event
        assert counts(report.outcomes) == {"ok": 2, "BadRequest": 1}
        assert report.received == len("1" + "2" + "-1")
    [client] = mesh.reports()
    assert (client.name, client.id, client.published) == ("client", "", 3)


async def test_kinds_of_errors_beyond_many_are_counted_together(mesh):
    async with mesh.serve(pile()) as instance:
        for code in range(410, 460):
            await outcome(mesh.call("pile.answer", code, policy=CallPolicy(retries=0)))
        for outcomes in (served(instance, "answer").outcomes, called(mesh, "pile.answer").outcomes):
            assert len(outcomes) == 33  # success, and the one for all others
            assert outcomes["_OTHER"].count == 50 - 31
            assert total(outcomes.values()).count == 50


async def test_an_open_circuit_shows_in_the_services_statistics(mesh):
    broken, caller = Service("broken"), Service("caller")

    @broken.endpoint()
    async def fail() -> None:
        raise ServiceError(500, "broken")

    @caller.endpoint()
    async def relay(ctx: Context) -> None:
        await ctx.mesh.call(fail)

    async with mesh.serve(broken), mesh.serve(caller) as instance:
        for _ in range(8):
            await outcome(mesh.call(relay))
        [endpoint] = (await mesh.service("caller")).instances[0].endpoints
        assert endpoint.data["circuits"] == {"broken.fail": "open"}
        assert [each.circuit for each in instance.report().called] == ["open"]


@pytest.mark.parametrize("calls", [1, 300])
async def test_targets_beyond_many_are_counted_together(mesh, calls):
    for number in range(calls):
        await outcome(mesh.call(f"nobody.{number}", policy=CallPolicy(retries=0)))
    report = {each.target: each for each in mesh.called()}
    assert len(report) == (1 if calls == 1 else 257)
    if calls > 1:
        assert report["_OTHER"].requests == calls - 256
    assert sum(each.requests for each in report.values()) == calls


async def test_bytes_of_the_items_of_a_stream_are_counted_as_they_are_sent(mesh):
    service = Service("lines")
    gate = asyncio.Event()

    @service.endpoint()
    async def tail() -> AsyncIterator[bytes]:
        yield b"x" * 10
        yield b"y" * 20
        await gate.wait()

    async with mesh.serve(service) as instance:
        async with mesh.stream(tail) as items:
            await anext(items)
            await until(lambda: served(instance, "tail").sent == 30)
            assert served(instance, "tail").in_flight == 1
            gate.set()
            assert [item async for item in items] == [b"y" * 20]
        await until(lambda: counts(served(instance, "tail").outcomes) == {"ok": 1})


async def test_a_stream_is_counted_by_how_it_ends_on_both_sides(mesh):
    service = Service("lines")

    @service.endpoint()
    async def tail(most: int) -> AsyncIterator[bytes]:
        for _ in range(most):
            yield b"x" * 10
        if most > 2:
            raise ServiceError(599, "the disk is gone")

    async with mesh.serve(service) as instance:
        assert len([item async for item in mesh.stream(tail, 2)]) == 2
        assert isinstance(await outcome(anext(aiter(mesh.stream(tail, b"no number")))), BadRequest)
        items = mesh.stream(tail, 5)
        await anext(items)
        assert called(mesh, "lines.tail").in_flight == 1
        with pytest.raises(ServiceError):
            [item async for item in items]
        report = called(mesh, "lines.tail")
        assert counts(report.outcomes) == counts(served(instance, "tail").outcomes)
        assert counts(report.outcomes) == {"ok": 1, "BadRequest": 1, "599": 1}
        assert (report.requests, report.in_flight, report.received) == (3, 0, 70)


async def test_a_stream_that_is_dropped_is_over(mesh):
    service = Service("lines")

    @service.endpoint()
    async def tail() -> AsyncIterator[int]:
        while True:
            yield 1
            await asyncio.sleep(0)

    async with mesh.serve(service):
        async for _ in mesh.stream(tail):
            break
        await until(lambda: called(mesh, "lines.tail").in_flight == 0)
        assert counts(called(mesh, "lines.tail").outcomes) == {"ok": 1}


async def test_an_answer_that_cannot_be_sent_is_a_failure_on_both_sides(mesh):
    service = Service("large")

    @service.endpoint()
    async def answer() -> bytes:
        return b"x" * 2_000_000

    async with mesh.serve(service) as instance:
        await outcome(mesh.call(answer))
        assert counts(served(instance, "answer").outcomes) == {"InternalError": 1}
        assert counts(called(mesh, "large.answer").outcomes) == {"InternalError": 1}


async def test_a_request_whose_deadline_cannot_be_read_is_counted(mesh):
    async with mesh.serve(pile()) as instance:
        message = await mesh.transport.request(
            "pile.answer", b"0", b"\r\nMesh-Timeout: soon", asyncio.get_running_loop().time() + 2
        )
        assert message.headers["Nats-Service-Error-Code"] == "400"
        assert counts(served(instance, "answer").outcomes) == {"BadRequest": 1}


@pytest.mark.parametrize("text", ["x" * 2_000_000, "\udc80"])
async def test_whatever_a_handler_raises_the_statistics_can_be_sent(mesh, text):
    service = Service("loud")

    @service.endpoint()
    async def fail() -> None:
        raise NotFound(text)

    async with mesh.serve(service):
        await outcome(mesh.call(fail))
        [endpoint] = (await mesh.service("loud")).endpoints
        assert endpoint.num_errors == 1
        assert len(endpoint.last_error) < 400


async def test_those_that_are_counted_one_by_one_stay_when_targets_are_forgotten(mesh):
    await outcome(mesh.call("hot.one", policy=CallPolicy(retries=0)))
    for number in range(4200):
        mesh._callees.meet(f"cold.{number}")
    await outcome(mesh.call("hot.one", policy=CallPolicy(retries=0)))
    assert called(mesh, "hot.one").requests == 2
