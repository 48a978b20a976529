"""The trace and its baggage go on: into handlers, out of them, and through what is not meshkit."""

import asyncio
import subprocess
import sys

import nats
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from spans import Recorder, shape
from support import until

from meshkit import CallPolicy, Context, MeshError, Service, connect

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def echo():
    """A service that tells what it was called with, and what goes on in it."""
    service = Service("echo")

    def told(ctx):
        current = trace.get_current_span().get_span_context()
        return {
            "headers": dict(ctx.headers),
            "baggage": dict(baggage.get_all()),
            "trace": f"{current.trace_id:032x}",
            "span": f"{current.span_id:016x}",
        }

    @service.endpoint()
    async def tell(ctx: Context) -> dict:
        return told(ctx)

    @service.endpoint()
    async def relay(ctx: Context) -> dict:
        return await ctx.mesh.call("echo.tell")

    @service.endpoint()
    async def within(ctx: Context) -> dict:
        with trace.get_tracer("user").start_as_current_span("of the handler"):
            return await ctx.mesh.call("echo.tell")

    @service.endpoint()
    def threaded(ctx: Context) -> dict:
        with trace.get_tracer("user").start_as_current_span("of the thread"):
            return ctx.run(ctx.mesh.call("echo.tell"))

    @service.endpoint()
    async def marked() -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("user.id", 7)
        span.set_attributes({"tier": "gold"})
        span.add_event("looked up", {"rows": 3})
        span.end()  # it is the service's
        span.update_name("echo.marked.gold")

    return service


@pytest.fixture
async def traced(recorder, mesh, echo):
    async with mesh.serve(echo):
        yield mesh, recorder


async def test_spans_of_handlers_and_callers_nest_with_those_of_calls(traced):
    mesh, recorder = traced
    with trace.get_tracer("user").start_as_current_span("of the caller"):
        await mesh.call("echo.within")
    assert shape(recorder.spans) == [
        "INTERNAL of the caller",
        "  CLIENT echo.within",
        "    CLIENT echo.within attempt",
        "      SERVER echo.within",
        "        INTERNAL of the handler",
        "          CLIENT echo.tell",
        "            CLIENT echo.tell attempt",
        "              SERVER echo.tell",
    ]


async def test_also_in_a_handler_that_runs_in_a_thread(traced):
    mesh, recorder = traced
    await mesh.call("echo.threaded")
    assert shape(recorder.spans)[2:] == [
        "    SERVER echo.threaded",
        "      INTERNAL of the thread",
        "        CLIENT echo.tell",
        "          CLIENT echo.tell attempt",
        "            SERVER echo.tell",
    ]


async def test_handlers_may_add_to_their_span(traced):
    mesh, recorder = traced
    await mesh.call("echo.marked")
    [span] = recorder.named("echo.marked.gold")
    assert span.attributes["user.id"] == 7
    assert span.attributes["tier"] == "gold"
    assert span.attributes["rpc.method"] == "echo.marked"
    assert span.events == [("looked up", {"rows": 3})]


async def test_calls_side_by_side_in_a_handler_do_not_mix(traced):
    mesh, recorder = traced
    told = await asyncio.gather(*(mesh.call("echo.within") for _ in range(50)))
    by_id = {span.id: span for span in recorder.spans}
    for each in told:
        way, span = [], by_id[each["span"]]
        while span:
            way.append(span.name)
            span = by_id.get(span.parent)
        assert way == [
            *("echo.tell", "echo.tell attempt", "echo.tell"),
            *("of the handler", "echo.within", "echo.within attempt", "echo.within"),
        ]


# Baggage


async def test_baggage_goes_along_and_on(traced):
    mesh, _ = traced
    token = context.attach(baggage.set_baggage("tenant", "a b"))
    try:
        told = await mesh.call("echo.relay")
    finally:
        context.detach(token)
    assert told["baggage"] == {"tenant": "a b"}
    assert told["headers"]["baggage"] == "tenant=a+b"


async def test_baggage_of_other_clients_in_any_spelling(traced, nats_server):
    client = await nats.connect(nats_server.url)
    try:
        answer = await client.request("echo.relay", headers={"Baggage": "tenant=b,region=eu"})
    finally:
        await client.close()
    assert b'"baggage":{"tenant":"b","region":"eu"}' in answer.data


@pytest.mark.parametrize(("given", "left"), [("secret=x,open=y", {"open": "y"}), ("secret=x", {})])
async def test_baggage_that_a_handler_takes_out_does_not_go_on(traced, given, left):
    mesh, _ = traced
    cleaner = Service("cleaner")

    @cleaner.endpoint()
    async def clean(ctx: Context) -> dict:
        context.attach(baggage.remove_baggage("secret"))
        return await ctx.mesh.call("echo.tell")

    async with mesh.serve(cleaner):
        told = await mesh.call(clean, headers={"baggage": given})
    assert told["baggage"] == left


async def test_a_callers_own_baggage_header_wins(traced):
    mesh, _ = traced
    token = context.attach(baggage.set_baggage("tenant", "a"))
    try:
        told = await mesh.call("echo.tell", headers={"baggage": "tenant=z"})
    finally:
        context.detach(token)
    assert told["baggage"] == {"tenant": "z"}


@pytest.mark.parametrize("junk", ["", "=", "a=b=c;;,,", "\u00e9=\u00e9", "x" * 10_000, "%zz=%zz"])
async def test_baggage_that_is_none_does_no_harm(traced, junk, caplog):
    mesh, _ = traced
    assert await mesh.call("echo.tell", headers={"baggage": junk})
    caplog.clear()


# Whose trace it is


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        {"Traceparent": f"00-{TRACE}-{SPAN}-01"},
        {"TRACEPARENT": f"00-{TRACE.upper()}-{SPAN.upper()}-01"},
        {"traceparent": f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds"},
    ],
)
async def test_the_trace_of_another_client_is_joined(traced, nats_server, headers):
    _, recorder = traced
    client = await nats.connect(nats_server.url)
    try:
        answer = await client.request("echo.relay", headers=headers)
    finally:
        await client.close()
    [span] = recorder.named("echo.relay")
    assert (span.trace, span.parent) == (TRACE, SPAN)
    assert f'"traceparent":"00-{TRACE}-'.encode() in answer.data


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "00",
        "00-zz-zz-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01x",
        f"00-{TRACE}ab-{SPAN}-01",
    ],
)
async def test_a_malformed_one_begins_a_new_trace(traced, malformed):
    mesh, recorder = traced
    told = await mesh.call("echo.relay", headers={"traceparent": malformed})
    assert len({span.trace for span in recorder.spans}) == 1
    assert recorder.spans[0].trace != TRACE
    assert len([span for span in recorder.spans if not span.parent]) == 1
    assert recorder.spans[0].trace in told["headers"]["traceparent"]


async def test_a_callers_own_trace_goes_before_the_one_it_is_in(traced):
    mesh, recorder = traced
    with trace.get_tracer("user").start_as_current_span("other"):
        told = await mesh.call("echo.relay", headers={"Traceparent": f"00-{TRACE}-{SPAN}-01"})
    calls = [span for span in recorder.spans if span.name != "other"]
    assert {span.trace for span in calls} == {TRACE}
    [first] = recorder.named("echo.relay", "CLIENT")
    assert first.parent == SPAN
    assert [name for name in told["headers"] if name.lower() == "traceparent"] == ["traceparent"]


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_what_others_decided_holds(monkeypatch, nats_server, echo, flags):
    recorder = Recorder(monkeypatch, ParentBasedTraceIdRatio(1 - int(flags)))
    async with connect(nats_server.url) as mesh, mesh.serve(echo):
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
        told = await mesh.call("echo.relay", headers=headers)
    assert told["headers"]["traceparent"].startswith(f"00-{TRACE}-")
    assert told["headers"]["traceparent"].endswith(f"-{flags}")
    assert len(recorder.spans) == (6 if flags == "01" else 0)


async def test_tracestate_goes_on(traced):
    mesh, _ = traced
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=x"}
    told = await mesh.call("echo.relay", headers=headers)
    assert told["headers"]["tracestate"] == "vendor=x"


async def test_where_nothing_is_traced_the_headers_go_on_as_they_came(mesh, echo):
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=x", "baggage": "a=b"}
    async with mesh.serve(echo):
        told = await mesh.call("echo.relay", headers=headers)
    assert {name: told["headers"][name] for name in headers} == headers


async def test_the_state_of_the_callers_own_span_goes_along(traced):
    mesh, _ = traced
    state = trace.TraceState([("vendor", "x")])
    named = trace.SpanContext(int(TRACE, 16), int(SPAN, 16), True, trace.TraceFlags(1), state)
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(named)))
    try:
        told = await mesh.call("echo.relay")
        own = await mesh.call("echo.relay", headers={"tracestate": "mine=y"})
    finally:
        context.detach(token)
    assert told["headers"]["tracestate"] == "vendor=x"
    assert told["headers"]["traceparent"].startswith(f"00-{TRACE}-")
    assert own["headers"]["tracestate"] == "mine=y"


@pytest.mark.parametrize("within", [False, True])
async def test_a_trace_goes_on_through_a_connection_that_makes_no_spans(
    monkeypatch, nats_server, mesh, within
):
    service, heads, other = Service("bridge"), [], []

    @service.endpoint()
    async def cross() -> None:
        async def call():
            with pytest.raises(MeshError):
                await other[0].call("raw.there", timeout=0.05, policy=CallPolicy(retries=0))
            await other[0].publish("raw.there")

        if not within:
            return await call()
        with trace.get_tracer("user").start_as_current_span("of the handler"):
            return await call()

    async with mesh.serve(service):
        recorder = Recorder(monkeypatch)
        async with connect(nats_server.url) as traced:
            other.append(traced)
            await mesh.transport.subscribe("raw.there", lambda message: heads.append(message.head))
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=x", "baggage": "a=b"}
            await mesh.call(cross, headers=headers)
            await until(lambda: len(heads) == 2)
    for head in heads:
        lines = head.lower().split(b"\r\n")
        assert [line[:11] for line in lines if line.startswith(b"trace")].count(b"traceparent") == 1
        assert b"tracestate: vendor=x" in lines
        assert b"baggage: a=b" in lines
    if not within:
        assert {span.trace for span in recorder.spans} == {TRACE}
        assert {span.parent for span in recorder.spans if "attempt" not in span.name} == {SPAN}


async def test_baggage_that_is_too_long_is_none_and_fills_no_log(traced, caplog):
    mesh, _ = traced
    for _ in range(50):
        told = await mesh.call("echo.tell", headers={"baggage": "a=" + "x" * 9000})
        assert told["baggage"] == {}
        await mesh.call("echo.tell", headers={"baggage": "junk"})
    assert len([record for record in caplog.records if "aggage" in record.getMessage()]) <= 1
    caplog.clear()


# Events


async def test_a_trace_goes_on_from_an_event_to_who_listens(recorder, mesh):
    mail = Service("mail")
    done = asyncio.Event()

    @mail.subscribe("orders.{number}.placed")
    async def confirm(number: int, ctx: Context) -> None:
        await ctx.mesh.publish("mail.sent")
        done.set()

    async with mesh.serve(mail, instance_id="one"):
        with trace.get_tracer("user").start_as_current_span("order"):
            await mesh.publish("orders.17.placed")
        await done.wait()
        await until(lambda: len(recorder.spans) == 4)
    assert shape(recorder.spans) == [
        "INTERNAL order",
        "  PRODUCER send orders.*.placed",
        "    CONSUMER process orders.*.placed",
        "      PRODUCER send mail.sent",
    ]
    [sent] = recorder.named("send orders.*.placed")
    [processed] = recorder.named("process orders.*.placed")
    assert sent.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders.17.placed",
    }
    assert processed.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.template": "orders.*.placed",
        "messaging.destination.name": "orders.17.placed",
        "meshkit.instance": "mail/one",
    }


# Beside other instrumentation

INSTRUMENTED = """
import asyncio, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_instrumentation_nats import NatsInstrumentor

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
when = sys.argv[2]
if when == "before":
    NatsInstrumentor().instrument()
import meshkit.transport.nats
from meshkit import CallPolicy, Context, MeshError, Service, connect
if when == "after":
    NatsInstrumentor().instrument()

service = Service("echo")

@service.endpoint()
async def tell(ctx: Context) -> str:
    await ctx.mesh.publish("echo.told")
    return ctx.headers["traceparent"]

@service.subscribe("echo.told")
async def hear() -> None:
    pass

async def main():
    async with connect(sys.argv[1]) as mesh, mesh.serve(service):
        await mesh.call(tell)
        while len(exporter.get_finished_spans()) < 5:
            await asyncio.sleep(0.01)

asyncio.run(main())
print(*sorted(span.name for span in exporter.get_finished_spans()), sep="\\n")
"""


@pytest.mark.parametrize("fast", ["on", "off"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_no_span_is_made_twice_beside_instrumentation_of_nats_py(nats_server, when, fast):
    command = [sys.executable, "-c", INSTRUMENTED, nats_server.url, when]
    done = subprocess.run(
        command, check=False, env={"MESHKIT_FAST_PATH": fast}, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines() == [
        "echo.tell",
        "echo.tell",
        "echo.tell attempt",
        "process echo.told",
        "send echo.told",
    ], done.stderr
