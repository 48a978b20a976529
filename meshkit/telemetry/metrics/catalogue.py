"""Every metric there is: what it is called, counts, is labelled with, and what other meshes call it.

All views are drawn from here: the Prometheus page, OpenTelemetry, dashboards, alerts and the documentation.
Names are those of OpenTelemetry's conventions where there are any:
https://opentelemetry.io/docs/specs/semconv/rpc/rpc-metrics/ and
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/
"""

from typing import Literal, NamedTuple

from meshkit.telemetry.distribution import Distribution

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
_EVENT = ("messaging.destination.template", "messaging.consumer.group.name")
# The convention has a destination for a message's subject, and no name for what keeps messages.
_CONSUMER = ("messaging.consumer.group.name", "meshkit.stream")
_ALIKE = "; all instances of a service say the same, so take the maximum, not the sum"
_JOB = ("meshkit.job.name",)

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
    "How long events of a subscription took, waiting for their turn included, and deliveries of a consumer",
    ("messaging.system", *_EVENT, "error.type"),
)
EVENT_IN_FLIGHT = Metric(
    "meshkit.events.in_flight",
    "gauge",
    "{message}",
    "Events that are being handled or wait, and deliveries that are being handled",
    _EVENT,
)
EVENT_RECEIVED = Metric(
    "meshkit.events.received",
    "counter",
    "By",
    "Bytes of the payloads of events and deliveries that arrived",
    _EVENT,
)
CONSUMER_REDELIVERED = Metric(
    "meshkit.consumer.redelivered",
    "counter",
    "{message}",
    "Deliveries that were not the first of their message",
    _CONSUMER,
)
CONSUMER_RETURNED = Metric(
    "meshkit.consumer.returned",
    "counter",
    "{message}",
    "Messages that were given back, to be delivered again later",
    _CONSUMER,
)
CONSUMER_DEAD = Metric(
    "meshkit.consumer.dead_letters", "counter", "{message}", "Messages that became dead letters", _CONSUMER
)
CONSUMER_PENDING = Metric(
    "meshkit.consumer.pending",
    "gauge",
    "{message}",
    f"Messages that no instance has got yet, the consumer's lag{_ALIKE}",
    _CONSUMER,
)
CONSUMER_UNACKED = Metric(
    "meshkit.consumer.unacknowledged",
    "gauge",
    "{message}",
    f"Messages that some instance has got and said nothing of, or that wait to be delivered again{_ALIKE}",
    _CONSUMER,
)
CONSUMER_LIMIT = Metric(
    "meshkit.consumer.concurrency.limit",
    "gauge",
    "{message}",
    "How many messages an instance may handle at a time",
    _CONSUMER,
)
CONSUMER_RUNNING = Metric(
    "meshkit.consumer.concurrency.running", "gauge", "{message}", "How many of them it does", _CONSUMER
)
PUBLISHED = Metric(
    "messaging.client.sent.messages",
    "counter",
    "{message}",
    "Events and messages that were published",
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
JOB_PARTS = Metric(
    "meshkit.job.parts",
    "gauge",
    "{part}",
    "Of how many parts the job consists; of instances that share one take the maximum",
    _JOB,
)
JOB_SENT = Metric("meshkit.job.sent", "gauge", "{part}", "How many of them have been handed out", _JOB)
JOB_DONE = Metric("meshkit.job.done", "gauge", "{part}", "How many are done", _JOB)
JOB_FAILED = Metric("meshkit.job.failed", "gauge", "{part}", "How many never will be", _JOB)
JOB_LEFT = Metric(
    "meshkit.job.time_left",
    "gauge",
    "s",
    "How long the job still takes at the rate so far; missing as long as nothing is done",
    _JOB,
)
STARTED = Metric(
    "meshkit.instance.start_time",
    "gauge",
    "s",
    "When the instance started, in seconds since 1970",
    ("service.version",),
)

CATALOGUE = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))
