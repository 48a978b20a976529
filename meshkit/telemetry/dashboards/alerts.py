"""Alert rules for Prometheus, from the catalogue: what users feel pages, what may cause it opens a ticket.

Success and latency are alerted on by how fast they spend the budget of a 30-day objective: over a long
window, to know that it matters, and over a short one, to know that it goes on. That is chapter 5 of Google's
Site Reliability Workbook, table 5-8: https://sre.google/workbook/alerting-on-slos/.
"""

from typing import Literal, NamedTuple

from meshkit.errors import ConfigError
from meshkit.telemetry.dashboards.promql import (
    FAULT,
    alike,
    increase,
    picked,
    quantile,
    rate,
    slower_rate,
    some_rate,
)
from meshkit.telemetry.distribution import BOUNDS
from meshkit.telemetry.metrics import catalogue as of
from meshkit.telemetry.metrics import monitoring as nats

Severity = Literal["page", "ticket"]

# Long window, short window, and how many times as fast as it may the budget is spent.
_BURN_RATES: dict[Severity, tuple[tuple[str, str, float], ...]] = {
    "page": (("1h", "5m", 14.4), ("6h", "30m", 6)),
    "ticket": (("3d", "6h", 1),),
}
_FASTEST = 14.4
_OK = 'error_type=""'

# What Prometheus fills in.
_SERVICE, _TARGET = "{{ $labels.service_name }}", "{{ $labels.rpc_method }}"
_INSTANCE = _SERVICE + " {{ $labels.service_instance_id }}"
_NUMBER, _SHARE = "{{ $value | humanize }}", "{{ $value | humanizePercentage }}"
_DURATION = "{{ $value | humanizeDuration }}"

_BY_INSTANCE = "service_name, service_instance_id"
_BY_CALL = "service_name, rpc_method"
_BY_CONSUMER = "service_name, messaging_consumer_group_name"
_CONSUMER = "{{ $labels.messaging_consumer_group_name }}"
# Of a consumer's replicas, the one that knows.
_LEADER = 'is_consumer_leader="true"'


class Alert(NamedTuple):
    """A rule that fires.

    Attributes:
        name: Also the heading in the runbook.
        expression: What it fires for, as PromQL.
        severity: Whether somebody is called, or looks in the morning.
        summary: The sentence that is read first.
        description: What is known, and what to look at.
        lasting: How long it must hold, as Prometheus writes it.
    """

    name: str
    expression: str
    severity: Severity
    summary: str
    description: str
    lasting: str = "0s"


class Objective(NamedTuple):
    """A share of calls that is to be good.

    Attributes:
        alert: What fires if fewer are.
        record: What is recorded: `<record>:bad:rate5m` and `<record>:all:rate5m`.
        bad: The bad ones a second, as PromQL.
        all: All of them a second.
        budget: The share that may be bad, from 0 to 1.
        summary: As in Alert.
        description: Likewise.
    """

    alert: str
    record: str
    bad: str
    all: str
    budget: float
    summary: str
    description: str


def objectives(slo: float, latency: float, latency_slo: float) -> list[Objective]:
    """What services are to keep.

    Args:
        slo: Percentage of calls without a fault, of those that a service answers and of those that are made.
        latency: Seconds that a successful call may take: one of the histograms' bounds.
        latency_slo: Percentage of them that take no longer.

    Raises:
        ConfigError: Nothing could be alerted on.
    """
    if latency not in BOUNDS:
        bounds = ", ".join(f"{bound:g}" for bound in BOUNDS)
        raise ConfigError(f"--latency {latency:g}s is none of the histograms' bounds, {bounds}")
    failing, slow = _budget("--slo", slo), _budget("--latency-slo", latency_slo)
    served, made = of.SERVER_DURATION, of.CLIENT_DURATION
    return [
        Objective(
            "MeshServiceErrors",
            "service:meshkit_server_errors",
            some_rate(served, "5m", FAULT, by="service_name"),
            rate(served, "5m", by="service_name"),
            failing,
            f"{_SERVICE} fails",
            f"{_SHARE} of the calls that {_SERVICE} answers fail; {_percent(failing)} may. "
            "The service's dashboard shows at which endpoints and instances, and its log why.",
        ),
        Objective(
            "MeshCallErrors",
            "target:meshkit_client_errors",
            some_rate(made, "5m", FAULT, by="rpc_method"),
            rate(made, "5m", by="rpc_method"),
            failing,
            f"Calls to {_TARGET} fail",
            f"{_SHARE} of the calls to {_TARGET} fail for who makes them, retries included; "
            f"{_percent(failing)} may. The endpoint's dashboard shows with which errors, and whether the "
            "service sees them too.",
        ),
        Objective(
            "MeshServiceSlow",
            "service:meshkit_server_slow",
            slower_rate(served, "5m", latency, _OK, by="service_name"),
            rate(served, "5m", _OK, by="service_name"),
            slow,
            f"{_SERVICE} is slow",
            f"{_SHARE} of the successful calls of {_SERVICE} take longer than {latency:g} s; "
            f"{_percent(slow)} may. The service's dashboard shows whether they wait for a slot, for another "
            "service or for the event loop.",
        ),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _budget(option: str, percentage: float) -> float:
    # Even if every call fails, a larger budget is not spent so fast.
    least = 100 * (1 - 1 / _FASTEST)
    if not least < percentage < 100:
        raise ConfigError(f"{option} is a percentage above {least:.2f} and below 100, not {percentage:g}")
    return round(1 - percentage / 100, 9)


def alerts(kept: list[Objective]) -> list[Alert]:
    """All that can fire.

    Args:
        kept: The objectives.
    """
    burns = [
        Alert(
            objective.alert,
            " or ".join(_burns(objective, *windows) for windows in pairs),
            severity,
            objective.summary,
            objective.description,
        )
        for objective in kept
        for severity, pairs in _BURN_RATES.items()
    ]
    return [*burns, *_missing(), *_calls(), *_consumers(), *_processes(), *_servers()]


def _burns(objective: Objective, long: str, short: str, speed: float) -> str:
    limit = f"> {speed:g} * {objective.budget:g}"
    return f"({_bad(objective, long)} {limit} and {_bad(objective, short)} {limit})"


def _bad(objective: Objective, window: str) -> str:
    bad, whole = (f"{objective.record}:{what}:rate5m" for what in ("bad", "all"))
    if window == "5m":
        return f"{bad} / {whole}"
    return f"avg_over_time({bad}[{window}]) / avg_over_time({whole}[{window}])"


def _missing() -> list[Alert]:
    started = of.STARTED.prometheus
    before = f"group by (service_name) (last_over_time({started}[1h]))"
    now = f"group by (service_name) ({started})"
    return [
        Alert(
            "MeshNothingReports",
            f"absent({started})",
            "page",
            "Nothing is known of the mesh",
            "Prometheus sees no instance of any service: none runs, or it does not reach `meshkit metrics` "
            "and the processes' pages, or those do not reach the NATS server.",
            "1m",
        ),
        Alert(
            "MeshNoInstances",
            f"{before} unless on (service_name) {now} unless on () absent({started})",
            "page",
            f"{_SERVICE} is gone",
            f"There was an instance of {_SERVICE} within the hour, and there has been none for a minute. If "
            "it was taken away on purpose, this ends by itself.",
            "1m",
        ),
    ]


def _calls() -> list[Alert]:
    circuit = of.CLIENT_CIRCUIT.prometheus
    late = some_rate(of.CLIENT_DURATION, "5m", 'error_type="DeadlineExceeded"', by="rpc_method")
    return [
        Alert(
            "MeshCircuitOpen",
            f"max by ({_BY_CALL}) (max_over_time({circuit}[1m])) == 2",
            "ticket",
            f"The circuit from {_SERVICE} to {_TARGET} is open",
            f"{_SERVICE} refuses its own calls to {_TARGET}, as too many of them fail. The endpoint's "
            "dashboard shows with which errors.",
            "1m",
        ),
        Alert(
            "MeshRetryBudgetSpent",
            f"{increase(of.CLIENT_BUDGET, '5m', by=_BY_CALL)} > 0",
            "ticket",
            f"{_SERVICE} may not retry its calls to {_TARGET}",
            f"{_NUMBER} retries or hedges to {_TARGET} were left out in five minutes: so many calls fail, or "
            "take long, that more of them would only be more load.",
            "1m",
        ),
        Alert(
            "MeshDeadlinesMissed",
            f"{late} / {rate(of.CLIENT_DURATION, '5m', by='rpc_method')} > 0.01",
            "ticket",
            f"Calls to {_TARGET} are not answered in time",
            f"{_SHARE} of the calls to {_TARGET} ran into their deadline: it has become slower, or is given "
            "too little time.",
            "5m",
        ),
    ]


def _consumers() -> list[Alert]:
    well = rate(of.EVENT_DURATION, "10m", _OK, by=_BY_CONSUMER)
    asked, sent = (
        f"max by (stream_name, consumer_name) (max_over_time({picked(metric, _LEADER)}[10m]))"
        for metric in (nats.CONSUMER_WAITING, nats.CONSUMER_UNACKED)
    )
    waiting = f"min_over_time({picked(nats.CONSUMER_PENDING, _LEADER)}[10m])"
    return [
        Alert(
            "MeshDeadLetters",
            f"{increase(of.CONSUMER_DEAD, '5m', by=_BY_CONSUMER)} > 0",
            "ticket",
            f"{_SERVICE} gives up messages",
            f"{_NUMBER} messages of the consumer {_CONSUMER} became dead letters in five minutes: they were "
            "rejected, or failed too often. `meshkit dead ls` shows which and why, and `meshkit dead replay` "
            "has them handled again once that is mended.",
        ),
        Alert(
            "MeshConsumerStuck",
            f"{alike(of.CONSUMER_PENDING, by=_BY_CONSUMER)} > 0 and {well} == 0",
            "ticket",
            f"{_SERVICE} does not get on with {_CONSUMER}",
            f"{_NUMBER} messages wait for the consumer {_CONSUMER}, and for ten minutes not one has been "
            "handled: all fail, or the handlers hang. The service's dashboard shows which.",
            "10m",
        ),
        Alert(
            "NatsConsumerAbandoned",
            f"max by (stream_name, consumer_name) ({waiting}) > 0 and {asked} == 0 and {sent} == 0",
            "ticket",
            "Nobody takes the messages of {{ $labels.consumer_name }}",
            f"{_NUMBER} messages of the stream {{{{ $labels.stream_name }}}} wait for the consumer "
            "{{ $labels.consumer_name }}, and for ten minutes nobody has asked for them: no instance of its "
            "service runs, or what it once belonged to is gone and left it behind.",
            "1m",
        ),
    ]


def _processes() -> list[Alert]:
    return [
        Alert(
            "MeshSlowConsumer",
            f"{increase(of.DROPPED, '5m', by=_BY_INSTANCE)} > 0",
            "ticket",
            f"{_INSTANCE} drops messages",
            f"{_INSTANCE} dropped {_NUMBER} messages in five minutes: they came faster than it could take "
            "them in.",
        ),
        Alert(
            "MeshDisconnected",
            f"min by ({_BY_INSTANCE}) ({of.CONNECTED.prometheus}) == 0",
            "ticket",
            f"{_INSTANCE} has no connection to NATS",
            "It tries again until it has one. If all have lost it, the server is away; if one has, its "
            "network or its credentials are the matter.",
            "30s",
        ),
        Alert(
            "MeshLoopLag",
            f"{quantile(0.99, of.LOOP_LAG, '5m', by=_BY_INSTANCE)} > 0.1",
            "ticket",
            f"The event loop of {_INSTANCE} is held up",
            f"One turn in a hundred is {_DURATION} late or more, and with it every call: something in a "
            "coroutine computes, or blocks. A `def` handler would do so in a thread.",
            "5m",
        ),
    ]


def _servers() -> list[Alert]:
    server = "{{ $labels.server_id }}"
    return [
        Alert(
            "NatsServerDown",
            f"max by (server_id) ({nats.UP.prometheus}) == 0",
            "page",
            f"NATS server {server} does not answer",
            "Its monitoring does not answer `meshkit metrics`: the server is away, or cannot be reached from "
            "there.",
            "1m",
        ),
        Alert(
            "NatsSlowConsumers",
            f"{increase(nats.SLOW_CONSUMERS, '5m', by='server_id')} > 0",
            "ticket",
            f"NATS server {server} cuts off connections",
            f"{_NUMBER} connections in five minutes did not read what was sent to them. The dashboard of the "
            "NATS servers shows whose.",
        ),
    ]


def rules(kept: list[Objective], runbook: str) -> str:
    """The file for Prometheus: what is recorded, and what fires.

    Args:
        kept: The objectives.
        runbook: Where what to do is written, below each alert's name.
    """
    lines = ["groups:", "  - name: meshkit", "    rules:"]
    for objective in kept:
        for what, expression in (("bad", objective.bad), ("all", objective.all)):
            lines += [
                f"      - record: {objective.record}:{what}:rate5m",
                f"        expr: {_quoted(expression)}",
            ]
    for alert in alerts(kept):
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {_quoted(alert.expression)}",
            f"        for: {alert.lasting}",
            f"        labels: {{ severity: {alert.severity} }}",
            "        annotations:",
            f"          summary: {_quoted(alert.summary)}",
            f"          description: {_quoted(alert.description)}",
            f"          runbook: {_quoted(f'{runbook}#{alert.name.lower()}')}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A line of text, as YAML has it."""
    return "'{}'".format(text.replace("'", "''"))
