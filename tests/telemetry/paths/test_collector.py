"""What real servers tell of messages and services, as spans of the traces that they belong to."""

import asyncio
import logging
from contextlib import AsyncExitStack

import network
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from support import until

from meshkit import DeadlineExceeded, NoResponders, Service, connect
from meshkit.telemetry.paths.collector import Latency, collecting

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


def sampled(span=SPAN, name="traceparent"):
    return {name: f"00-{TRACE:032x}-{span:016x}-01"}


@pytest.fixture
async def meet(servers):
    """Connects to one of the servers of the cluster."""
    async with AsyncExitStack() as stack:

        async def connected(number, user="ann"):
            connection = connect(servers.routers[number].url, name=user, user=user, password=network.PASSWORD)
            return await stack.enter_async_context(connection)

        yield connected


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


async def known(subject, *meshes):
    """Until every one of them knows who listens."""
    async with asyncio.timeout(15):
        for mesh in meshes:
            while not (await mesh.trace_path(subject)).reached:
                pass


def adder(subject):
    service = Service("adder")

    @service.endpoint(subject)
    async def add() -> int:
        return 3

    return service


def spans_of(exporter):
    return {span.resource.attributes["service.instance.id"]: span for span in exporter.get_finished_spans()}


async def test_one_span_a_server_within_the_trace(meet, exporter):
    calling, serving, watching = await meet(0), await meet(1), await meet(2)
    async with (
        serving.serve(adder("hello")),
        collecting(watching.transport, ["trace.A"], exporter) as collected,
    ):
        await known("hello", calling)
        await known("trace.A", calling, serving)
        await calling.call("old.hello", headers=sampled())
        await until(lambda: collected.spans == 2)
    spans = spans_of(exporter)
    first, second = spans["s0"], spans["s1"]
    assert {span.context.trace_id for span in spans.values()} == {TRACE}
    assert (first.parent.span_id, second.parent.span_id) == (SPAN, first.context.span_id)
    assert (first.name, first.attributes["messaging.destination.name"]) == ("nats-server s0", "old.hello")
    assert second.attributes["nats.connection.name"] == "s0"
    mapping, left = first.events
    assert (mapping.name, mapping.attributes) == ("mapping", {"nats.to": "hello"})
    assert (left.name, left.attributes["nats.kind"], left.attributes["nats.name"]) == (
        "egress",
        "router",
        "s1",
    )
    (end,) = second.events
    assert (end.attributes["nats.name"], end.attributes["nats.subscription"]) == ("ann", "hello")
    assert first.start_time <= mapping.timestamp <= left.timestamp == first.end_time
    assert {span.status.status_code for span in spans.values()} == {StatusCode.UNSET}


@pytest.mark.parametrize(
    ("user", "subject", "error"),
    [
        ("bob", "secret.room", 'Permissions Violation for Publish to "secret.room"'),
        ("ann", "nobody.is.here", "nobody listens on nobody.is.here"),
    ],
)
async def test_what_was_lost_in_the_server_is_an_error(meet, exporter, user, subject, error):
    calling, watching = await meet(0, user), await meet(0)
    async with collecting(watching.transport, ["trace.A"], exporter) as collected:
        await calling.publish(subject, headers=sampled(name="Traceparent"))
        await until(lambda: collected.events)
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, error)


async def test_messages_are_told_apart(meet, exporter):
    """Even those that were sent with the same span, as by clients that only hand on what they got."""
    calling, serving, watching = await meet(0), await meet(1), await meet(2)
    async with (
        serving.serve(adder("hello")),
        collecting(watching.transport, ["trace.A"], exporter) as collected,
    ):
        await known("hello", calling)
        await known("trace.A", calling, serving)
        for number in range(3):
            await calling.call("hello", headers=sampled() | {"X-Number": str(number)})
        await until(lambda: collected.spans == 6)
    spans = exporter.get_finished_spans()
    assert len({span.context.span_id for span in spans}) == 6
    parents = [span.parent.span_id for span in spans if span.parent.span_id != SPAN]
    assert len(set(parents)) == 3
    assert set(parents) < {span.context.span_id for span in spans}


async def test_collectors_share_the_work(meet, exporter):
    calling, one, two = await meet(0), await meet(0), await meet(0)
    async with (
        collecting(one.transport, ["trace.A"], exporter) as by_one,
        collecting(two.transport, ["trace.A"], exporter) as by_two,
    ):
        await calling.transport.subscribe("hello", lambda message: None)
        for _ in range(40):
            await calling.publish("hello", headers=sampled())
        await until(lambda: by_one.events + by_two.events == 40)
        assert by_one.events
        assert by_two.events


async def test_the_latency_of_a_service(meet, exporter):
    calling, serving = await meet(0), await meet(0, "eve")
    async with (
        serving.serve(adder("sum.add")),
        collecting(serving.transport, ["latency.>"], exporter) as collected,
    ):
        assert await calling.call("add", headers=sampled()) == 3
        await until(lambda: collected.events)
    whole, *parts = exporter.get_finished_spans()
    assert (whole.name, whole.parent.span_id, whole.context.trace_id) == ("nats service latency", SPAN, TRACE)
    assert whole.attributes["nats.requestor.account"] == "A"
    assert whole.attributes["nats.responder.name"] == "eve"
    assert whole.status.status_code == StatusCode.UNSET
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    # What took no time has none.
    in_order = [f"nats latency {name}" for name in ("requestor", "responder", "service", "system")]
    assert [part.name for part in parts] == [
        name for name in in_order if name in {part.name for part in parts}
    ]
    assert {"nats latency requestor", "nats latency responder"} <= {part.name for part in parts}
    assert parts[0].start_time == whole.start_time
    # The server measures the whole by itself, and a busy one a little later.
    assert parts[-1].end_time == pytest.approx(whole.end_time, abs=10_000_000)


async def test_a_latency_that_belongs_to_no_trace_is_shown(meet, exporter):
    calling, watching = await meet(0), await meet(0, "eve")
    shown = []
    async with collecting(watching.transport, ["latency.>"], exporter, show=shown.append) as collected:
        with pytest.raises(NoResponders):
            await calling.call("sum.hidden")
        await until(lambda: collected.events)
    assert (collected.no_trace, collected.spans) == (collected.events, 0)
    assert isinstance(shown[0], Latency)
    assert (shown[0].status, shown[0].responder) == (503, None)
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"[]",
        b'{"events": []}',
        b'{"server": {}, "request": {}, "events": [{"type": "in", "ts": "2026-11-22T12:00:00"}]}',
        b'{"server": {}, "request": {}, "events": [{"type": "eg", "ts": "2026-11-22T12:00:00Z"}]}',
        b'{"type": "io.nats.server.metric.v1.service_latency"}',
        b"[" * 100_000,
    ],
)
async def test_what_somebody_else_publishes_there(meet, exporter, caplog, junk):
    mesh = await meet(0)
    async with collecting(mesh.transport, ["junk"], exporter) as collected:
        await mesh.publish("junk", junk)
        await until(lambda: collected.unreadable)
    assert exporter.get_finished_spans() == ()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("a message on junk is no event of a NATS server: ")


async def test_whoever_may_not_publish_there_is_not_seen(meet, exporter):
    """The server drops what such a user sends, and tells nobody but the user."""
    calling, watching = await meet(0, "dan"), await meet(0)
    async with collecting(watching.transport, ["trace.A"], exporter) as collected:
        await watching.transport.subscribe("hello", lambda message: None)
        with pytest.raises(DeadlineExceeded, match=r"the account's msg_trace destination"):
            await calling.call("hello", headers=sampled(), timeout=0.2)
    assert collected.events == 0
