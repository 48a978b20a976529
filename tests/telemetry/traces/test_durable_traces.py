"""What is published to a stream and what consumes it are one trace, however often it is delivered."""

import logging

import pytest
from spans import shape
from support import until

from meshkit import Context, Redeliver, Reject, ServePolicy, Service, StreamConfig, connect

TRACED = StreamConfig("TRACED", ["traced.>"], storage="memory")


def billing(fail, handled):
    """An endpoint that publishes; its message is consumed, and what that publishes too."""
    service = Service("billing")

    @service.endpoint("billing.book")
    async def book(order: int, ctx: Context) -> None:
        await ctx.mesh.publish("traced.booked", order, durable=True)

    @service.consume("traced.booked", stream=TRACED, retry_delay="10ms", serve=ServePolicy(access_log=1))
    async def bill(order: int, ctx: Context) -> None:
        fail(ctx.delivery.attempt)
        async with ctx.mesh.publisher() as publisher:
            await publisher.publish("traced.billed.eu", order)

    @service.consume("traced.billed.{country}", stream=TRACED)
    async def ship(order: int, country: str) -> None:
        handled.append(order)

    return service


async def test_from_a_call_through_two_streams_is_one_trace(recorder, nats_server):
    handled = []
    async with connect(nats_server.url) as traced, traced.serve(billing(lambda _: None, handled)):
        await traced.call("billing.book", 17)
        await until(lambda: len(recorder.named("process traced.billed.*")) == 1)
    assert handled == [17]
    spans = recorder.spans
    assert len({span.trace for span in spans}) == 1
    assert shape(spans) == [
        "CLIENT billing.book",
        "  CLIENT billing.book attempt",
        "    SERVER billing.book",
        "      PRODUCER send traced.booked",
        "        CONSUMER process traced.booked",
        "          PRODUCER send traced.billed.eu",
        "            CONSUMER process traced.billed.*",
    ]
    [ship] = recorder.named("process traced.billed.*")
    assert ship.attributes | {"meshkit.instance": ""} == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.template": "traced.billed.*",
        "messaging.destination.name": "traced.billed.eu",
        "messaging.consumer.group.name": "billing-ship",
        "meshkit.instance": "",
    }


def broken(attempt):
    if attempt == 1:
        raise ZeroDivisionError("no change")
    if attempt == 2:
        raise Redeliver("10ms", "the till is locked")


def never(attempt):
    raise Reject("no such customer")


@pytest.mark.parametrize(
    ("fail", "ended"),
    [
        (broken, [("InternalError", "ERROR", None), ("Redeliver", "UNSET", 2), (None, "UNSET", 3)]),
        (never, [("Reject", "UNSET", None)]),
    ],
)
async def test_each_delivery_is_a_span_of_the_trace(recorder, nats_server, caplog, fail, ended):
    caplog.set_level(logging.INFO, "meshkit.access")
    async with connect(nats_server.url) as mesh, mesh.serve(billing(fail, [])):
        await mesh.publish("traced.booked", 17, durable=True)
        await until(lambda: len(recorder.named("process traced.booked")) == len(ended))
    [sent] = recorder.named("send traced.booked")
    deliveries = recorder.named("process traced.booked")
    assert {(span.trace, span.parent) for span in deliveries} == {(sent.trace, sent.id)}
    said = [
        (span.attributes.get("error.type"), span.status, span.attributes.get("meshkit.delivery"))
        for span in deliveries
    ]
    assert said == ended
    if fail is broken:
        assert deliveries[0].events[0][1]["exception.message"] == "no change"
    lines = [record for record in caplog.records if record.name == "meshkit.access"]
    assert [(line.endpoint, line.outcome, line.attempt, line.trace_id) for line in lines] == [
        ("billing-bill", outcome or "ok", number or 1, sent.trace) for outcome, _, number in ended
    ]
