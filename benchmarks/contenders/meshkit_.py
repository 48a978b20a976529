"""meshkit, as its users write it; or with layers left out, or all there are, to show what they cost.

The load runs inside a handler of a service that was called with a trace, so that every call has what calls
have in a mesh: the trace and its caller go on with it, and the time that is left.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import meshkit.instance
from benchmarks.work import Answer, Ask, Call, Figures, answer, check, check_bytes, headers, loads
from meshkit import CallPolicy, Context, Mesh, Policies, RateLimit, ServePolicy, Service, connect
from meshkit.layers.statistics import CallStatistics
from meshkit.stack import Bounds
from meshkit.telemetry.traces.exporting import provide

# Seconds; a load is one call.
_LONG = 3600
# A limit that is never met.
_MANY = "1000000/second"
# What callers do: with no optional layer, and with all of them.
_CALLS = {
    "none": CallPolicy(retries=0, breaker=False),
    "all": CallPolicy(
        idempotent=True,
        attempt_timeout=1,
        hedge=0.5,
        rate_limit=RateLimit(_MANY, window="fixed"),
        concurrency=1000,
        priority="critical",
    ),
}
_BY_CALLER = RateLimit(_MANY, window="fixed", by="caller")
_EVERYTHING = ServePolicy(concurrency=200, adaptive=True, rate_limit=_BY_CALLER)


def leave_out(layers: Iterable[str]) -> None:
    """Serve with these optional layers alone: meshkit itself has no way to turn them off."""
    stack = meshkit.instance.server_stack
    dropped: dict[str, Any] = {}
    if "statistics" not in layers:
        dropped["statistics"] = SimpleNamespace(layer=lambda following: following)
    if "bounds" not in layers:
        dropped |= {"own": Bounds(), "shared": Bounds()}
    meshkit.instance.server_stack = lambda handle, **full: stack(handle, **(full | dropped))


def leave_uncounted() -> None:
    """Call without the caller's statistics: likewise."""
    for layer in ("layer", "attempt"):
        setattr(CallStatistics, layer, lambda _self, following: following)


@contextmanager
def traced(rate: float | None, *, otlp: bool) -> Iterator[None]:
    """Have this process traced, if it is to be.

    Args:
        rate: The share of the traces that is sampled.
        otlp: Whether spans are sent to a process that takes them, rather than counted.
    """
    if rate is None:
        yield
        return
    # Those that are not traced have nothing of OpenTelemetry in their memory.
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Counting(SpanExporter):
        count = 0

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            self.count += len(spans)
            return SpanExportResult.SUCCESS

    sampler = ParentBasedTraceIdRatio(rate)
    if not otlp:
        provide(Counting(), None, sampler=sampler)
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    command = [sys.executable, "-m", "benchmarks.sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sink:  # noqa: S603 # ours
        assert sink.stdin is not None
        assert sink.stdout is not None
        endpoint = f"http://127.0.0.1:{sink.stdout.readline().strip()}/v1/traces"
        provide(OTLPSpanExporter(endpoint), None, sampler=sampler)
        yield
        sink.stdin.close()


def secured(url: str, tls: dict[str, str] | None, policies: Policies | None = None) -> Any:
    """A connection."""
    return connect(url, policies=policies, **{f"tls_{name}": file for name, file in (tls or {}).items()})


@asynccontextmanager
async def serve(
    url: str,
    *,
    layers: list[str] | None = None,
    everything: bool = False,
    nap: float = 0,
    payload: int = 0,
    tls: dict[str, str] | None = None,
    trace: float | None = None,
    otlp: bool = False,
) -> AsyncIterator[None]:
    """The echo, with the layers that there are by default, with some of them, or with every one there is."""
    limit = RateLimit(_MANY, window="fixed") if everything else None
    service = Service("bench", rate_limit=limit)

    async def echo(ask: Ask) -> Answer:
        if nap:
            await asyncio.sleep(nap)
        return answer(ask)

    async def echo_bytes(content: bytes) -> bytes:
        return content

    serve = _EVERYTHING if everything else None
    service.endpoint("bench.echo", serve=serve)(echo_bytes if payload else echo)
    if layers is not None:
        leave_out(layers)
    with traced(trace, otlp=otlp):
        async with secured(url, tls) as mesh, mesh.serve(service):
            yield


@asynccontextmanager
async def call(
    url: str,
    *,
    layers: str | None = None,
    counted: bool = True,
    payload: int = 0,
    tls: dict[str, str] | None = None,
    trace: float | None = None,
    otlp: bool = False,
) -> AsyncIterator[dict[str, Callable[..., Awaitable[Figures]]]]:
    """The loads, each within a call of a service of its own."""
    driver = Service("driver")
    if not counted:
        leave_uncounted()

    @driver.endpoint("drive.{load}", timeout=_LONG)
    async def drive(arguments: dict[str, Any], load: str, ctx: Context) -> Figures:
        if trace is not None:
            # Each call is the root of a trace, else one decision would hold for all of them.
            from opentelemetry.context import Context as Empty
            from opentelemetry.context import attach

            attach(Empty())
        return await loads(caller(ctx.mesh, payload))[load](**arguments)

    policies = None if layers is None else Policies(call={"bench.echo": _CALLS[layers]})
    with traced(trace, otlp=otlp):
        async with secured(url, tls, policies) as mesh, mesh.serve(driver):

            async def command(load: str, **arguments: Any) -> Figures:
                headed = {"traceparent": headers(1)["traceparent"]}
                return await mesh.call(drive.at(load=load), arguments, headers=headed)

            yield {load: partial(command, load) for load in ("sequential", "concurrent", "paced")}


def caller(mesh: Mesh, payload: int) -> Call:
    """What makes one call."""
    content = bytes(payload)

    async def call(n: int) -> None:
        got = await mesh.call("bench.echo", Ask("world", n), returns=Answer)
        check(got.n, n)

    async def call_bytes(_: int) -> None:
        check_bytes(await mesh.call("bench.echo", content, returns=bytes), content)

    return call_bytes if payload else call
