"""What is counted of consumers and jobs is exact, and the same wherever it is shown."""

import asyncio
import re

from otlp import points, receiver
from support import fetch, until_by, values

from meshkit import Context, Mesh, Redeliver, Reject, Service, StreamConfig, connect
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.page import page
from meshkit.telemetry.report import STATS, decode

COUNTED = StreamConfig("COUNTED", ["counted.>"], storage="memory")
CONSUMER = {"messaging.consumer.group.name": "billing-bill", "meshkit.stream": "COUNTED"}
DELIVERY = {
    "messaging.system": "nats",
    "messaging.destination.template": "counted.*.booked",
    "messaging.consumer.group.name": "billing-bill",
}
JOB, NEW = {"meshkit.job.name": "cities"}, {"meshkit.job.name": "new"}
EXPECTED = [
    ("messaging.process.duration", DELIVERY, 4),
    ("messaging.process.duration", DELIVERY | {"error.type": "Redeliver"}, 1),
    ("messaging.process.duration", DELIVERY | {"error.type": "InternalError"}, 3),
    ("messaging.process.duration", DELIVERY | {"error.type": "Reject"}, 1),
    ("meshkit.consumer.redelivered", CONSUMER, 3),
    ("meshkit.consumer.returned", CONSUMER, 3),
    ("meshkit.consumer.dead_letters", CONSUMER, 2),
    # Ten are left: two that are handled, two that are fetched ahead, and what the stream has.
    ("meshkit.consumer.pending", CONSUMER, 6),
    ("meshkit.consumer.unacknowledged", CONSUMER, 4),
    ("meshkit.consumer.concurrency.limit", CONSUMER, 2),
    ("meshkit.consumer.concurrency.running", CONSUMER, 2),
    ("meshkit.job.parts", JOB, 10),
    ("meshkit.job.sent", JOB, 9),
    ("meshkit.job.done", JOB, 7),
    ("meshkit.job.failed", JOB, 3),
    ("meshkit.job.time_left", JOB, 0),
    ("meshkit.job.parts", NEW, 10),
    ("meshkit.job.sent", NEW, 0),
    ("meshkit.job.done", NEW, 0),
    ("meshkit.job.failed", NEW, 0),
]


def billing(gate, handled):
    """Handles messages from 7 on once the gate is open; the first three are each a case of their own."""
    service = Service("billing", version="1.0.0")

    @service.consume("counted.*.booked", stream=COUNTED, concurrency=2, max_deliver=3, retry_delay="10ms")
    async def bill(order: int, ctx: Context) -> None:
        match order, ctx.delivery.attempt:
            case (1, 1):
                raise Redeliver(0, "later")
            case (2, _):
                raise ZeroDivisionError
            case (3, _):
                raise Reject("never")
        if order >= 7:
            await gate.wait()
        handled.append(order)

    @service.lifespan
    async def work(mesh: Mesh):
        mesh.job("cities", total=10, sent=9, done=7, failed=3)
        mesh.job("new", total=10)
        yield

    return service


def on_page(shown):
    """What a page has of consumers and jobs, as `{(name, labels): number}`, of a histogram its count."""
    found = {}
    for series, value in values(shown).items():
        name, written = re.fullmatch(r"(\w+)(?:\{(.*)\})?", series).groups()
        if re.match(r"meshkit_(consumer|job)|messaging_process_duration_seconds_count", name):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', written))
            assert (labels.pop("service_name"), labels.pop("service_instance_id")) == ("billing", "one")
            found[name, frozenset(labels.items())] = value
    return found


def as_prometheus(name, labels):
    of_metric = {"messaging.process.duration": "_seconds_count", "meshkit.job.time_left": "_seconds"}
    suffix = of_metric.get(name, "_total" if re.search("redelivered|returned|dead", name) else "")
    written = {label.replace(".", "_"): value for label, value in labels.items()}
    return name.replace(".", "_") + suffix, frozenset(written.items())


def exported(requests):
    """The same of what was sent by OTLP, with OpenTelemetry's names."""
    return {
        (name, labels): point.count
        if hasattr(point, "bucket_counts")
        else getattr(point, point.WhichOneof("value"))
        for (name, service, labels), point in points(requests).items()
        if service == "billing" and re.match(r"meshkit\.(consumer|job)|messaging\.process", name)
    }


async def test_all_views_say_the_same_of_consumers_and_jobs(nats_server, unused_port, clock, monkeypatch):
    gate, handled = asyncio.Event(), []

    def consumed():
        [served] = instance.report().served
        return served.consumed

    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1000")
        async with (
            connect(nats_server.url, metrics_port=unused_port) as mesh,
            mesh.serve(billing(gate, handled), instance_id="one") as instance,
        ):
            for order in range(1, 7):
                await mesh.publish("counted.eu.booked", order, durable=True)
            await until_by(clock, lambda: consumed().dead == 2 and len(handled) == 4)
            for order in range(7, 17):
                await mesh.publish("counted.eu.booked", order, durable=True)
            for _ in range(20):
                if (consumed().pending, consumed().unacknowledged) == (6, 4):
                    break
                await clock.advance(5)
            _, _, shown = await fetch(unused_port)
            asking = asyncio.create_task(mesh.transport.gather(f"{STATS}.billing"))
            await until_by(clock, asking.done)
            before = len(collector.received)
            await until_by(clock, lambda: len(collector.received) > before)
            sent = list(collector.received)
            gate.set()
    [answer] = asking.result()
    expected = {as_prometheus(name, labels): number for name, labels, number in EXPECTED}
    assert on_page(shown) == expected
    assert on_page(page(families([decode(answer.payload)]))) == expected
    assert exported(sent) == {(name, frozenset(labels.items())): number for name, labels, number in EXPECTED}
