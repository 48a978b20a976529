import asyncio
import json
import os
import sys
import time

import pytest
from otlp import attributes, points, receiver
from support import gated, until

from meshkit import ConfigError, NotFound, Service, connect
from meshkit.telemetry.distribution import BOUNDS
from meshkit.telemetry.environment import resource, wants

_DURATION = "rpc.server.call.duration"
_METHOD = ("rpc.method", "echo.say")
_NATS = ("rpc.system.name", "nats")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets variables of OpenTelemetry; those that the machine has are gone."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")

    def set_them(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_them


def echo():
    service = Service("echo", version="1.2.3")

    @service.endpoint("echo.say")
    async def say(text: str) -> str:
        if text == "nothing":
            raise NotFound("nothing to say")
        return text

    return service


async def test_metrics_go_to_the_receiver_when_the_connection_ends(nats_server, environment):
    before = time.time_ns()
    with receiver() as collector:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        async with connect(nats_server.url, name="a guest") as mesh, mesh.serve(echo(), instance_id="one"):
            await mesh.call("echo.say", "hello")
            with pytest.raises(NotFound):
                await mesh.call("echo.say", "nothing")
            assert not collector.received
        [request] = collector.of("metrics")
    whose = [attributes(each.resource.attributes) for each in request.resource_metrics]
    by_name = {each["service.name"]: each for each in whose}
    assert by_name["echo"]["service.instance.id"] == "one"
    assert by_name["echo"]["service.version"] == "1.2.3"
    # A client has no id, but one is needed to tell several apart.
    assert len(by_name["a guest"]["service.instance.id"]) == 22
    found = points([request])
    fine = found[_DURATION, "echo", frozenset({_METHOD, _NATS})]
    assert (fine.count, sum(fine.bucket_counts), tuple(fine.explicit_bounds)) == (1, 1, BOUNDS)
    assert before < fine.start_time_unix_nano < fine.time_unix_nano < time.time_ns()
    assert not fine.HasField("min")
    failed = found[_DURATION, "echo", frozenset({_METHOD, _NATS, ("error.type", "NotFound")})]
    assert failed.count == 1
    sent = found["meshkit.client.attempts", "a guest", frozenset({_METHOD})]
    assert sent.as_int == 1


async def test_kinds_and_units_are_those_of_the_catalogue(nats_server, environment):
    with receiver() as collector:
        environment(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{collector.url}/v1/metrics")
        async with connect(nats_server.url) as mesh, mesh.serve(echo()):
            pass
        [request] = collector.received
    [scope] = request.resource_metrics[0].scope_metrics
    assert scope.scope.name == "meshkit"
    metrics = {metric.name: metric for metric in scope.metrics}
    assert metrics[_DURATION].unit == "s"
    assert metrics[_DURATION].histogram.aggregation_temporality == 2  # cumulative
    received = metrics["meshkit.server.received"]
    assert (received.unit, received.sum.is_monotonic, received.sum.aggregation_temporality) == ("By", True, 2)
    assert metrics["meshkit.server.in_flight"].WhichOneof("data") == "gauge"


async def test_metrics_go_out_regularly_and_add_up(nats_server, environment):
    with receiver() as collector:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRIC_EXPORT_INTERVAL=100)
        async with connect(nats_server.url) as mesh, mesh.serve(echo()):
            for count in (1, 2):
                await mesh.call("echo.say", "hello")
                seen = len(collector.received)
                await until(lambda seen=seen: len(collector.received) > seen + 1)
                point = points(collector.received)[_DURATION, "echo", frozenset({_METHOD, _NATS})]
                assert point.count == count
        starts = {
            points([request])[_DURATION, "echo", frozenset({_METHOD, _NATS})].start_time_unix_nano
            for request in collector.received
        }
    assert len(starts) == 1


async def test_calls_that_end_while_it_drains_are_exported(nats_server, environment):
    service = gated("late")
    with receiver() as collector:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        async with connect(nats_server.url) as caller, connect(nats_server.url) as mesh:
            async with mesh.serve(service):
                call = asyncio.create_task(caller.call("late.wait"))
                await until(lambda: service.running)
                asyncio.get_running_loop().call_later(0.1, service.gate.set)
            await call
        found = points(collector.received)
    point = found[_DURATION, "late", frozenset({("rpc.method", "late.wait"), _NATS})]
    assert point.count == 1


async def test_a_receiver_that_is_away_keeps_nobody(nats_server, environment, caplog, unused_port):
    environment(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{unused_port}")
    started = time.monotonic()
    async with connect(nats_server.url) as mesh, mesh.serve(echo()):
        assert await mesh.call("echo.say", "hello") == "hello"
    assert time.monotonic() - started < 4
    assert "the last metrics were not sent within 2 s: Transient error" in caplog.text


async def test_the_console_gets_them(nats_server, environment, capsys):
    environment(OTEL_METRICS_EXPORTER="console")
    async with connect(nats_server.url) as mesh, mesh.serve(echo()):
        pass
    shown = json.loads(capsys.readouterr().out)
    names = {metric["name"] for metric in shown["resource_metrics"][0]["scope_metrics"][0]["metrics"]}
    assert _DURATION in names


async def test_who_did_nothing_sends_nothing(nats_server, environment):
    with receiver() as collector:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        async with connect(nats_server.url):
            pass
        assert collector.received == []


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_METRICS_EXPORTER": "Console"}, "console"),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, None),
        ({"OTEL_METRICS_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "otlp"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_METRICS_EXPORTER": "otlp"}, None),
        ({"OTEL_SDK_DISABLED": "1", "OTEL_METRICS_EXPORTER": "otlp"}, "otlp"),
    ],
)
def test_the_environment_says_where_to(environment, variables, wanted):
    environment(**variables)
    assert wants("metrics") == wanted


def test_an_exporter_that_there_is_not_is_logged(environment, caplog):
    environment(OTEL_METRICS_EXPORTER="prometheus")
    assert wants("metrics") is None
    assert "OTEL_METRICS_EXPORTER=prometheus: metrics are not exported; write otlp" in caplog.text


def test_grpc_is_not_spoken(environment):
    environment(OTEL_METRICS_EXPORTER="otlp", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL=grpc: meshkit sends OTLP by http/"):
        wants("metrics")
    environment(OTEL_EXPORTER_OTLP_METRICS_PROTOCOL="http/protobuf")
    assert wants("metrics") == "otlp"


async def test_without_the_package_it_says_which(nats_server, environment, monkeypatch):
    environment(OTEL_METRICS_EXPORTER="otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(ConfigError, match=r"needs: pip install 'meshkit\[otlp\]'"):
        async with connect(nats_server.url):
            pass


@pytest.mark.parametrize("interval", ["soon", "0", "-5", "inf", "nan"])
async def test_an_interval_that_is_none_is_a_mistake(nats_server, environment, interval):
    environment(OTEL_METRICS_EXPORTER="console", OTEL_METRIC_EXPORT_INTERVAL=interval)
    with pytest.raises(ConfigError, match=f"OTEL_METRIC_EXPORT_INTERVAL={interval}: write milliseconds"):
        async with connect(nats_server.url):
            pass


def test_who_sends_is_said_by_the_environment_first(environment):
    environment(OTEL_RESOURCE_ATTRIBUTES="service.version=9.9.9,deployment.environment.name=test")
    found = resource("rooms", "one", "1.0.0").attributes
    assert found["service.name"] == "rooms"
    assert found["service.instance.id"] == "one"
    assert found["service.version"] == "9.9.9"
    assert found["deployment.environment.name"] == "test"
    environment(OTEL_SERVICE_NAME="hotel")
    assert resource("rooms", "one", "1.0.0").attributes["service.name"] == "hotel"
