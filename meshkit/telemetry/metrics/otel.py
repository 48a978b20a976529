"""Metrics for OpenTelemetry: the same counters as everywhere, handed to its exporter.

Not through its instruments: a histogram of its takes 7 µs a call, and none has a form that is only read when
it is exported.
"""

import asyncio
import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anyio

from meshkit.discovery.protocol import new_instance_id
from meshkit.errors import ConfigError
from meshkit.telemetry.distribution import BOUNDS, Distribution
from meshkit.telemetry.environment import PATIENCE, Exporter, resource, wants
from meshkit.telemetry.metrics.catalogue import Family, Labels
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.quiet import quieten, reason
from meshkit.telemetry.report import Report
from meshkit.telemetry.telemetry import Telemetry
from meshkit.telemetry.traces.exporting import flush
from meshkit.threads import Threads

if TYPE_CHECKING:  # OpenTelemetry takes 0.1 s to import, and who does not use it need not wait for it
    from opentelemetry.sdk.metrics.export import (
        Gauge,
        MetricExporter,
        MetricsData,
        Sum,
    )
    from opentelemetry.sdk.metrics.export import Histogram as HistogramData
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger("meshkit.telemetry")

INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_INTERVAL = 60_000.0  # milliseconds, as the specification has it
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.metric_exporter"

# What the resource says of all of them.
_OF_RESOURCE = {"service.name", "service.instance.id", "service.version"}

_Resources = Callable[[str, str, str], "Resource"]


@contextlib.asynccontextmanager
async def exporting(telemetry: Telemetry) -> AsyncGenerator[None]:
    """Export metrics for the time of an `async with` block, if the environment says so; at its end once more.

    The last spans are exported then, too, at the same time: whoever is away is waited for once.

    Args:
        telemetry: Whose.

    Raises:
        ConfigError: The environment says what cannot be done.
    """
    last: list[Callable[[], Coroutine[Any, Any, None]]] = [] if telemetry.tracer is None else [flush]
    async with contextlib.AsyncExitStack() as stack:
        if wanted := wants("metrics"):
            last.append(await stack.enter_async_context(_sending(wanted, telemetry)))
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*(finish() for finish in last))


@contextlib.asynccontextmanager
async def _sending(
    wanted: Exporter, telemetry: Telemetry
) -> AsyncGenerator[Callable[[], Coroutine[Any, Any, None]]]:
    """Send metrics again and again; what this gives sends them for the last time."""
    exporter, seconds = _exporter(wanted), _interval()
    resources = functools.lru_cache(maxsize=64)(resource)
    threads = Threads(1, "meshkit-metrics")
    # A client has no id, and several in a process would be one to who receives it.
    client = new_instance_id()
    last: list[Report] = []
    telemetry.on_last = last.append

    async def send() -> None:
        reports = [*last, *telemetry.reports()]
        last.clear()
        if reports:
            data = metrics_data(reports, client, resources)
            await threads.run(_export, exporter=exporter, data=data)

    async def send_regularly() -> None:
        while True:
            await asyncio.sleep(seconds)
            await send()

    async def send_last() -> None:
        started = time.time()
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        with anyio.move_on_after(PATIENCE) as scope:
            await send()
        if scope.cancelled_caught:
            why = reason(_EXPORTER, started)
            log.warning("the last metrics were not sent within %.0f s%s", PATIENCE, why)

    sending = asyncio.create_task(send_regularly())
    try:
        yield send_last
    finally:
        exporter.shutdown()  # pyright: ignore[reportUnknownMemberType]
        threads.close()


def metrics_data(reports: Iterable[Report], client: str, resources: _Resources = resource) -> "MetricsData":
    """Metrics as OpenTelemetry's exporters take them: cumulative, each instance a resource.

    Args:
        reports: What instances and clients did.
        client: The instance id of those that have none.
        resources: What a resource is by name, instance id and version.
    """
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now = time.time_ns()
    scope = InstrumentationScope("meshkit", version("meshkit"))
    return MetricsData(
        [
            ResourceMetrics(
                resources(report.name, report.id or client, report.version),
                [
                    ScopeMetrics(
                        scope,
                        [_metric(family, int(report.started * 1e9), now) for family in families([report])],
                        "",
                    )
                ],
                "",
            )
            for report in reports
        ]
    )


def _metric(family: Family, start: int, now: int) -> Any:
    from opentelemetry.sdk.metrics.export import Metric

    metric = family.metric
    return Metric(metric.name, metric.help, metric.unit, _data(family, start, now))


def _data(family: Family, start: int, now: int) -> "Gauge | HistogramData | Sum":
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Sum

    points = [_point(labels, value, start, now) for labels, value in family.samples]
    match family.metric.kind:
        case "histogram":
            return Histogram(points, AggregationTemporality.CUMULATIVE)
        case "counter":
            return Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        case "gauge":
            return Gauge(points)


def _point(labels: Labels, value: float | Distribution, start: int, now: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

    attributes = {name: label for name, label in labels.items() if name not in _OF_RESOURCE}
    if not isinstance(value, Distribution):
        return NumberDataPoint(attributes, start, now, value)
    unknown: Any = None  # the least and the greatest are optional in what is sent
    counts = tuple(value.counts)  # it goes on counting while this is sent
    return HistogramDataPoint(
        attributes, start, now, sum(counts), value.sum, counts, BOUNDS, min=unknown, max=unknown
    )


def _export(exporter: "MetricExporter", data: "MetricsData") -> None:
    """In a thread. What goes wrong the exporter logs."""
    from opentelemetry.context import (
        _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage] # as the SDK's own readers do
        attach,
        set_value,
    )

    # The thread's context ends with this: nothing to detach.
    attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))
    exporter.export(data)  # pyright: ignore[reportUnknownMemberType]


def _exporter(which: str) -> "MetricExporter":
    preference = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
    if preference not in {"", "cumulative"}:
        log.warning("metrics are exported as cumulative counts, not as %s", preference)
    if which == "console":
        from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

        return ConsoleMetricExporter(out=sys.stdout)  # not the one that was there when it was imported
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ModuleNotFoundError:
        raise ConfigError(
            "the environment asks for metrics by OTLP, which needs: pip install 'meshkit[otlp]'"
        ) from None
    quieten(_EXPORTER)
    return OTLPMetricExporter()


def _interval() -> float:
    """Seconds between two exports."""
    said = os.environ.get(INTERVAL, "").strip()
    try:
        milliseconds = float(said) if said else _INTERVAL
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds < float("inf"):
        raise ConfigError(f"{INTERVAL}={said}: write milliseconds, such as 60000")
    return milliseconds / 1000
