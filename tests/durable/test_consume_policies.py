"""What bounds endpoints bounds consumers, and what is counted."""

import asyncio
import textwrap

import pytest
from support import until

from meshkit import (
    ConfigError,
    Context,
    Policies,
    RateLimit,
    Redeliver,
    Reject,
    ServePolicy,
    Service,
    connect,
)
from meshkit.policies import load


async def test_a_rate_limit_has_messages_wait_and_none_fail(mesh, stream, subject, said, clock):
    times, service = [], Service("shop")

    @service.consume(f"{subject}.a", stream=stream, rate_limit="2/second", concurrency=3, max_deliver=1)
    async def work() -> None:
        times.append(clock.now())

    async with mesh.serve(service):
        for _ in range(6):
            await mesh.publish(f"{subject}.a", durable=True)
        for _ in range(60):
            await clock.advance(0.1)
        await until(lambda: len(said) == 6)
        assert {told for _, told in said} == {b"+ACK"}
    for number in range(4):
        assert times[number + 2] - times[number] >= 0.99
    assert times[-1] - times[0] < 4


async def test_a_rate_limit_of_the_mesh_holds_for_all_instances(nats_server, mesh, stream, subject):
    handled, service = [], Service(f"shop-{subject}")

    @service.consume(
        f"{subject}.a", stream=stream, rate_limit=RateLimit("10/hour", scope="mesh"), ack_wait="1s"
    )
    async def work() -> None:
        handled.append(1)

    async with connect(nats_server.url) as other:
        async with mesh.serve(service), other.serve(service):
            async with mesh.publisher() as publisher:
                for _ in range(30):
                    await publisher.publish(f"{subject}.a")
            await until(lambda: len(handled) >= 10)
            await asyncio.sleep(0.2)
        assert len(handled) in (10, 20)  # where an hour ended meanwhile


async def running_at_a_time(mesh, stream, subject):
    running, most, done, service = 0, 0, 0, Service("shop")

    @service.consume(f"{subject}.{{kind}}", stream=stream, concurrency=5)
    async def work(kind: str) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        done += 1

    async with mesh.serve(service):
        await asyncio.gather(*(mesh.publish(f"{subject}.x", durable=True) for _ in range(20)))
        await until(lambda: done == 20)
    return most


async def test_policies_of_the_connection_hold(nats_server, stream, subject):
    policies = Policies(serve={f"{subject}.*": ServePolicy(concurrency=2)})
    async with connect(nats_server.url, policies=policies) as mesh:
        assert await running_at_a_time(mesh, stream, subject) == 2


async def test_policies_of_a_file_hold(nats_server, stream, subject, tmp_path):
    file = tmp_path / "meshkit.toml"
    file.write_text(f'[serve."{subject}.>"]\nconcurrency = 1\ntimeout = "5s"\n')
    async with connect(nats_server.url, policies=load(file)) as mesh:
        assert await running_at_a_time(mesh, stream, subject) == 1
    async with connect(nats_server.url) as mesh:
        assert await running_at_a_time(mesh, stream, subject) == 5


async def test_a_consumer_is_bounded_also_where_endpoints_are_not(nats_server, stream, subject):
    policies = Policies(serve={f"{subject}.>": ServePolicy(concurrency=None)})
    async with connect(nats_server.url, policies=policies) as mesh:
        assert await running_at_a_time(mesh, stream, subject) == 10


async def test_policies_that_cannot_hold_are_refused_before_anything_is_consumed(
    nats_server, stream, subject
):
    policies = Policies(serve={f"{subject}.*": ServePolicy(adaptive=True, concurrency=None)})
    service = Service("shop")

    @service.consume(f"{subject}.{{kind}}", stream=stream)
    async def work(kind: str) -> None: ...

    async with connect(nats_server.url, policies=policies) as mesh:
        with pytest.raises(ConfigError, match="adaptive"):
            async with mesh.serve(service):
                pass


async def test_deliveries_are_counted_by_outcome(mesh, stream, subject, said):
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream, retry_delay="5ms", max_deliver=2, timeout="50ms")
    async def work(what: str, ctx: Context) -> None:
        if what == "later" and ctx.delivery.attempt == 1:
            raise Redeliver
        if what == "never":
            raise Reject("no")
        if what == "bad":
            raise ValueError
        if what == "slow":
            await asyncio.sleep(1)

    async with mesh.serve(service) as instance:
        for what in ("fine", "later", "never", "bad", "slow", 7):
            await mesh.publish(f"{subject}.a", what, durable=True)
        await until(lambda: [told[:4] for _, told in said].count(b"+TER") == 4)
        [served] = instance.report().served
    assert {name: each.count for name, each in served.outcomes.items()} == {
        "ok": 2,
        "Redeliver": 1,
        "Reject": 1,
        "InternalError": 2,
        "DeadlineExceeded": 2,
        "BadRequest": 1,
    }
    assert (served.requests, served.in_flight, served.is_event) == (9, 0, True)
    assert (served.name, served.subject) == ("shop-work", f"{subject}.a")
    consumed = served.consumed
    assert (consumed.stream, consumed.consumer) == (stream.name, "shop-work")
    assert (consumed.redelivered, consumed.returned, consumed.dead) == (3, 3, 4)


async def test_how_much_there_is_to_do_is_known(mesh, stream, subject):
    service, gate = Service("shop"), asyncio.Event()

    @service.consume(f"{subject}.a", stream=stream, concurrency=2)
    async def work() -> None:
        await gate.wait()

    await mesh.declare(stream)
    for _ in range(10):
        await mesh.publish(f"{subject}.a", durable=True)
    async with mesh.serve(service) as instance:
        await until(lambda: instance.report().served[0].bound.waiting == 2)
        [worker] = instance._workers
        worker._watcher.cancel()
        worker._watcher = asyncio.create_task(worker._watch())  # five seconds earlier
        await until(lambda: instance.report().served[0].consumed.unacknowledged == 4)
        assert instance.report().served[0].consumed.pending == 6
        gate.set()


async def test_an_access_log_has_a_line_for_each_delivery(nats_server, stream, subject, caplog):
    caplog.set_level("INFO", "meshkit.access")
    policies = Policies(serve={f"{subject}.>": ServePolicy(access_log=1.0)})
    service = Service("shop")

    @service.consume(f"{subject}.a", stream=stream)
    async def work() -> None: ...

    async with connect(nats_server.url, policies=policies) as mesh, mesh.serve(service):
        await mesh.publish(f"{subject}.a", durable=True)
        await until(lambda: caplog.records)
    assert len([record for record in caplog.records if record.name == "meshkit.access"]) == 1


def test_what_cannot_be_read_of_a_file_is_told(tmp_path):
    file = tmp_path / "meshkit.toml"
    file.write_text(textwrap.dedent('[serve."orders.>"]\nmax_deliver = 3\n'))
    with pytest.raises(ConfigError, match="unknown field 'max_deliver'"):
        load(file)
