"""What was counted, as the values of the catalogue's metrics."""

from collections.abc import Iterable, Iterator

from meshkit.job import JobReport
from meshkit.layers.statistics import OK, Outcomes
from meshkit.telemetry.distribution import Distribution, total
from meshkit.telemetry.metrics import catalogue as of
from meshkit.telemetry.report import Bound, Called, Consumed, Report, Served

_CIRCUITS = {"closed": 0, "half-open": 1, "open": 2}
_NATS = {"rpc.system.name": "nats"}
_MESSAGING = {"messaging.system": "nats"}

_Samples = Iterator[tuple[of.Metric, of.Labels, float | Distribution]]
_Key = tuple[tuple[str, str], ...]


def families(reports: Iterable[Report]) -> list[of.Family]:
    """The values of all metrics, in the order of the catalogue; metrics without any are left out.

    Args:
        reports: What instances and clients report.
    """
    samples: dict[of.Metric, dict[_Key, float | Distribution]] = {metric: {} for metric in of.CATALOGUE}
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
        of.Family(metric, [(dict(key), value) for key, value in series.items()])
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
        yield of.STARTED, {"service.version": report.version}, report.started
    yield of.CONNECTED, {}, int(report.is_connected)
    yield of.RECONNECTS, {}, report.reconnects
    yield of.DROPPED, {}, report.dropped
    yield of.LOOP_LAG, {}, report.lag
    yield of.PUBLISHED, _MESSAGING, report.published
    yield from _bound(report.bound, "")
    for served in report.served:
        yield from _event(served) if served.is_event else _served(served)
    for called in report.called:
        yield from _called(called)
    for job in report.jobs:
        yield from _job(job)


def _served(served: Served) -> _Samples:
    method = {"rpc.method": served.subject}
    yield from _durations(of.SERVER_DURATION, _NATS | method, served.outcomes)
    yield of.SERVER_QUEUE, method, served.queued
    yield of.SERVER_IN_FLIGHT, method, served.in_flight
    yield of.SERVER_RECEIVED, method, served.received
    yield of.SERVER_SENT, method, served.sent
    yield from _bound(served.bound, served.subject)


def _event(served: Served) -> _Samples:
    subject = {"messaging.destination.template": served.subject}
    if served.consumed is not None:
        subject["messaging.consumer.group.name"] = served.consumed.consumer
        yield from _consumed(served.consumed, served.bound)
    yield from _durations(of.EVENT_DURATION, _MESSAGING | subject, served.outcomes)
    yield of.EVENT_IN_FLIGHT, subject, served.in_flight
    yield of.EVENT_RECEIVED, subject, served.received


def _consumed(consumed: Consumed, bound: Bound | None) -> _Samples:
    which = {"messaging.consumer.group.name": consumed.consumer, "meshkit.stream": consumed.stream}
    yield of.CONSUMER_REDELIVERED, which, consumed.redelivered
    yield of.CONSUMER_RETURNED, which, consumed.returned
    yield of.CONSUMER_DEAD, which, consumed.dead
    yield of.CONSUMER_PENDING, which, consumed.pending
    yield of.CONSUMER_UNACKED, which, consumed.unacknowledged
    if bound is not None:
        yield of.CONSUMER_LIMIT, which, bound.limit
        yield of.CONSUMER_RUNNING, which, bound.running


def _job(job: JobReport) -> _Samples:
    which = {"meshkit.job.name": job.name}
    yield of.JOB_PARTS, which, job.total
    yield of.JOB_SENT, which, job.sent
    yield of.JOB_DONE, which, job.done
    yield of.JOB_FAILED, which, job.failed
    if job.seconds_left is not None:
        yield of.JOB_LEFT, which, job.seconds_left


def _called(called: Called) -> _Samples:
    method = {"rpc.method": called.target}
    yield from _durations(of.CLIENT_DURATION, _NATS | method, called.outcomes)
    for outcome, count in called.attempts.items():
        yield of.CLIENT_ATTEMPTS, method | _error(outcome), count
    for reason, count in called.refusals.items():
        yield of.CLIENT_REFUSALS, method | _error(reason), count
    yield of.CLIENT_QUEUE, method, called.queued
    yield of.CLIENT_IN_FLIGHT, method, called.in_flight
    yield of.CLIENT_SENT, method, called.sent
    yield of.CLIENT_RECEIVED, method, called.received
    yield of.CLIENT_RETRIES, method, called.retries
    yield of.CLIENT_BUDGET, method, called.budget_spent
    yield of.CLIENT_HEDGES, method, called.hedges
    yield of.CLIENT_HEDGES_WON, method, called.hedges_won
    yield of.CLIENT_CIRCUIT, method, _CIRCUITS[called.circuit]
    yield of.CLIENT_OPENED, method, called.circuit_opened
    yield of.CLIENT_FALLBACKS, method, called.fallbacks
    if called.bound is not None:
        yield of.CLIENT_LIMIT, method, called.bound.limit


def _bound(bound: Bound | None, subject: str) -> _Samples:
    if bound is not None:
        method = {"rpc.method": subject} if subject else {}
        yield of.SERVER_LIMIT, method, bound.limit
        yield of.SERVER_RUNNING, method, bound.running
        yield of.SERVER_WAITING, method, bound.waiting


def _durations(metric: of.Metric, labels: of.Labels, outcomes: Outcomes) -> _Samples:
    for outcome, taken in outcomes.items():
        yield metric, labels | _error(outcome), taken


def _error(outcome: str) -> of.Labels:
    return {} if outcome == OK else {"error.type": outcome}
