"""One call through several services is one trace, whatever is done for it on the way."""

import asyncio
import gc
import threading
import weakref
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import StatusCode, get_current_span
from otlp import receiver
from spans import Recorder, received, shape
from support import until

from meshkit import (
    CallPolicy,
    Context,
    DeadlineExceeded,
    InternalError,
    NoResponders,
    NotFound,
    Service,
    ServiceError,
    connect,
)

ONCE = CallPolicy(retries=0)


@pytest.fixture
async def quartet(nats_server):
    """Serves a, b, c and d, each on a connection of its own: a calls b, which calls c and d at once."""
    a, b, c, d = (Service(name) for name in "abcd")

    @a.endpoint()
    async def go(number: int, ctx: Context) -> int:
        return await ctx.mesh.call("b.split", number, returns=int)

    @b.endpoint()
    async def split(number: int, ctx: Context) -> int:
        parts = (ctx.mesh.call(each, number, returns=int) for each in ("c.half", "d.half"))
        return sum(await asyncio.gather(*parts))

    @c.endpoint("c.half")
    async def low(number: int) -> int:
        await asyncio.sleep(0)
        return number // 2

    @d.endpoint("d.half")
    async def high(number: int) -> int:
        await asyncio.sleep(0)
        return number - number // 2

    @asynccontextmanager
    async def served():
        async with AsyncExitStack() as stack:
            for service in (a, b, c, d):
                mesh = await stack.enter_async_context(connect(nats_server.url))
                await stack.enter_async_context(mesh.serve(service, instance_id=f"{service.name}1"))
            yield await stack.enter_async_context(connect(nats_server.url))

    return served


THROUGH_FOUR = [
    "CLIENT a.go",
    "  CLIENT a.go attempt",
    "    SERVER a.go",
    "      CLIENT b.split",
    "        CLIENT b.split attempt",
    "          SERVER b.split",
    "            CLIENT c.half",
    "              CLIENT c.half attempt",
    "                SERVER c.half",
    "            CLIENT d.half",
    "              CLIENT d.half attempt",
    "                SERVER d.half",
]


async def test_a_call_through_four_services_is_one_trace_at_a_receiver(quartet, monkeypatch):
    recorder = Recorder(monkeypatch)
    with receiver() as there:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", there.url)
        recorder.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        async with quartet() as mesh:
            assert await mesh.call("a.go", 7, returns=int) == 7
            await asyncio.to_thread(recorder.provider.force_flush)
            spans = received(there.of("traces"))
            assert shape(spans) == THROUGH_FOUR
            assert len({span.trace for span in spans}) == 1
            by_id = {span.id: span for span in spans}
            for span in spans:
                if span.parent:
                    assert by_id[span.parent].start <= span.start
                    assert span.end <= by_id[span.parent].end
            services = [span.resource["service.name"] for span in spans if span.kind == "SERVER"]
            assert sorted(services) == ["a", "b", "c", "d"]
        recorder.provider.shutdown()


async def test_traces_of_calls_made_at_once_do_not_mix(quartet, recorder):
    async with quartet() as mesh:
        answers = await asyncio.gather(*(mesh.call("a.go", n, returns=int) for n in range(100)))
        assert answers == list(range(100))
        traces = {span.trace for span in recorder.spans}
        assert len(traces) == 100
        for trace in traces:
            spans = [span for span in recorder.spans if span.trace == trace]
            assert shape(spans)[:6] == THROUGH_FOUR[:6]
            assert sorted(shape(spans)) == sorted(THROUGH_FOUR)


async def test_what_a_span_says(recorder, mesh):
    service = Service("desk", version="1.2.3")

    @service.endpoint("desk.{floor}.ring")
    async def ring(floor: int) -> str:
        raise ServiceError(409, f"nobody on floor {floor}")

    async with mesh.serve(service, instance_id="one"):
        with pytest.raises(ServiceError):
            await mesh.call(ring.at(floor=3))
        client, attempt, server = sorted(recorder.spans, key=lambda span: span.start)
    failed = {"error.type": "409", "rpc.response.status_code": "409", "meshkit.instance": "desk/one"}
    of = {"rpc.system.name": "nats", "rpc.method": "desk.*.ring"}
    assert client.attributes == of | failed | {"meshkit.subject": "desk.3.ring"}
    assert attempt.attributes == of | failed | {"meshkit.attempt": 1}
    assert server.attributes == client.attributes
    # A caller's mistake is no failure of the service.
    assert [span.status for span in (client, attempt, server)] == ["ERROR", "ERROR", "UNSET"]
    assert client.message == "nobody on floor 3"
    assert server.resource["service.name"] == "desk"
    assert server.resource["service.version"] == "1.2.3"
    assert server.resource["service.instance.id"] == "one"
    assert client.resource["service.name"] == "client"


async def test_the_traceback_of_what_a_handler_did_not_mean_to_raise(recorder, mesh, caplog):
    service = Service("faulty")

    @service.endpoint()
    async def divide() -> float:
        return 1 / 0

    async with mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call(divide)
        [server] = [span for span in recorder.spans if span.kind == "SERVER"]
    [(name, what)] = server.events
    assert name == "exception"
    assert what["exception.type"] == "ZeroDivisionError"
    assert "1 / 0" in what["exception.stacktrace"]
    assert server.status == "ERROR"
    assert server.attributes["error.type"] == "InternalError"
    caplog.clear()


async def test_attempts_are_siblings(recorder, mesh):
    service = Service("flaky")
    failures = iter([ServiceError(503, "not now"), ServiceError(503, "not yet"), None])

    @service.endpoint(idempotent=True)
    async def work() -> str:
        if (failure := next(failures)) is not None:
            raise failure
        return "done"

    async with mesh.serve(service):
        assert await mesh.call(work, policy=CallPolicy(retry_delay=0.001)) == "done"
        assert shape(recorder.spans) == [
            "CLIENT flaky.work",
            *["  CLIENT flaky.work attempt", "    SERVER flaky.work"] * 3,
        ]
        attempts = recorder.named("flaky.work attempt")
        assert [span.attributes["meshkit.attempt"] for span in attempts] == [1, 2, 3]
        assert [span.message for span in attempts] == ["not now", "not yet", ""]
        [call] = recorder.named("flaky.work", "CLIENT")
        assert call.status == "UNSET"


async def test_a_hedge_is_a_second_attempt_and_the_loser_is_cancelled(recorder, mesh):
    service = Service("slow")
    copies = 0

    @service.endpoint(idempotent=True)
    async def work() -> str:
        nonlocal copies
        copies += 1
        if copies == 1:
            await asyncio.Event().wait()
        return "done"

    async with mesh.serve(service):
        assert await mesh.call(work, policy=CallPolicy(hedge=0.01)) == "done"
        await until(lambda: len(recorder.spans) == 5)
        assert shape(recorder.spans) == [
            "CLIENT slow.work",
            *["  CLIENT slow.work attempt", "    SERVER slow.work"] * 2,
        ]
        first, second = recorder.named("slow.work attempt")
        assert first.attributes["error.type"] == "Cancelled"
        assert (first.attributes["meshkit.attempt"], second.attributes["meshkit.attempt"]) == (1, 2)
        assert "error.type" not in second.attributes
        lost = next(span for span in recorder.spans if span.parent == first.id)
        assert lost.attributes["error.type"] == "Cancelled"
        # Nothing has failed.
        assert {span.status for span in recorder.spans} == {"UNSET"}


async def test_a_call_that_is_never_sent_has_a_span_but_no_attempt(recorder, mesh):
    with pytest.raises(NoResponders):
        await mesh.call("nobody.here", policy=ONCE)
    assert shape(recorder.spans) == ["CLIENT nobody.here", "  CLIENT nobody.here attempt"]
    assert {span.attributes["error.type"] for span in recorder.spans} == {"NoResponders"}


async def test_a_fallback_is_a_part_of_the_call(recorder, mesh):
    assert await mesh.call("nobody.here", policy=ONCE, fallback=7) == 7
    assert shape(recorder.spans) == [
        "CLIENT nobody.here",
        "  CLIENT nobody.here attempt",
        "  INTERNAL fallback",
    ]


# Streams


@pytest.fixture
async def counter(recorder, mesh):
    service = Service("counter")

    @service.endpoint()
    async def count(to: int):
        for number in range(to):
            yield number
        if to == 13:
            raise ServiceError(513, "unlucky")

    async with mesh.serve(service):
        yield mesh, recorder


def streamed(recorder):
    [span] = recorder.named("counter.count", "CLIENT")
    return span


async def test_the_span_of_a_stream_ends_with_it(counter):
    mesh, recorder = counter
    items = mesh.stream("counter.count", 3, returns=int)
    assert await anext(items) == 0
    assert recorder.named("counter.count", "CLIENT") == []
    assert [item async for item in items] == [1, 2]
    span = streamed(recorder)
    assert span.status == "UNSET"
    served = next(span for span in recorder.spans if span.kind == "SERVER")
    assert span.start < served.start < served.end < span.end


async def test_a_stream_that_fails_after_some_items_marks_its_span(counter):
    mesh, recorder = counter
    with pytest.raises(ServiceError):
        _ = [item async for item in mesh.stream("counter.count", 13, returns=int)]
    span = streamed(recorder)
    assert (span.status, span.message) == ("ERROR", "unlucky")
    assert span.attributes["error.type"] == "513"


@pytest.mark.parametrize("how", ["closed", "dropped"])
async def test_a_stream_that_nobody_reads_to_its_end_has_a_span_too(counter, how):
    mesh, recorder = counter
    items = mesh.stream("counter.count", 1000, returns=int)
    assert await anext(items) == 0
    if how == "closed":
        await items.aclose()
    else:
        del items
        gc.collect()
    await until(lambda: recorder.named("counter.count", "CLIENT"))
    assert streamed(recorder).status == "UNSET"


# What is sampled


async def traced(nats_server, calls):
    """So many calls, each a root; of `echo.fail` those that fail."""
    service = Service("echo")

    @service.endpoint()
    async def work(number: int) -> int:
        return number

    async with connect(nats_server.url) as mesh, mesh.serve(service):
        for first in range(0, calls, 100):
            some = range(first, min(first + 100, calls))
            await asyncio.gather(*(mesh.call(work, number) for number in some))


async def test_a_trace_is_sampled_as_a_whole_or_not_at_all(monkeypatch, nats_server):
    recorder = Recorder(monkeypatch, ParentBasedTraceIdRatio(0.1))
    # Roots' ids are spread evenly: 2,000 times 10 % is 200, and 5 standard deviations from it are 67.
    await traced(nats_server, 2000)
    roots = [span for span in recorder.spans if not span.parent]
    assert 133 <= len(roots) <= 267
    assert len(recorder.spans) == 3 * len(roots)
    assert {span.trace for span in recorder.spans} == {span.trace for span in roots}
    bound = 0.1 * 2**64
    assert all(int(span.trace[16:], 16) < bound for span in roots)


async def test_who_decides_may_be_the_users_own(monkeypatch, nats_server):
    class EveryThird(Sampler):
        asked = 0

        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **_):
            self.asked += 1
            return SamplingResult(Decision.RECORD_AND_SAMPLE if self.asked % 3 == 0 else Decision.DROP)

        def get_description(self):
            return "EveryThird"

    sampler = EveryThird()
    recorder = Recorder(monkeypatch, sampler)
    await traced(nats_server, 30)
    assert len([span for span in recorder.spans if not span.parent]) == 10
    assert sampler.asked == 30


@pytest.fixture
async def unsampled(monkeypatch, nats_server):
    """A mesh whose traces are not sampled, and what serves `tail` on it."""
    recorder = Recorder(monkeypatch, ParentBasedTraceIdRatio(0))
    monkeypatch.setenv("MESHKIT_TRACE_SLOW", "50ms")
    service = Service("tail")

    @service.endpoint()
    async def fail(code: int) -> None:
        raise ServiceError(code, "as asked")

    @service.endpoint()
    async def wait(seconds: float, ctx: Context) -> str:
        await asyncio.sleep(seconds)
        return ctx.headers["traceparent"]

    @service.endpoint()
    async def nested(code: int, ctx: Context) -> None:
        await ctx.mesh.call("tail.fail", code, policy=ONCE)

    async with connect(nats_server.url) as mesh, mesh.serve(service):
        yield mesh, recorder


async def test_what_is_not_sampled_says_so_and_makes_no_spans(unsampled):
    mesh, recorder = unsampled
    assert (await mesh.call("tail.wait", 0.0)).endswith("-00")
    assert recorder.spans == []


async def test_what_fails_is_kept_and_shows_its_way(unsampled):
    mesh, recorder = unsampled
    with pytest.raises(ServiceError):
        await mesh.call("tail.nested", 500, policy=ONCE)
    assert [line.split()[0] for line in shape(recorder.spans)] == ["CLIENT", "SERVER", "CLIENT", "SERVER"]
    assert len({span.trace for span in recorder.spans}) == 1


async def test_what_takes_long_is_kept(unsampled):
    mesh, recorder = unsampled
    await mesh.call("tail.wait", 0.06)
    assert sorted(span.kind for span in recorder.spans) == ["CLIENT", "SERVER"]


async def test_a_callers_own_mistake_is_not_kept(unsampled):
    mesh, recorder = unsampled
    with pytest.raises(NotFound):
        await mesh.call("tail.fail", 404)
    assert recorder.spans == []


async def test_who_waits_no_more_has_not_failed(unsampled):
    mesh, recorder = unsampled
    call = asyncio.create_task(mesh.call("tail.wait", 30.0))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert recorder.spans == []
    with pytest.raises(DeadlineExceeded):
        await mesh.call("tail.wait", 30.0, timeout=0.01)
    assert "DeadlineExceeded" in {span.attributes["error.type"] for span in recorder.spans}


async def test_of_many_failures_a_hundred_a_second_are_kept(unsampled):
    mesh, recorder = unsampled
    started = asyncio.get_running_loop().time()

    async def fail():
        with pytest.raises(ServiceError):
            await mesh.call("tail.fail", 599, policy=CallPolicy(retries=0, breaker=False))

    for _ in range(4):
        await asyncio.gather(*(fail() for _ in range(100)))
    # A client's and an instance's, each for every second that it touched.
    seconds = int(asyncio.get_running_loop().time() - started) + 2
    assert 200 <= len(recorder.spans) <= 200 * seconds
    assert len(recorder.spans) < 800


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ParentBased(ALWAYS_OFF)])
async def test_where_traces_are_off_nothing_is_kept(monkeypatch, nats_server, sampler):
    recorder = Recorder(monkeypatch, sampler)
    async with connect(nats_server.url) as mesh:
        with pytest.raises(NoResponders):
            await mesh.call("nobody.here", policy=ONCE)
    assert recorder.spans == []


# What must not happen


async def test_calls_and_their_spans_keep_nobody_alive(recorder, mesh):
    service = Service("held")

    @service.endpoint()
    async def fail() -> None:
        raise ServiceError(500, "as always")

    async def failing():
        with pytest.raises(ServiceError):
            await mesh.call(fail, policy=CallPolicy(retries=0, breaker=False))

    async with mesh.serve(service):
        await failing()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await failing()
            assert gc.collect() < 50
        finally:
            gc.enable()


async def test_a_span_is_gone_with_its_call(monkeypatch, nats_server):
    Recorder(monkeypatch, ParentBasedTraceIdRatio(0))
    service = Service("gone")
    seen = []

    class Held:
        pass

    @service.endpoint()
    async def fail() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        get_current_span().set_attribute("held", held)
        raise ServiceError(404, "as always")

    async with connect(nats_server.url) as mesh, mesh.serve(service):
        gc.disable()
        try:
            with pytest.raises(ServiceError):
                await mesh.call(fail)
            await until(lambda: seen[0]() is None)
        finally:
            gc.enable()


async def test_a_processor_that_raises_is_logged_and_calls_go_on(monkeypatch, nats_server, caplog):
    class Broken(SpanProcessor):
        def on_end(self, span):
            raise RuntimeError("full")

    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    service = Service("steady")

    @service.endpoint()
    async def work() -> str:
        return "done"

    async with connect(nats_server.url) as mesh, mesh.serve(service):
        assert await mesh.call(work) == "done"
    assert "RuntimeError: full" in caplog.text
    caplog.clear()


async def test_an_exporter_that_hangs_keeps_neither_calls_nor_the_end_waiting(
    monkeypatch, nats_server, caplog
):
    class Stuck(SpanExporter):
        def export(self, spans):
            released.wait(20)

    released = threading.Event()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Stuck(), schedule_delay_millis=1))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    service = Service("steady")

    @service.endpoint()
    async def work() -> str:
        return "done"

    loop = asyncio.get_running_loop()
    try:
        async with connect(nats_server.url) as mesh, mesh.serve(service):
            for _ in range(100):
                assert await mesh.call(work, timeout=1) == "done"
            ends = loop.time()
        assert loop.time() - ends < 5
        assert "the last spans were not exported within 2 s" in caplog.text
    finally:
        released.set()


async def test_an_error_that_cannot_say_what_it_is_is_answered_and_traced(recorder, mesh, caplog):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    service = Service("mute")

    @service.endpoint()
    async def work() -> None:
        raise Mute

    async with mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call(work, timeout=2, policy=ONCE)
        [server] = [span for span in recorder.spans if span.kind == "SERVER"]
    [(_, what)] = server.events
    assert what["exception.message"] == "<Mute whose text cannot be made>"
    caplog.clear()


async def test_a_sampler_that_raises_samples_nothing_and_says_so_once(monkeypatch, nats_server, caplog):
    class Broken(Sampler):
        def should_sample(self, *_, **__):
            raise RuntimeError("no dice")

        def get_description(self):
            return "Broken"

    recorder = Recorder(monkeypatch, Broken())
    await traced(nats_server, 5)
    assert recorder.spans == []
    assert caplog.text.count("the sampler failed; what it does not decide is not sampled") == 1
    assert caplog.text.count("RuntimeError: no dice") == 1
    caplog.clear()


@pytest.mark.parametrize("wrap", [lambda sampler: sampler, ParentBased])
async def test_a_sampler_that_is_derived_from_one_of_the_sdks_is_asked(monkeypatch, nats_server, wrap):
    class Mine(TraceIdRatioBased):
        def should_sample(self, *_, **__):
            return SamplingResult(Decision.DROP)

    recorder = Recorder(monkeypatch, wrap(Mine(1.0)))
    await traced(nats_server, 5)
    assert recorder.spans == []


async def test_a_stream_that_fails_late_by_the_callers_mistake_is_not_slow(unsampled):
    mesh, recorder = unsampled
    service = Service("late")

    @service.endpoint()
    async def count():
        yield 1
        await asyncio.sleep(0.06)
        raise ServiceError(404, "no more")

    async with mesh.serve(service):
        with pytest.raises(ServiceError):
            _ = [item async for item in mesh.stream("late.count", returns=int)]
    assert recorder.spans == []


# What handlers add


@pytest.fixture
async def adding(monkeypatch, nats_server):
    """Calls an endpoint that does this with its span; what was sent of that."""

    async def call(add, sampler=ALWAYS_ON):
        recorder = Recorder(monkeypatch, sampler)
        service = Service("adds")
        kept = []

        @service.endpoint()
        async def work() -> None:
            kept.append(get_current_span())
            add(kept[0])

        async with connect(nats_server.url) as mesh, mesh.serve(service):
            await mesh.call(work)
        return [span for span in recorder.spans if span.kind == "SERVER"], kept[0]

    return call


async def test_there_is_room_for_so_much(adding, caplog):
    many = {f"a{n}": n for n in range(200)}

    def much(span):
        span.set_attributes(many)
        for n in range(200):
            span.add_event(f"e{n}", many if n == 199 else None)
            span.add_link(span.get_span_context())

    [[span], _] = await adding(much)
    assert len([name for name in span.attributes if name.startswith("a")]) == 128
    assert len(span.events) == 128
    assert len(span.events[-1][1]) == 128
    caplog.clear()


async def test_what_is_not_sampled_has_room_for_nothing(adding):
    def much(span):
        for n in range(1000):
            span.set_attribute(f"a{n}", n)
            span.add_event(f"e{n}")
            span.add_link(span.get_span_context())
            span.record_exception(ValueError(n))

    _, span = await adding(much, ALWAYS_OFF)
    assert (span._own, span._users, span._events, span._links) == (None, None, None, None)


async def test_what_no_encoder_takes_is_put_in_words_and_loses_no_spans(adding, caplog):
    def odd(span):
        span.set_attribute("price", Decimal("1.5"))
        span.set_attribute("half", "\udcff")
        span.set_attributes({"halves": ["\udcff", "b"]})
        span.add_event("\udcff", {"half": "\udcff"})
        span.set_status(StatusCode.ERROR, "\udcff")

    [[span], _] = await adding(odd)
    assert (span.attributes["price"], span.attributes["half"]) == ("1.5", "?")
    assert span.events == [("?", {"half": "?"})]
    assert span.message == "?"
    caplog.clear()


async def test_the_text_of_an_error_may_have_half_a_character(recorder, mesh, caplog):
    caplog.set_level("CRITICAL", "meshkit")  # what is logged goes through pytest, which is no better at it
    service = Service("halves")

    @service.endpoint()
    async def work() -> None:
        raise FileNotFoundError("\udcff")

    @service.endpoint()
    async def say() -> None:
        raise ServiceError(500, "\udcff")

    async with mesh.serve(service):
        for endpoint in (work, say):
            with pytest.raises(ServiceError):
                await mesh.call(endpoint, policy=ONCE)
    served = [span for span in recorder.spans if span.kind == "SERVER"]
    assert [(span.status, span.message) for span in served][1] == ("ERROR", "?")
    assert served[0].events[0][1]["exception.message"] == "?"


async def test_an_exception_is_part_of_its_spans_time(monkeypatch, nats_server, caplog):
    ended = []

    class Kept(SpanProcessor):
        def on_end(self, span):
            ended.append(span)

    Recorder(monkeypatch).provider.add_span_processor(Kept())
    service = Service("faulty")

    @service.endpoint()
    async def work() -> None:
        raise ValueError("no")

    async with connect(nats_server.url) as mesh, mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call(work, policy=ONCE)
    [event] = [event for span in ended for event in span.events]
    [span] = [span for span in ended if span.events]
    assert span.start_time <= event.timestamp <= span.end_time
    caplog.clear()
