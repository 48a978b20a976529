"""What was counted is exact, and the same wherever it is shown."""

import asyncio
import re
from collections import Counter

import msgspec
import pytest
from otlp import points, receiver
from support import fetch

from meshkit import CallPolicy, MeshError, NotFound, Service, Unavailable, connect
from meshkit.discovery.protocol import control_subject
from meshkit.errors import kind
from meshkit.telemetry.distribution import Distribution
from meshkit.telemetry.metrics.catalogue import CATALOGUE, LOOP_LAG
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.report import Report, Served

CALLS, AT_A_TIME = 100_000, 400


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}  # as `meshkit run` does


def flaky(handled):
    """Succeeds, fails for good, or fails in a way that is tried again; refuses what is too much."""
    service = Service("flaky", version="1.0.0", concurrency=200, backlog=0)

    @service.endpoint(idempotent=True, call=CallPolicy(retries=2, retry_delay=0.001, breaker=False))
    async def draw(number: int) -> int:
        await asyncio.sleep(0)
        if number % 50 == 0:
            handled["NotFound"] += 1
            raise NotFound
        if (handled["ok"] + number) % 37 == 0:
            handled["Unavailable"] += 1
            raise Unavailable
        handled["ok"] += 1
        return number

    return service


async def test_metrics_of_100_000_calls_are_exact_and_equal_in_all_views(
    nats_server, unused_port, monkeypatch
):
    handled, seen = Counter(), Counter()
    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        async with (
            connect(nats_server.url, name="guest", metrics_port=unused_port) as mesh,
            mesh.serve(flaky(handled), instance_id="one"),
        ):
            await call_all(mesh, seen)
            stats = await mesh.transport.gather(control_subject("STATS", "flaky", "one"))
            _, _, page = await fetch(unused_port)
        exported = of_otlp(collector.received)
    assert sum(seen.values()) == CALLS
    assert {"ok", "NotFound", "Unavailable"} <= set(seen), seen
    shown = of_page(page)
    for outcome, count in seen.items():
        assert shown["rpc.client.call.duration", "guest", labels(outcome, nats=True)][0] == count
    # Each attempt was handled or refused, and both sides say so.
    attempts = {
        outcome: shown["meshkit.client.attempts", "guest", labels(outcome)]
        for outcome in ("ok", "NotFound", "Unavailable", "Overloaded")
    }
    assert attempts == {**handled, "Overloaded": attempts["Overloaded"]}
    assert attempts["Overloaded"] > 0
    retries = shown["meshkit.client.retries", "guest", labels()]
    assert sum(attempts.values()) == CALLS + retries
    assert retries > 1000
    for outcome, count in attempts.items():
        assert shown["rpc.server.call.duration", "flaky", labels(outcome, nats=True)][0] == count
    # The page and what was exported are the same to the last digit, and so is what $SRV.STATS says.
    assert exported == shown
    answered = of_stats(stats[0].payload)
    assert len(answered) == 11
    assert answered == {key: shown[key] for key in answered}


async def call_all(mesh, seen):
    numbers = iter(range(1, CALLS + 1))

    async def call_some():
        for number in numbers:
            try:
                await mesh.call("flaky.draw", number, returns=int, timeout=30)
            except MeshError as error:
                seen[kind(error)] += 1
            else:
                seen["ok"] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_A_TIME):
            tasks.create_task(call_some())


def labels(outcome="ok", *, nats=False):
    found = {"rpc.method": "flaky.draw"}
    if nats:
        found["rpc.system.name"] = "nats"
    if outcome != "ok":
        found["error.type"] = outcome
    return frozenset(found.items())


# Each view as `{(metric, service, labels): number, or (count, sum, bins)}`, without how late the event loop
# is, which goes on. Service, instance and version are the resource's in OpenTelemetry.


def of_page(page):
    found = {}
    by_name = {metric.prometheus: metric for metric in CATALOGUE if metric is not LOOP_LAG}
    originals = {name.replace(".", "_"): name for metric in CATALOGUE for name in metric.labels}
    bins = {}
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        name, written, value = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (.*)", line).groups()
        marks = dict(re.findall(r'([a-z_]+)="([^"]*)"', written or ""))
        service = marks.pop("service_name", None)
        for of_resource in ("service_instance_id", "service_version"):
            marks.pop(of_resource, None)
        le = marks.pop("le", None)
        key = frozenset((originals[label], text) for label, text in marks.items())
        base, _, part = name.rpartition("_")
        if name in by_name:
            found[by_name[name].name, service, key] = float(value)
        elif base in by_name and part == "bucket":
            bins.setdefault((base, service, key), []).append((le, int(value)))
        elif base in by_name and part == "sum":
            counts = [count for _, count in bins[base, service, key]]
            each = tuple(after - before for before, after in zip([0, *counts], counts, strict=False))
            found[by_name[base].name, service, key] = (counts[-1], float(value), each)
    return found


def of_otlp(requests):
    found = {}
    for key, point in points(requests).items():
        if hasattr(point, "bucket_counts"):
            found[key] = (point.count, point.sum, tuple(point.bucket_counts))
        else:
            found[key] = float(getattr(point, point.WhichOneof("value")))
    return {key: value for key, value in found.items() if key[0] != LOOP_LAG.name}


def of_stats(payload):
    stats = msgspec.json.decode(payload)
    served = [msgspec.convert(endpoint["data"], Served) for endpoint in stats["endpoints"]]
    found = {}
    for family in families([Report(name=stats["name"], served=served)]):
        for marks, value in family.samples:
            # An endpoint answers with the bound it is under, which is the service's here.
            of_service = family.metric.name.startswith("meshkit.server.concurrency.")
            left_out = {"service.name", *(["rpc.method"] if of_service else [])}
            key = frozenset((label, text) for label, text in marks.items() if label not in left_out)
            is_bins = isinstance(value, Distribution)
            if "rpc.method" in marks:
                found[family.metric.name, stats["name"], key] = (
                    (value.count, value.sum, tuple(value.counts)) if is_bins else value
                )
    return found
