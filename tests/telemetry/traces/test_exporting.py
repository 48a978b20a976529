"""Who gets spans, by what the environment says: in processes of their own, as it holds for all of one."""

import socket
import subprocess
import sys
import time

import pytest
from otlp import receiver
from spans import Recorder, received

from meshkit import connect
from meshkit.errors import ConfigError
from meshkit.telemetry.traces.exporting import tracer

CALLS = """
import asyncio, sys
from meshkit import Service, connect

service = Service("echo")

@service.endpoint()
async def work(number: int) -> int:
    return number

async def main():
    async with connect(sys.argv[1]) as mesh, mesh.serve(service):
        await asyncio.gather(*(mesh.call(work, number) for number in range(int(sys.argv[2]))))

asyncio.run(main())
"""


def run(nats_server, calls=1, code=CALLS, **env):
    """Serves and calls itself in a process with these variables; what it has printed."""
    command = [sys.executable, "-W", "error", "-c", code, nats_server.url, str(calls)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_without_a_word_nothing_is_traced_nor_loaded(nats_server):
    code = CALLS + "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    assert run(nats_server, code=code) == ""


@pytest.mark.parametrize(
    "env",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    ],
)
def test_traces_can_be_switched_off(nats_server, env):
    with receiver() as there:
        run(nats_server, OTEL_EXPORTER_OTLP_ENDPOINT=there.url, OTEL_METRICS_EXPORTER="none", **env)
        assert there.received == []


@pytest.mark.parametrize(
    ("env", "least", "most"),
    [
        # 1 % of 1,000 roots: the odds of more than 35 or of none are one in ten thousand million, and 4e-5.
        ({}, 0, 35),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, 400, 600),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1000, 1000),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, 1000, 1000),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, 1000, 1000),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.2"}, 120, 280),
    ],
)
def test_the_environment_says_which_share_is_sampled(nats_server, env, least, most):
    with receiver() as there:
        run(nats_server, 1000, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{there.url}/v1/traces", **env)
        spans = received(there.of("traces"))
    roots = [span for span in spans if not span.parent]
    assert least <= len(roots) <= most
    assert len(spans) == 3 * len(roots)


def test_spans_say_whose_they_are_and_the_environment_goes_first(nats_server):
    with receiver() as there:
        env = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{there.url}/v1/traces",
            "OTEL_TRACES_SAMPLER": "always_on",
        }
        run(nats_server, **env)
        run(nats_server, **env, OTEL_SERVICE_NAME="shop", OTEL_RESOURCE_ATTRIBUTES="zone=b")
        spans = received(there.of("traces"))
    first, second = spans[:3], spans[3:]
    assert {span.resource["service.name"] for span in first if span.kind == "SERVER"} == {"echo"}
    assert {(span.resource["service.name"], span.resource["zone"]) for span in second} == {("shop", "b")}


def test_spans_can_be_printed(nats_server):
    told = run(nats_server, OTEL_TRACES_EXPORTER="console", OTEL_TRACES_SAMPLER="always_on")
    assert told.count('"name": "echo.work"') == 2


@pytest.mark.parametrize(
    ("env", "text"),
    [
        (
            {"OTEL_TRACES_SAMPLER_ARG": "1%"},
            "OTEL_TRACES_SAMPLER_ARG=1%: write the share of traces to sample, from 0 to 1",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "sometimes"},
            "OTEL_TRACES_SAMPLER=sometimes: write always_on, always_off, traceidratio, parentbased_always",
        ),
        ({"MESHKIT_TRACE_SLOW": "soon"}, "MESHKIT_TRACE_SLOW"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "soon"}, "OTEL_BSP_SCHEDULE_DELAY=soon: write a whole number"),
        (
            {"OTEL_SPAN_EVENT_COUNT_LIMIT": "many"},
            "OTEL_SPAN_EVENT_COUNT_LIMIT must be a non-negative integer",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://"}, "write a URL such as http://localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:b"}, "write a URL such as http://localhost:4318"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_*: max_queue_size must be a positive integer"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "localhost:4318"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=localhost:4318: write a URL such as http://localhost:4318",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: meshkit sends OTLP"),
    ],
)
async def test_what_is_wrong_is_said_in_a_sentence(monkeypatch, nats_server, env, text):
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    for name, value in {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1", **env}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        async with connect(nats_server.url):
            raise AssertionError
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_exporter_a_sentence_says_what_to_install():
    missing = "import sys; sys.modules['opentelemetry.exporter'] = None"
    code = f"{missing}; from meshkit.telemetry.traces.exporting import tracer; tracer('x')"
    env = {"OTEL_TRACES_EXPORTER": "otlp"}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=env, capture_output=True, text=True)
    said = "ConfigError: the environment asks for traces by OTLP, which needs: pip install 'meshkit[otlp]'"
    assert done.stderr.splitlines()[-1].endswith(said)


async def test_the_users_own_provider_goes_before_the_environment(monkeypatch, nats_server):
    recorder = Recorder(monkeypatch)
    with receiver() as there:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{there.url}/v1/traces")
        async with connect(nats_server.url) as mesh:
            await mesh.call("nobody.here", fallback=None)
        assert there.received == []
    assert recorder.named("nobody.here")


def test_a_disabled_sdk_holds_for_the_users_own_provider_too(monkeypatch):
    Recorder(monkeypatch)
    assert tracer(None) is not None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    assert tracer(None) is None


def test_a_receiver_that_hangs_keeps_no_process_from_ending(nats_server):
    # It takes connections, and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        told = run(
            nats_server,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{port}/v1/traces",
            OTEL_TRACES_SAMPLER="always_on",
        )
    assert told == "the last spans were not exported within 2 s\n"


@pytest.mark.parametrize("silent", [True, False])
def test_a_receiver_that_is_away_is_waited_for_once(nats_server, unused_port, silent):
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1] if silent else unused_port
        started = time.monotonic()
        run(nats_server)
        otherwise = time.monotonic() - started
        told = run(
            nats_server,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_TRACES_SAMPLER="always_on",
        )
        took = time.monotonic() - started - otherwise
    # Of both, at the same time: a busy machine takes longer for the rest, too.
    assert took < 2 * otherwise + 2.5
    assert "the last spans were not exported within 2 s" in told
    assert "the last metrics were not sent within 2 s" in told
    assert silent or "the last spans were not exported within 2 s: Transient error" in told


FOREIGN = """
import threading
from opentelemetry import trace

class Wrapper(trace.TracerProvider):
    def get_tracer(self, *_, **__):
        return trace.NoOpTracer()

trace.set_tracer_provider(%s)
"""
AGAIN = """
before = threading.active_count()
for _ in range(3):
    asyncio.run(main())
assert threading.active_count() == before, threading.enumerate()
"""


@pytest.mark.parametrize("provider", ["Wrapper()", "trace.NoOpTracerProvider()"])
def test_a_provider_that_is_not_the_sdks_is_left_alone(nats_server, provider):
    with receiver() as there:
        env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{there.url}/v1/traces"}
        told = run(
            nats_server, code=FOREIGN % provider + CALLS + AGAIN, OTEL_TRACES_SAMPLER="always_on", **env
        )
        assert there.received == []
    said = "meshkit's calls are not traced: the TracerProvider is a __main__.Wrapper"
    assert told.count(said) == provider.startswith("Wrapper")


@pytest.mark.parametrize(
    "name",
    [
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "opentelemetry.sdk._shared_internal",
    ],
)
def test_trouble_with_exporting_is_logged_once_a_minute(nats_server, name):
    code = f"""
import logging
from meshkit.telemetry.metrics import otel
from meshkit.telemetry.traces import exporting
logging.basicConfig(format="%(name)s %(levelname)s")
exporting.tracer("x"), otel._exporter("otlp")
for _ in range(100):
    logging.getLogger("{name}").warning("it is away %s", _)
    logging.getLogger("{name}").error("it is given up %s", _)
"""
    told = run(nats_server, code=code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert told.splitlines() == [f"{name} WARNING", f"{name} ERROR"]
