"""Handling the messages of a stream: what is acknowledged when, and what is delivered again."""

import asyncio
import json
import subprocess
import sys
import threading
import time

import pytest
from support import until

from meshkit import (
    BadRequest,
    Context,
    Redeliver,
    Reject,
    Service,
    connect,
)
from meshkit.transport.server import EmbeddedServer


def delays(said):
    """The delays that the server was asked for, in seconds."""
    return [json.loads(told[5:])["delay"] / 1e9 for _, told in said if told.startswith(b"-NAK {")]


async def test_a_message_is_acknowledged_when_its_handler_returns(mesh, stream, subject, said):
    service, gate, seen = Service("shop"), asyncio.Event(), []

    @service.consume(f"{subject}.created", stream=stream)
    async def bill(order: dict[str, int], ctx: Context) -> str:
        seen.append((order, ctx.subject, ctx.delivery))
        await gate.wait()
        return "nobody reads this"

    async with mesh.serve(service):
        stored = await mesh.publish(f"{subject}.created", {"id": 7}, durable=True, id="seven")
        await until(lambda: seen)
        await asyncio.sleep(0.05)
        assert not said
        gate.set()
        await until(lambda: said == [("1", b"+ACK")])
    [(order, to, delivery)] = seen
    assert (order, to) == ({"id": 7}, f"{subject}.created")
    assert (delivery.stream, delivery.consumer, delivery.sequence) == (stored.stream, "shop-bill", stored.seq)
    assert (delivery.attempt, delivery.id, delivery.pending) == (1, "seven", 0)
    assert abs(delivery.time.timestamp() - time.time()) < 60


async def test_calls_and_events_have_no_delivery(mesh):
    service, seen = Service("shop"), []

    def look(ctx):
        with pytest.raises(RuntimeError, match="is no message of a stream") as error:
            _ = ctx.delivery
        seen.append(str(error.value))

    @service.endpoint("shop.ask")
    async def ask(ctx: Context) -> None:
        look(ctx)

    @service.subscribe("shop.told")
    async def told(ctx: Context) -> None:
        look(ctx)

    async with mesh.serve(service):
        await mesh.call("shop.ask")
        await mesh.publish("shop.told")
        await until(lambda: len(seen) == 2)
    assert seen == [f"what came on 'shop.{what}' is no message of a stream" for what in ("ask", "told")]


async def test_a_def_handler_runs_in_a_thread(mesh, stream, subject, said):
    service, threads = Service("shop"), []

    @service.consume(f"{subject}.{{kind}}", stream=stream)
    def work(kind: str, number: int) -> None:
        threads.append((threading.current_thread(), kind, number))

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.big", 3, durable=True)
        await until(lambda: said == [("1", b"+ACK")])
    assert [each[1:] for each in threads] == [("big", 3)]
    assert threads[0][0] is not threading.main_thread()


async def test_instances_share_the_messages_and_each_handles_a_bounded_number(
    nats_server, mesh, stream, subject
):
    gate, running, most, handled = asyncio.Event(), {}, {}, []
    service = Service("shop")

    @service.consume(f"{subject}.>", stream=stream, concurrency=3)
    async def work(number: int, ctx: Context) -> None:
        here = ctx.instance
        running[here] = running.get(here, 0) + 1
        most[here] = max(most.get(here, 0), running[here])
        try:
            await gate.wait()
        finally:
            running[here] -= 1
        handled.append(number)

    async with connect(nats_server.url) as other, mesh.serve(service) as one, other.serve(service) as two:
        async with mesh.publisher() as publisher:
            for number in range(100):
                await publisher.publish(f"{subject}.n", number)
        await until(lambda: len(running) == 2 and set(running.values()) == {3})
        await asyncio.sleep(0.1)
        # As many again wait in each, and no more.
        assert [each.report().served[0].bound.waiting for each in (one, two)] == [3, 3]
        gate.set()
        await until(lambda: len(handled) == 100)
        assert sorted(handled) == list(range(100))
        assert set(most.values()) == {3}
        assert min(each.report().served[0].requests for each in (one, two)) > 10


async def test_a_handler_that_takes_several_times_ack_wait_keeps_its_message(mesh, stream, subject, said):
    service, attempts = Service("shop"), []

    @service.consume(f"{subject}.long", stream=stream, ack_wait="300ms", concurrency=1)
    async def work(ctx: Context) -> None:
        attempts.append(ctx.delivery.attempt)
        await asyncio.sleep(1.2)

    async with mesh.serve(service):
        for _ in range(2):  # one of which waits here for its turn
            await mesh.publish(f"{subject}.long", durable=True)
        await until(lambda: attempts == [1, 1])
        assert b"+WPI" in [told for _, told in said]
        await until(lambda: [told for _, told in said].count(b"+ACK") == 2)
    assert attempts == [1, 1]


async def test_what_fails_is_delivered_again_after_delays_that_double(
    mesh, stream, subject, said, letters, caplog
):
    service, attempts = Service("shop"), []

    @service.consume(
        f"{subject}.bad", stream=stream, max_deliver=6, retry_delay="40ms", retry_delay_most="100ms"
    )
    async def fail(ctx: Context) -> None:
        attempts.append(ctx.delivery.attempt)
        raise ValueError("broken pipe dream")

    async with mesh.serve(service) as instance:
        await mesh.publish(f"{subject}.bad", {"a": 1}, durable=True, id="x/1", headers={"Tenant": "blue"})
        await until(lambda: said and said[-1][1] == b"+TERM")
        [letter] = await letters(mesh)
        counted = instance.report().served[0].consumed
    assert attempts == [1, 2, 3, 4, 5, 6]
    asked = delays(said)
    assert len(asked) == 5
    for delay, most in zip(asked, (0.04, 0.08, 0.1, 0.1, 0.1), strict=True):
        assert most / 2 <= delay <= most
    assert len(set(asked)) == 5
    assert (letter.error, letter.attempts, letter.id) == ("ValueError: broken pipe dream", 6, "x/1")
    assert (letter.subject, letter.payload, letter.headers) == (
        f"{subject}.bad",
        b'{"a":1}',
        {"Tenant": "blue"},
    )
    assert (letter.stream, letter.sequence, letter.consumer) == (stream.name, 1, "shop-fail")
    assert letter.instance.startswith("shop/")
    assert (counted.redelivered, counted.returned, counted.dead) == (5, 5, 1)
    assert "delivery 2 of 6, again in 0." in caplog.text
    assert (
        f"is the dead letter {letter.number} of shop-fail now: ValueError: broken pipe dream" in caplog.text
    )


async def test_a_handler_names_the_delay(mesh, stream, subject, said, letters, caplog):
    service = Service("shop")

    @service.consume(f"{subject}.later", stream=stream, max_deliver=4)
    async def work(ctx: Context) -> None:
        attempt = ctx.delivery.attempt
        raise Redeliver((0, "50ms", 0.02, "1h")[attempt - 1], "not yet")

    async with mesh.serve(service) as instance:
        await mesh.publish(f"{subject}.later", durable=True)
        await until(lambda: len(said) == 4)
        assert said[0] == ("1", b"-NAK")
        assert delays(said) == [0.05, 0.02]
        assert said[-1] == ("4", b"+TERM")
        assert [letter.error for letter in await letters(mesh)] == ["425 Redeliver: not yet"]
        [served] = instance.report().served
        assert {name: each.count for name, each in served.outcomes.items()} == {"ok": 0, "Redeliver": 4}
    assert "not handled" not in caplog.text


async def test_what_is_rejected_or_not_understood_becomes_a_dead_letter_at_once(
    mesh, stream, subject, said, letters
):
    service, handled = Service("shop"), []

    @service.consume(f"{subject}.{{kind}}", stream=stream)
    async def work(kind: str, number: int) -> None:
        if number == 0:
            raise Reject("there is\r\nno zeroth\u2028order \U0001f600\x00")
        if number == 1:
            raise BadRequest("one is taken")
        handled.append(number)

    async with mesh.serve(service):
        for payload in (0, 1, "nonsense", 2):
            await mesh.publish(f"{subject}.a", payload, durable=True)
        await until(lambda: len(said) == 4)
        errors = [letter.error for letter in await letters(mesh)]
    assert handled == [2]
    assert sorted(told for _, told in said) == [b"+ACK", b"+TERM", b"+TERM", b"+TERM"]
    assert len(errors) == 3
    assert "422 Reject: there is no zeroth order \U0001f600\x00" in errors
    assert "400 BadRequest: one is taken" in errors
    assert any("the message is not understood" in error for error in errors)


async def test_that_a_nested_call_was_wrong_says_nothing_of_the_message(mesh, stream, subject, said):
    service, attempts = Service("shop"), []

    @service.endpoint("shop.strict")
    async def strict(number: int) -> None: ...

    @service.consume(f"{subject}.a", stream=stream, retry_delay="10ms")
    async def work(ctx: Context) -> None:
        attempts.append(ctx.delivery.attempt)
        await ctx.mesh.call("shop.strict", 1 if len(attempts) > 1 else "one")

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: said and said[-1] == ("2", b"+ACK"))


async def test_a_timeout_stops_the_handler_and_bounds_its_calls(mesh, stream, subject, said, letters):
    service, stopped, left = Service("shop"), [], []

    @service.endpoint("shop.slow")
    async def slow(ctx: Context) -> None:
        left.append(ctx.remaining)
        await asyncio.sleep(5)

    @service.consume(f"{subject}.a", stream=stream, timeout="150ms", retry_delay="10ms", max_deliver=2)
    async def work(ctx: Context) -> None:
        try:
            if ctx.delivery.attempt == 1:
                await ctx.mesh.call("shop.slow")
            await asyncio.sleep(5)
        finally:
            stopped.append(ctx.delivery.attempt)

    async with mesh.serve(service):
        began = time.monotonic()
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: said and said[-1] == ("2", b"+TERM"))
        assert time.monotonic() - began < 2
        # Though the handler had no time left.
        [letter] = await letters(mesh)
        assert letter.error.startswith("504 DeadlineExceeded")
    assert stopped == [1, 2]
    assert 0.05 < left[0] <= 0.15


SCRIPT = """
import asyncio, os, signal, sys
from meshkit import Context, Service, StreamConfig

subject = sys.argv[1]
service = Service("shop")
stream = StreamConfig(subject.upper(), [f"{subject}.>"], storage="memory")

@service.consume(f"{subject}.>", stream=stream, ack_wait="300ms", concurrency=4, max_deliver=2)
async def work(what: str, ctx: Context) -> None:
    if what == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.1)
    await ctx.mesh.publish(f"done.{subject}", what)
    if what == "hang":
        await asyncio.sleep(60)

service.run()
"""


@pytest.fixture
def process(nats_server, subject, tmp_path, monkeypatch):
    """Starts a process with an instance of the service."""
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("NATS_URL", nats_server.url)
    started = []

    def start():
        started.append(subprocess.Popen([sys.executable, "script.py", subject], cwd=tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


async def test_what_a_killed_process_was_handling_others_handle(process, mesh, stream, subject):
    done, attempts, service = [], {}, Service("shop")
    await mesh.transport.subscribe(f"done.{subject}", lambda message: done.append(message.payload))
    victim = process()
    await mesh.declare(stream)
    for what in ("hang", "hang", "hang", "hang", "last"):
        await mesh.publish(f"{subject}.a", what, durable=True)
    await until(lambda: len(done) == 4, 15)
    victim.kill()

    @service.consume(f"{subject}.>", stream=stream, ack_wait="300ms", concurrency=4, max_deliver=2)
    async def work(what: str, ctx: Context) -> None:
        attempts.setdefault(what, []).append(ctx.delivery.attempt)

    async with mesh.serve(service):
        await until(lambda: attempts == {"hang": [2] * 4, "last": [2]})


async def test_what_kills_every_process_ends_in_the_dead_letters_and_what_was_beside_it_does_not(
    process, mesh, stream, subject, letters
):
    done = []
    await mesh.transport.subscribe(f"done.{subject}", lambda message: done.append(message.payload))
    await mesh.declare(stream)
    for what in ("poison", "a", "b", "c"):
        await mesh.publish(f"{subject}.a", what, durable=True)
    alive, started, errors = process(), 1, []
    async with asyncio.timeout(20):
        while errors != ["422 Reject: none of 2 deliveries came to an end"] or len(done) < 3:
            if alive.poll() is not None:
                alive, started = process(), started + 1
            await asyncio.sleep(0.02)
            errors = [letter.error for letter in await letters(mesh)]
    assert sorted(done) == [b'"a"', b'"b"', b'"c"']
    assert started == 4  # two deliveries, one alone, and the one that lives


async def test_a_dead_letter_is_stored_once_though_its_message_is_delivered_again(
    mesh, stream, subject, said, letters, monkeypatch
):
    from meshkit.durable import worker

    monkeypatch.setattr(worker, "NEVER", b"+WPI")  # as if the instance had been killed before it said so
    service, attempts = Service("shop"), []

    @service.consume(f"{subject}.a", stream=stream, ack_wait="100ms")
    async def work(ctx: Context) -> None:
        attempts.append(ctx.delivery.attempt)
        raise Reject("no")

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: len(attempts) == 3)
        assert len(await letters(mesh)) == 1


async def test_what_cannot_be_put_to_the_dead_letters_stays(tmp_path, stream, subject, caplog):
    from meshkit.durable import dead
    from meshkit.durable.jetstream import JetStream

    service, attempts = Service("shop"), []

    @service.consume(f"{subject}.a", stream=stream, retry_delay_most="100ms")
    async def work(ctx: Context) -> None:
        attempts.append(ctx.delivery.attempt)
        raise Reject("no")

    with EmbeddedServer() as server:
        async with connect(server.url) as mesh, mesh.serve(service):
            js = JetStream(mesh.transport)
            await js.ask(f"STREAM.DELETE.{dead.STREAM}", dict)
            await mesh.publish(f"{subject}.a", durable=True)
            await until(lambda: len(attempts) == 2)
            assert "could not be put to the dead letters" in caplog.text
            await js.create_stream(dead.DEAD)
            async with asyncio.timeout(5):
                while not [letter async for letter in dead.dead_letters(js)]:
                    await asyncio.sleep(0.01)


async def test_a_bare_redeliver_comes_after_the_usual_delay(mesh, stream, subject, said):
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream, retry_delay="80ms", max_deliver=2)
    async def work(ctx: Context) -> None:
        if ctx.delivery.attempt == 1:
            raise Redeliver

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: len(said) == 2)
    [delay] = delays(said)
    assert 0.04 <= delay <= 0.08


async def test_a_refusal_of_a_message_that_the_handler_sends_is_no_word_on_its_own(
    mesh, stream, subject, said
):
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream, retry_delay="20ms", max_deliver=2)
    async def work(ctx: Context) -> None:
        if ctx.delivery.attempt == 1:
            await ctx.mesh.publish("elsewhere", b"x" * 2_000_000)

    async with mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: len(said) == 2)
    assert said[-1][1] == b"+ACK"
