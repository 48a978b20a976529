"""Where spans go: to whoever the process has set up for OpenTelemetry, else to whom the environment names."""

import functools
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

import anyio

from meshkit.errors import ConfigError
from meshkit.knobs import DURATION
from meshkit.telemetry.environment import PATIENCE, is_off, resource, wants
from meshkit.telemetry.quiet import quieten, reason
from meshkit.threads import Threads

if TYPE_CHECKING:  # OpenTelemetry takes 0.1 s to import, and who does not trace need not wait for it
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler

    from meshkit.telemetry.traces.tracing import Tracer

log = logging.getLogger("meshkit.telemetry")

# A span of a trace that is not sampled is kept from so many seconds on.
SLOW = "MESHKIT_TRACE_SLOW"
_SLOW = "1s"
# https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#general-sdk-configuration
SAMPLER, RATE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS = ("always_on", "always_off", "traceidratio")
# The share of traces that is sampled where OTEL_TRACES_SAMPLER says nothing.
_RATE = 0.01
# Spans that wait to be exported; the SDK's 2,048 are those of a busy tenth of a second.
_QUEUE = 16_384
_BATCHES = "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
# They say something for each span, or for what each caller sends.
_CHATTY = "opentelemetry.sdk._shared_internal", "opentelemetry.baggage.propagation"


def tracer(name: str | None) -> "Tracer | None":
    """What makes spans in this process; None if nobody wants any.

    Args:
        name: The connection's: `service/version/instance` of a service.

    Raises:
        ConfigError: The environment says what cannot be done.
    """
    provider = given()
    if provider is None and (exporter := wants("traces")) and not is_foreign():
        provider = provide(span_exporter(exporter), name)
    if provider is None:
        return None
    from meshkit.telemetry.traces.tracing import Tracer

    quieten(*_CHATTY)
    one = Tracer(provider, slow=_slow())
    return one.of(*_identity(name))


def given() -> "TracerProvider | None":
    """The provider that the process has; who has one has loaded the SDK."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import get_tracer_provider

    provider = get_tracer_provider()
    return provider if not is_off() and isinstance(provider, TracerProvider) else None


def is_foreign() -> bool:
    """Whether the process has a provider that is not the SDK's, which takes no spans of ours."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | TracerProvider):
        return False
    if not isinstance(provider, trace.NoOpTracerProvider):
        _tell_of(f"{type(provider).__module__}.{type(provider).__qualname__}")
    return True


@functools.cache
def _tell_of(provider: str) -> None:
    """Once."""
    log.warning(
        "meshkit's calls are not traced: the TracerProvider is a %s, and not opentelemetry.sdk's", provider
    )


def provide(
    exporter: "SpanExporter",
    name: str | None,
    *,
    sampler: "Sampler | None" = None,
    delay: float | None = None,
) -> "TracerProvider":
    """Have the spans of this process, also those that its own code makes, go somewhere.

    Args:
        exporter: Where.
        name: The connection's.
        sampler: Decides which traces are sampled, if the process has no provider yet; by default what
            OTEL_TRACES_SAMPLER says, else 1 % of them.
        delay: Milliseconds that a span may wait to be exported with others; by default the SDK's 5,000.

    Raises:
        ConfigError: The environment says what cannot be done.
    """
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from meshkit.telemetry.traces.tracing import Provider

    provider = given()
    if provider is None:
        sampler, whose = sampler or _sampler(), resource(*_identity(name))
        try:
            # Not at exit: that waits for up to half a minute, and each connection has flushed what it had.
            provider = Provider(sampler=sampler, resource=whose, shutdown_on_exit=False)
        except ValueError as error:  # of OTEL_SPAN_*, by name
            raise ConfigError(str(error)) from None
        trace.set_tracer_provider(provider)
    for variable in _BATCHES:
        said = os.environ.get(variable, "").strip()
        if said and not said.isdecimal():
            raise ConfigError(f"{variable}={said}: write a whole number")
    waiting = None if os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else _QUEUE
    try:
        processor = BatchSpanProcessor(exporter, max_queue_size=waiting, schedule_delay_millis=delay)
    except ValueError as error:
        raise ConfigError(f"OTEL_BSP_*: {error}") from None
    provider.add_span_processor(processor)
    return provider


async def flush() -> None:
    """Have what has ended exported, as far as that does not take long."""
    provider = given()
    if provider is None:
        return
    started = time.time()
    threads = Threads(1, "meshkit-traces")  # which do not keep the process from ending
    with anyio.move_on_after(PATIENCE) as scope:
        await threads.run(provider.force_flush)
    threads.close()
    if scope.cancelled_caught:
        why = reason(_EXPORTER, started)
        log.warning("the last spans were not exported within %.0f s%s", PATIENCE, why)


def span_exporter(which: str) -> "SpanExporter":
    """Where spans go.

    Args:
        which: `otlp`, as the environment says, or `console`.

    Raises:
        ConfigError: What sends OTLP is not installed.
    """
    if which == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
    except ModuleNotFoundError:
        raise ConfigError(
            "the environment asks for traces by OTLP, which needs: pip install 'meshkit[otlp]'"
        ) from None
    quieten(_EXPORTER)
    return trace_exporter.OTLPSpanExporter()


def _identity(name: str | None) -> tuple[str, str, str]:
    """Service, instance and version."""
    parts = (name or "client").split("/")
    return (parts[0], parts[2], parts[1]) if len(parts) == 3 else (name or "client", "", "")


def _sampler() -> "Sampler":
    """What the environment says; what is wrong in it the SDK would take for 100 %."""
    from opentelemetry.sdk.trace import sampling

    said = os.environ.get(SAMPLER, "").strip().lower()
    names = [*_SAMPLERS, *(f"parentbased_{name}" for name in _SAMPLERS)]
    if said not in {"", *names}:
        raise ConfigError(f"{SAMPLER}={said}: write {', '.join(names[:-1])} or {names[-1]}")
    # Who is part of a trace follows it in any case.
    if said.endswith("always_on"):
        return sampling.DEFAULT_ON
    if said.endswith("always_off"):
        return sampling.DEFAULT_OFF
    return sampling.ParentBasedTraceIdRatio(_rate(1.0 if said else _RATE))


def _rate(usual: float) -> float:
    said = os.environ.get(RATE, "").strip()
    try:
        rate = float(said) if said else usual
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise ConfigError(f"{RATE}={said}: write the share of traces to sample, from 0 to 1")
    return rate


def _slow() -> float:
    try:
        return DURATION.check(SLOW, os.environ.get(SLOW) or _SLOW)
    except ValueError as error:
        raise ConfigError(str(error)) from None
