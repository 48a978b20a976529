"""Every metric there is: what it is called, counts, is labelled with, and what other meshes call it.

All views are drawn from here: the Prometheus page, OpenTelemetry, dashboards, alerts and the documentation.
Names are those of OpenTelemetry's conventions where there are any:
https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/ and
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/
"""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from meshkit.layers.statistics import OK, Outcomes
from meshkit.telemetry.distribution import Distribution, total
from meshkit.telemetry.report import Bound, Called, Report, Served

Labels = dict[str, str]
Kind = Literal["counter", "gauge", "histogram"]

_UNITS = {"s": "_seconds", "By": "_bytes"}


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: As OpenTelemetry writes it, with dots.
        kind: counter, gauge or histogram.
        unit: `s`, `By`, or what is counted in braces.
        help: What it says, in a sentence.
        labels: Beside `service.name` and `service.instance.id`, which all have, as OpenTelemetry writes them.
        istio: What Istio calls it, or what comes closest; empty if nothing does.
        linkerd: What Linkerd calls it.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    istio: str = ""
    linkerd: str = ""

    @property
    def prometheus(self) -> str:
        """Its name for Prometheus.

        https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
        """
        total = "_total" if self.kind == "counter" else ""
        return self.name.replace(".", "_") + _UNITS.get(self.unit, "") + total


class Family(NamedTuple):
    """A metric and its values, each with its labels."""

    metric: Metric
    samples: list[tuple[Labels, float | Distribution]]


_RPC = ("rpc.system.name", "rpc.method", "error.type")
_SERVER = ("rpc.method",)
_EVENT = ("messaging.system", "messaging.destination.template", "error.type")

SERVER_DURATION = Metric(
    "rpc.server.call.duration",
    "histogram",
    "s",
    "How long calls took that an endpoint answered, waiting included; error.type is empty for success",
    _RPC,
    'istio_request_duration_milliseconds, istio_requests_total {reporter="destination"}',
    'response_latency_ms, response_total {direction="inbound"}',
)
SERVER_QUEUE = Metric(
    "meshkit.server.queue.duration",
    "histogram",
    "s",
    "How long calls waited for a slot that had to wait",
    _SERVER,
)
SERVER_IN_FLIGHT = Metric(
    "meshkit.server.in_flight",
    "gauge",
    "{call}",
    "Calls that are being handled or wait",
    _SERVER,
    "envoy_cluster_upstream_rq_active",
)
SERVER_RECEIVED = Metric(
    "meshkit.server.received",
    "counter",
    "By",
    "Bytes of the payloads of calls",
    _SERVER,
    'istio_request_bytes {reporter="destination"}',
)
SERVER_SENT = Metric(
    "meshkit.server.sent",
    "counter",
    "By",
    "Bytes of the payloads of answers",
    _SERVER,
    'istio_response_bytes {reporter="destination"}',
)
SERVER_LIMIT = Metric(
    "meshkit.server.concurrency.limit",
    "gauge",
    "{call}",
    "How many calls may run at a time; rpc.method is empty for all endpoints of a service together",
    _SERVER,
)
SERVER_RUNNING = Metric(
    "meshkit.server.concurrency.running", "gauge", "{call}", "How many of them run", _SERVER
)
SERVER_WAITING = Metric(
    "meshkit.server.concurrency.waiting", "gauge", "{call}", "How many wait for a slot", _SERVER
)
EVENT_DURATION = Metric(
    "messaging.process.duration",
    "histogram",
    "s",
    "How long events took that a subscription handled, waiting for their turn included",
    _EVENT,
)
EVENT_IN_FLIGHT = Metric(
    "meshkit.events.in_flight",
    "gauge",
    "{message}",
    "Events that are being handled or wait",
    ("messaging.destination.template",),
)
EVENT_RECEIVED = Metric(
    "meshkit.events.received",
    "counter",
    "By",
    "Bytes of the payloads of events that arrived",
    ("messaging.destination.template",),
)
PUBLISHED = Metric(
    "messaging.client.sent.messages",
    "counter",
    "{message}",
    "Events that were published",
    ("messaging.system",),
)
CLIENT_DURATION = Metric(
    "rpc.client.call.duration",
    "histogram",
    "s",
    "How long calls took as their caller sees it, all attempts together: the effective success",
    _RPC,
    'istio_request_duration_milliseconds, istio_requests_total {reporter="source"}',
    'outbound_http_route_request_duration_seconds, response_total {direction="outbound"}',
)
CLIENT_ATTEMPTS = Metric(
    "meshkit.client.attempts",
    "counter",
    "{attempt}",
    "Messages that were sent for calls, by what became of each: the actual success, without retries",
    ("rpc.method", "error.type"),
    "envoy_cluster_upstream_rq",
    "outbound_http_route_backend_response_statuses_total",
)
CLIENT_IN_FLIGHT = Metric(
    "meshkit.client.in_flight",
    "gauge",
    "{call}",
    "Calls that wait for their answer",
    _SERVER,
    "envoy_cluster_upstream_rq_active",
)
CLIENT_QUEUE = Metric(
    "meshkit.client.queue.duration",
    "histogram",
    "s",
    "How long calls waited that had to, for the caller's own bound",
    _SERVER,
)
CLIENT_SENT = Metric(
    "meshkit.client.sent",
    "counter",
    "By",
    "Bytes of the payloads of calls",
    _SERVER,
    'istio_request_bytes {reporter="source"}',
)
CLIENT_RECEIVED = Metric(
    "meshkit.client.received",
    "counter",
    "By",
    "Bytes of the payloads of answers",
    _SERVER,
    'istio_response_bytes {reporter="source"}',
)
CLIENT_RETRIES = Metric(
    "meshkit.client.retries",
    "counter",
    "{attempt}",
    "Attempts that followed a first one",
    _SERVER,
    "envoy_cluster_upstream_rq_retry",
    "outbound_http_route_retry_requests_total",
)
CLIENT_BUDGET = Metric(
    "meshkit.client.retry_budget.spent",
    "counter",
    "{attempt}",
    "Retries and hedges that were left out, since the budget did not allow them",
    _SERVER,
    "envoy_cluster_upstream_rq_retry_overflow",
)
CLIENT_HEDGES = Metric(
    "meshkit.client.hedges", "counter", "{attempt}", "Second copies of calls that took long", _SERVER
)
CLIENT_HEDGES_WON = Metric(
    "meshkit.client.hedges.won", "counter", "{attempt}", "Of them those that were answered first", _SERVER
)
CLIENT_CIRCUIT = Metric(
    "meshkit.client.circuit.state",
    "gauge",
    "{state}",
    "The circuit breaker: 0 closed, 1 half-open, 2 open",
    _SERVER,
    "envoy_cluster_outlier_detection_ejections_active",
)
CLIENT_OPENED = Metric(
    "meshkit.client.circuit.opened",
    "counter",
    "{opening}",
    "How often the circuit breaker opened",
    _SERVER,
    "envoy_cluster_outlier_detection_ejections_enforced_total",
)
CLIENT_REFUSALS = Metric(
    "meshkit.client.refusals",
    "counter",
    "{call}",
    "Calls that the caller's own circuit breaker (CircuitOpen), rate limit (RateLimited) or bulkhead "
    "(Overloaded) refused",
    ("rpc.method", "error.type"),
    "envoy_cluster_upstream_rq_pending_overflow",
)
CLIENT_FALLBACKS = Metric(
    "meshkit.client.fallbacks", "counter", "{call}", "Calls that were answered with their fallback", _SERVER
)
CLIENT_LIMIT = Metric(
    "meshkit.client.concurrency.limit",
    "gauge",
    "{call}",
    "How many calls may be on their way, where the caller bounds them",
    _SERVER,
)
LOOP_LAG = Metric(
    "meshkit.loop.lag", "histogram", "s", "How late the event loop was, each time that somebody looked"
)
CONNECTED = Metric("meshkit.connection.up", "gauge", "1", "Whether there is a connection to NATS")
RECONNECTS = Metric(
    "meshkit.connection.reconnects",
    "counter",
    "{reconnect}",
    "How often the connection to NATS was lost and came back",
)
DROPPED = Metric(
    "meshkit.connection.dropped",
    "counter",
    "{message}",
    "Messages that were dropped, as they came faster than they could be taken in (slow consumer)",
)
STARTED = Metric(
    "meshkit.instance.start_time",
    "gauge",
    "s",
    "When the instance started, in seconds since 1970",
    ("service.version",),
)

CATALOGUE = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))

_CIRCUITS = {"closed": 0, "half-open": 1, "open": 2}
_NATS = {"rpc.system.name": "nats"}
_MESSAGING = {"messaging.system": "nats"}

_Samples = Iterator[tuple[Metric, Labels, float | Distribution]]
_Key = tuple[tuple[str, str], ...]


def families(reports: Iterable[Report]) -> list[Family]:
    """The values of all metrics, in the order of the catalogue; metrics without any are left out.

    Args:
        reports: What instances and clients report.
    """
    samples: dict[Metric, dict[_Key, float | Distribution]] = {metric: {} for metric in CATALOGUE}
    for report in reports:
        whose = {"service.name": report.name}
        if report.id:
            whose["service.instance.id"] = report.id
        for metric, labels, value in _report(report):
            if "" in labels.values():  # as good as no label: to Prometheus it is another series once more
                continue
            series, key = samples[metric], tuple((whose | labels).items())
            # Two subscriptions of a service, or endpoints in two queue groups, may have the same subject.
            series[key] = _added(series[key], value) if key in series else value
    return [
        Family(metric, [(dict(key), value) for key, value in series.items()])
        for metric, series in samples.items()
        if series
    ]


def _added(one: float | Distribution, other: float | Distribution) -> float | Distribution:
    if isinstance(one, Distribution) and isinstance(other, Distribution):
        return total([one, other])
    assert not isinstance(one, Distribution)
    assert not isinstance(other, Distribution)
    return one + other


def _report(report: Report) -> _Samples:
    if report.id:
        yield STARTED, {"service.version": report.version}, report.started
    yield CONNECTED, {}, int(report.is_connected)
    yield RECONNECTS, {}, report.reconnects
    yield DROPPED, {}, report.dropped
    yield LOOP_LAG, {}, report.lag
    yield PUBLISHED, _MESSAGING, report.published
    yield from _bound(report.bound, "")
    for served in report.served:
        yield from _event(served) if served.is_event else _served(served)
    for called in report.called:
        yield from _called(called)


def _served(served: Served) -> _Samples:
    method = {"rpc.method": served.subject}
    yield from _durations(SERVER_DURATION, _NATS | method, served.outcomes)
    yield SERVER_QUEUE, method, served.queued
    yield SERVER_IN_FLIGHT, method, served.in_flight
    yield SERVER_RECEIVED, method, served.received
    yield SERVER_SENT, method, served.sent
    yield from _bound(served.bound, served.subject)


def _event(served: Served) -> _Samples:
    subject = {"messaging.destination.template": served.subject}
    yield from _durations(EVENT_DURATION, _MESSAGING | subject, served.outcomes)
    yield EVENT_IN_FLIGHT, subject, served.in_flight
    yield EVENT_RECEIVED, subject, served.received


def _called(called: Called) -> _Samples:
    method = {"rpc.method": called.target}
    yield from _durations(CLIENT_DURATION, _NATS | method, called.outcomes)
    for outcome, count in called.attempts.items():
        yield CLIENT_ATTEMPTS, method | _error(outcome), count
    for reason, count in called.refusals.items():
        yield CLIENT_REFUSALS, method | _error(reason), count
    yield CLIENT_QUEUE, method, called.queued
    yield CLIENT_IN_FLIGHT, method, called.in_flight
    yield CLIENT_SENT, method, called.sent
    yield CLIENT_RECEIVED, method, called.received
    yield CLIENT_RETRIES, method, called.retries
    yield CLIENT_BUDGET, method, called.budget_spent
    yield CLIENT_HEDGES, method, called.hedges
    yield CLIENT_HEDGES_WON, method, called.hedges_won
    yield CLIENT_CIRCUIT, method, _CIRCUITS[called.circuit]
    yield CLIENT_OPENED, method, called.circuit_opened
    yield CLIENT_FALLBACKS, method, called.fallbacks
    if called.bound is not None:
        yield CLIENT_LIMIT, method, called.bound.limit


def _bound(bound: Bound | None, subject: str) -> _Samples:
    if bound is not None:
        method = {"rpc.method": subject} if subject else {}
        yield SERVER_LIMIT, method, bound.limit
        yield SERVER_RUNNING, method, bound.running
        yield SERVER_WAITING, method, bound.waiting


def _durations(metric: Metric, labels: Labels, outcomes: Outcomes) -> _Samples:
    for outcome, taken in outcomes.items():
        yield metric, labels | _error(outcome), taken


def _error(outcome: str) -> Labels:
    return {} if outcome == OK else {"error.type": outcome}
