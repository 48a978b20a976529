"""What each layer, and each step of a call, costs a process: `python -m benchmarks.layers`.

Everything in one process, and nothing waits, so the figures are processor time. A layer's is what a stack
costs more with it than without. They are of warm caches: in a service under load they are up to twice that.
"""

# ruff: noqa: SLF001 # it looks inside the transport

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TypeAlias

import uvloop
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind

from benchmarks import report
from benchmarks.work import Answer, Ask
from meshkit import Service, connect
from meshkit.budget import RetryBudget
from meshkit.codec import Decoder, encode
from meshkit.deadlines import Deadlines
from meshkit.headers import line
from meshkit.knobs import RateLimit
from meshkit.layers import deadline, trace
from meshkit.layers.breaker import Breaker
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.connection import connection
from meshkit.layers.hedge import Latency, hedge
from meshkit.layers.propagation import propagate
from meshkit.layers.rate_limit import rate_limit
from meshkit.layers.rescue import rescue
from meshkit.layers.retry import retry
from meshkit.layers.statistics import CallStatistics, Statistics
from meshkit.message import CALLER, CURRENT, TIMEOUT, Handler, Layer, Request, Response
from meshkit.quota import quota
from meshkit.telemetry.traces.tracing import Tracer
from meshkit.transport.server import EmbeddedServer

SLICES, CALLS = 150, 500
CALLER_NAME = "driver/F9McDugbB725z2jMoVwC9k"
TRACE = line("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
HEAD = line(CALLER, CALLER_NAME) + TRACE + line(TIMEOUT, "5000") + b"\r\n\r\n"
UNSAMPLED = HEAD.replace(b"b-01", b"b-00")
ASK = encode(Ask("world", 12345))
RESPONSE = Response(b"")
SETTLED: Any = SimpleNamespace(is_settled=True)

Step: TypeAlias = Callable[[], object]


def costs(steps: dict[str, Step]) -> dict[str, float]:
    """Microseconds of each step, when nothing else took the processor: of its fastest slices, in turn."""
    slices: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(SLICES):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                step()
            slices[name].append((time.perf_counter() - started) / CALLS * 1e6)
    return {name: sorted(taken)[SLICES // 20] for name, taken in slices.items()}


async def answer(_request: Request) -> Response:
    """The innermost of a stack."""
    return RESPONSE


def call(handler: Handler, head: bytes) -> Callable[[], None]:
    """A step that sends a request through a handler."""
    now = asyncio.get_running_loop().time()
    request = Request("bench.echo", ASK, head, now, now + 50)

    def step() -> None:
        request.head = head
        with suppress(StopIteration):
            run(handler(request)).send(None)

    return step


def run(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """What a handler gave, which is a coroutine in all of them."""
    assert asyncio.iscoroutine(awaitable)
    return awaitable


def limit(**kind: str) -> Layer:
    """A rate limit that is never met."""
    return rate_limit(quota(RateLimit("1000000/second", **kind), "bench"))


def tracer(rate: float) -> Tracer:
    """A tracer that samples so many traces, and whose spans go nowhere."""
    return Tracer(TracerProvider(sampler=ParentBasedTraceIdRatio(rate), shutdown_on_exit=False), slow=1)


def given(layer: Layer, **fields: Any) -> Layer:
    """A layer that gets requests with other fields."""

    def outer(following: Handler) -> Handler:
        handler = layer(following)

        def handle(request: Request) -> Awaitable[Response]:
            for name, value in fields.items():
                setattr(request, name, value)
            return handler(request)

        return handle

    return outer


def breaker(statistics: CallStatistics) -> Breaker:
    """A circuit breaker as it is by default."""
    return Breaker(
        "bench",
        failures=7,
        success=0.8,
        calls=5,
        window=10,
        open_first=1,
        open_most=60,
        statistics=statistics,
    )


def layers() -> list[list[Any]]:
    """A row for each layer."""
    # In a handler, whose span is none of OpenTelemetry's here: each call is the root of a trace.
    CURRENT.set(Request("driver.drive", b"", HEAD, 0.0, 1e9, span=SimpleNamespace()))
    statistics = CallStatistics()
    budget = RetryBudget(0.2, 10)
    adaptive = Concurrency(100, 100, "bench", adaptive=True)
    few, all_ = tracer(0), tracer(1)
    unsampled, sampled = (one.begin("bench", SpanKind.CLIENT, {}, None) for one in (few, all_))
    sides: dict[str, tuple[bytes, dict[str, Layer]]] = {
        # First, as spans of what is served go on in the context.
        "caller": (
            b"",
            {
                "trace: call, not sampled": trace.call(few, "bench.echo"),
                "trace: call, sampled": trace.call(all_, "bench.echo"),
                "propagation": propagate(CALLER_NAME),
                "propagation, with a priority": propagate(CALLER_NAME, "critical"),
                "retry": retry(
                    retries=2,
                    idempotent=True,
                    codes=(500,),
                    delay=0.025,
                    delay_most=0.25,
                    budget=budget,
                    statistics=statistics,
                ),
                "hedge, live p95": hedge(Latency(), budget=budget, statistics=statistics),
                "breaker": breaker(statistics).layer,
                "connection": connection(SETTLED),
                "deadline: attempt": deadline.attempt(1.0),
                "deadline: carry": deadline.carry,
                "statistics: calls": statistics.layer,
                "statistics: attempts": statistics.attempt,
                "trace: attempt, not sampled": given(trace.attempt("bench.echo"), span=unsampled),
                "trace: attempt, sampled": given(trace.attempt("bench.echo"), span=sampled),
            },
        ),
        "callee": (
            HEAD,
            {
                "trace: serve, not sampled": given(trace.serve(few, "bench.echo"), head=UNSAMPLED),
                "trace: serve, sampled": trace.serve(all_, "bench.echo"),
                "statistics": Statistics().layer,
                "deadline: enforce": deadline.enforce(Deadlines(id)),
                "rate limit, moving window": limit(window="moving"),
                "rate limit, fixed window": limit(window="fixed"),
                "rate limit, sliding window": limit(window="sliding"),
                "rate limit, fixed window by caller": limit(window="fixed", by="caller"),
                "concurrency, one bound": Concurrency(100, 100, "bench").layer,
                "concurrency, adaptive": adaptive.layer,
                "rescue": rescue,
            },
        ),
    }
    rows: list[list[Any]] = []
    for side, (head, its) in sides.items():
        taken = costs(
            {"none": call(answer, head)} | {name: call(layer(answer), head) for name, layer in its.items()}
        )
        rows += [[side, f"layer {name}", taken[name] - taken["none"]] for name in its]
    return rows


async def steps(url: str) -> list[list[Any]]:
    """A row for each other step that a call takes on its way."""
    loop = asyncio.get_running_loop()
    service = Service("bench")

    @service.endpoint()
    async def echo(ask: Ask) -> Answer:
        return Answer(f"hello {ask.name}", ask.n + 1)

    decode = Decoder(Ask)
    reply = Answer("hello world", 12346)
    entries: Deadlines[object] = Deadlines(id)
    entry = object()

    def set_and_take_out() -> None:
        entries.add(entry, loop.time() + 5).pop(entry)

    def timer() -> None:
        loop.call_later(5, id, entry).cancel()

    async with connect(url) as mesh:
        transport: Any = mesh.transport
        interest = await transport.subscribe("bench.deliver", id)
        wire, number = transport._client._wire, interest.subscription._id
        block = b"NATS/1.0" + HEAD
        words = b"bench.deliver %d _INBOX.0123456789abcdef012345.0123456789abcdef" % number
        sizes = b"%d %d" % (len(block), len(block) + len(ASK))
        message = b"HMSG %b %b\r\n%b%b\r\n" % (words, sizes, block, ASK)

        def send() -> None:
            transport._client.send("bench.nobody", ASK, HEAD[:-4], b"_INBOX.0123456789abcdef012345.0")
            transport._client._pending.clear()
            transport._client._pending_data_size = 0

        def handle() -> None:
            with suppress(StopIteration):
                echo(decode(ASK)).send(None)

        taken = costs(
            {
                "find, cut out and deliver a message, three headers": lambda: wire.data_received(message),
                "build a command, three headers": send,
                "a deadline, set and taken out": set_and_take_out,
                "instead of it a timer, set and cancelled": timer,
                "decode the message, run the handler": handle,
                "encode the answer": lambda: encode(reply),
            }
        )
    return [["step", name, microseconds] for name, microseconds in taken.items()]


async def measure(url: str) -> list[list[Any]]:
    """All rows of one event loop."""
    return layers() + await steps(url)


def main() -> None:
    """Print the table."""
    measured: list[list[list[Any]]] = []
    with EmbeddedServer() as server:
        for factory in (None, uvloop.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                measured.append(runner.run(measure(server.url)))
    table = {
        "title": "What a call is made of",
        "columns": ["side", "layer or step", "asyncio µs", "uvloop µs"],
        "rows": [[*row, value] for row, (*_, value) in zip(*measured, strict=True)],
        "notes": [f"CPython {sys.version.split()[0]}; of {SLICES} times {CALLS}, the fastest twentieth."],
    }
    print(report.text(table))


if __name__ == "__main__":
    main()
