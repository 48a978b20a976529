"""Who calls and then waits no more stops what it has called, and what that has called."""

import asyncio
import contextlib
import threading

import nats
import pytest
from support import until

from meshkit import Cancelled, Context, DeadlineExceeded, Service, connect
from meshkit.transport import Message


def gate(name="gate", **options):
    """A service whose handler waits for `gate`; `ended` has how each ended, in order."""
    service = Service(name, **options)
    service.gate, service.running, service.ended = asyncio.Event(), 0, []

    @service.endpoint()
    async def wait(ctx: Context) -> str:
        service.running += 1
        try:
            await service.gate.wait()
        except asyncio.CancelledError:
            service.ended.append("stopped")
            raise
        finally:
            service.running -= 1
        service.ended.append("done")
        return "done"

    return service


def relay(name, to):
    """A service that does nothing but call another."""
    service = Service(name)

    @service.endpoint()
    async def go(ctx: Context) -> str:
        return await ctx.mesh.call(to, returns=str)

    return service


def last_error(instance, endpoint="wait"):
    """What the endpoint's statistics have as its last error, and how many are in flight."""
    counted = instance._accounts.statistics.items()
    statistics = next(each for declared, each in counted if declared.name == endpoint)
    return statistics.last_error, statistics.in_flight


async def gone(call):
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.fixture
async def plain(nats_server):
    """nats-py, with nothing of ours."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def test_a_cancelled_caller_stops_three_services(mesh):
    last = gate("last")
    first, second = relay("first", "second.go"), relay("second", "last.wait")
    async with mesh.serve(first) as one, mesh.serve(second) as two, mesh.serve(last) as three:
        call = asyncio.create_task(mesh.call("first.go", timeout=60))
        await until(lambda: last.running)
        await gone(call)
        await until(lambda: last.ended == ["stopped"])
        for instance, endpoint in ((one, "go"), (two, "go"), (three, "wait")):
            await until(lambda at=(instance, endpoint): last_error(*at)[1] == 0)
            assert last_error(instance, endpoint)[0] == "499:the caller waits no more"
            assert not instance._running


async def fail_together(mesh, service):
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(mesh.call("gate.wait", timeout=60))
        await until(lambda: service.running == 5)
        raise LookupError


async def test_a_task_group_that_fails_stops_the_other_calls(mesh):
    service = gate()
    async with mesh.serve(service):
        with pytest.raises(ExceptionGroup):
            await fail_together(mesh, service)
        await until(lambda: service.ended == ["stopped"] * 5)


async def test_at_its_deadline_each_stops_by_itself(mesh, clock):
    last = gate("last")
    async with mesh.serve(relay("first", "last.wait")) as one, mesh.serve(last) as two:
        call = asyncio.create_task(mesh.call("first.go", timeout=1))
        await clock.advance(0.5)
        assert last.running == 1
        await clock.advance(0.6)
        with pytest.raises(DeadlineExceeded):
            await call
        await until(lambda: last.ended == ["stopped"])
        assert last_error(two)[0].startswith("504:")
        assert last_error(one, "go")[0].startswith("504:")


async def test_of_several_instances_the_one_that_runs_it_stops(nats_server):
    services = [gate(), gate()]
    async with (
        connect(nats_server.url) as mesh,
        mesh.serve(services[0]),
        connect(nats_server.url) as other,
        other.serve(services[1]),
    ):
        calls = [asyncio.create_task(mesh.call("gate.wait", timeout=60)) for _ in range(20)]
        await until(lambda: sum(service.running for service in services) == 20)
        for call in calls[:10]:
            await gone(call)
        await until(lambda: sum(len(service.ended) for service in services) == 10)
        for service in services:
            service.gate.set()
        assert await asyncio.gather(*calls[10:]) == ["done"] * 10


async def test_what_waits_for_its_turn_leaves_the_queue(mesh):
    service = gate(concurrency=1, backlog=1)
    async with mesh.serve(service) as instance:
        first = asyncio.create_task(mesh.call("gate.wait", timeout=60))
        await until(lambda: service.running)
        waiting = asyncio.create_task(mesh.call("gate.wait", timeout=60))
        await until(lambda: len(instance._running) == 2)
        await gone(waiting)
        await until(lambda: len(instance._running) == 1)
        third = asyncio.create_task(mesh.call("gate.wait", timeout=60))  # there is room for it
        await until(lambda: len(instance._running) == 2)
        service.gate.set()
        assert await asyncio.gather(first, third) == ["done"] * 2
    assert service.ended == ["done"] * 2


async def test_a_call_and_its_cancellation_that_are_read_together(mesh, plain):
    """The task of the call has not begun when the callee learns that nobody waits for it."""
    service = gate()
    async with mesh.serve(service) as instance:
        inbox = plain.new_inbox()
        answers = await plain.subscribe(inbox)
        for _ in range(5):
            await plain.publish("gate.wait", b"", reply=inbox)
            await plain.publish("_MESH.cancel.gate.wait", inbox.encode())
            assert (await answers.next_msg(5)).headers["Nats-Service-Error-Code"] == "499"
        assert not instance._running
        assert service.running == 0


async def test_a_handler_may_finish_what_it_shields(mesh, plain):
    service = Service("careful")
    begun, go, finished = asyncio.Event(), asyncio.Event(), []

    async def commit():
        begun.set()
        await go.wait()
        finished.append("committed")

    @service.endpoint()
    async def shielded() -> None:
        await asyncio.shield(asyncio.create_task(commit()))

    @service.endpoint()
    async def tidied() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await go.wait()
            finished.append("tidied")

    async with mesh.serve(service) as instance:
        for name in ("shielded", "tidied"):
            begun.clear()
            go.clear()
            inbox = plain.new_inbox()
            await plain.publish(f"careful.{name}", b"", reply=inbox)
            await begun.wait()
            for _ in range(3):  # the first stops it, the others do not interrupt what it does then
                await plain.publish(f"_MESH.cancel.careful.{name}", inbox.encode())
                await plain.flush()
                await mesh.transport.flush()
            go.set()
            await until(lambda name=name: last_error(instance, name)[0] == "499:the caller waits no more")
    assert finished == ["committed", "tidied"]


async def test_a_handler_that_goes_on_is_stopped_at_the_deadline(mesh, clock):
    service = Service("stubborn")
    begun = asyncio.Event()

    @service.endpoint()
    async def stay() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with mesh.serve(service) as instance:
        call = asyncio.create_task(mesh.call(stay, timeout=2))
        await begun.wait()
        await gone(call)
        await clock.advance(1)
        assert last_error(instance, "stay") == ("", 1)
        await clock.advance(2)
        assert last_error(instance, "stay") == ("499:the caller waits no more", 0)


async def test_a_cancellation_for_what_is_answered_already(mesh):
    service = gate()
    service.gate.set()
    replies = []
    async with mesh.serve(service) as instance:
        await mesh.transport.subscribe("gate.wait", lambda message: replies.append(message.reply))
        assert await mesh.call("gate.wait", returns=str) == "done"
        service.gate.clear()
        other = asyncio.create_task(mesh.call("gate.wait", returns=str))
        await until(lambda: service.running)
        await mesh.transport.publish("_MESH.cancel.gate.wait", replies[0].encode())
        await mesh.transport.flush()
        service.gate.set()
        assert await other == "done"
        assert last_error(instance) == ("", 0)


async def test_any_nats_client_can_cancel_and_is_answered(mesh, plain):
    service = gate()
    async with mesh.serve(service):
        inbox = plain.new_inbox()
        answers = await plain.subscribe(inbox)
        await plain.publish("gate.wait", b"", reply=inbox)
        await until(lambda: service.running)
        await plain.publish("_MESH.cancel.gate.wait", inbox.encode())
        answer = await answers.next_msg(5)
        assert answer.headers["Nats-Service-Error-Code"] == "499"
        assert service.ended == ["stopped"]


async def test_who_does_not_know_the_reply_subject_cannot(mesh, plain):
    service = gate()

    @service.subscribe("news", concurrency=2)
    async def on() -> None:
        service.running += 1
        await service.gate.wait()
        service.running -= 1
        service.ended.append("event")

    @service.endpoint()
    async def other() -> None: ...

    async with mesh.serve(service):
        replies = []
        await mesh.transport.subscribe("gate.wait", lambda message: replies.append(message.reply))
        await mesh.transport.flush()
        await plain.publish("news")
        await plain.publish("gate.wait")  # by somebody who wants no answer
        await plain.flush()
        call = asyncio.create_task(mesh.call("gate.wait", returns=str))
        await until(lambda: service.running == 3 and len(replies) == 2)
        reply = replies[1].encode()
        for subject, payload in (
            ("gate.wait", b""),  # events have no reply subject
            ("news", b""),
            ("gate.wait", reply[:-1]),
            ("gate.wait", reply + b"0"),
            ("gate.wait", reply.rpartition(b".")[0] + b".*"),
            ("gate.wait", b"_INBOX.>"),
            ("gate.wait", b"\xff\x00" * 1000),
            ("gate.other", reply),  # it may be all that the server permits
        ):
            await plain.publish(f"_MESH.cancel.{subject}", payload)
        await plain.flush()
        await mesh.transport.flush()
        service.gate.set()
        assert await call == "done"
        await until(lambda: sorted(service.ended) == ["done", "done", "event"])


async def test_a_thread_cannot_be_stopped_but_nobody_waits_for_it(mesh):
    service = Service("threaded")
    loop = asyncio.get_running_loop()
    begun, go, ended = asyncio.Event(), threading.Event(), threading.Event()

    @service.endpoint()
    def block() -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(10)
        ended.set()

    async with mesh.serve(service) as instance:
        call = asyncio.create_task(mesh.call(block, timeout=60))
        await begun.wait()
        await gone(call)
        await until(lambda: last_error(instance, "block") == ("499:the caller waits no more", 0))
        assert not ended.is_set()
        go.set()
        await until(ended.is_set)


async def test_nested_subjects_and_parameters(mesh):
    service = Service("rooms")
    begun, ended = asyncio.Event(), []

    @service.endpoint("hotel.rooms.{room}.price")
    async def price(room: str) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(room)

    async with mesh.serve(service):
        call = asyncio.create_task(mesh.call("hotel.rooms.12.price", timeout=60))
        await begun.wait()
        await gone(call)
        await until(lambda: ended == ["12"])


async def test_while_draining_it_still_works(mesh, nats_server):
    service = gate()
    async with connect(nats_server.url) as other:
        serving = other.serve(service)
        await serving.__aenter__()
        call = asyncio.create_task(mesh.call("gate.wait", timeout=60))
        await until(lambda: service.running)
        leaving = asyncio.create_task(serving.__aexit__(None, None, None))
        await asyncio.sleep(0.05)
        await gone(call)
        await leaving
    assert service.ended == ["stopped"]


async def test_nothing_is_said_of_what_is_not_sent_nor_to_what_is_not_of_the_mesh(mesh):
    said = []
    await mesh.transport.subscribe("_MESH.cancel.>", said.append)
    await mesh.transport.subscribe("silent.>", lambda _message: None)
    for subject in ("$SRV.PING.nobody", "_x.y"):
        await mesh.transport.subscribe(subject, lambda _message: None)
    await mesh.transport.flush()
    loop = asyncio.get_running_loop()
    for subject in ("silent.a", "$SRV.PING.nobody", "_x.y"):
        request = asyncio.create_task(mesh.transport.request(subject, b"", b"", loop.time() + 60))
        await mesh.transport.flush()
        await gone(request)
    never_sent = asyncio.create_task(mesh.transport.request("silent.b", b"", b"", loop.time() + 60))
    await gone(never_sent)
    await mesh.transport.flush()
    assert [message.subject for message in said] == ["_MESH.cancel.silent.a"]
    assert not mesh.transport._told


async def test_a_handler_may_answer_nonetheless(mesh, plain):
    """Who cancels and listens on gets what the handler makes of it."""
    service = Service("polite")
    begun = asyncio.Event()

    @service.endpoint()
    async def finish() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "as far as I got"

    @service.endpoint()
    async def refuse() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Cancelled("with half of it done") from None

    async with mesh.serve(service):
        for name, answer in (("finish", b'"as far as I got"'), ("refuse", b"")):
            begun.clear()
            inbox = plain.new_inbox()
            answers = await plain.subscribe(inbox)
            await plain.publish(f"polite.{name}", b"", reply=inbox)
            await begun.wait()
            await plain.publish(f"_MESH.cancel.polite.{name}", inbox.encode())
            assert (await answers.next_msg(5)).data == answer


async def test_what_is_longer_than_a_reply_subject_can_be_is_not_even_looked_at(mesh):
    async with mesh.serve(gate()) as instance:
        for length in (0, 1001):
            instance._on_gone(Message("_MESH.cancel.gate.wait", "", b"x" * length))
            assert not instance._gone
