"""Dashboards for Grafana, from the catalogue: the mesh, a service, an endpoint, and the NATS servers."""

from meshkit.telemetry.dashboards.grafana import Json, Panel, Rows, dashboard, variable
from meshkit.telemetry.dashboards.panels import (
    BYTES,
    MESH,
    NUMBER,
    RATE,
    SECONDS,
    SHARE,
    WINDOW,
    both,
    by_kind,
    lines,
    quantiles,
    stat,
    table,
)
from meshkit.telemetry.dashboards.promql import (
    alike,
    increase,
    now,
    picked,
    quantile,
    rate,
    some_rate,
    succeeded,
)
from meshkit.telemetry.dashboards.servers import servers
from meshkit.telemetry.metrics import catalogue as of
from meshkit.telemetry.metrics import monitoring as nats

# Which series a dashboard picks.
_SERVICE = f'{MESH}, service_name="$service", service_instance_id=~"$instance"'
_ENDPOINT = f'{MESH}, rpc_method="$method"'
# What all endpoints of a service share.
_SHARED = 'rpc_method=""'

_FAULTS = "What is wrong with a call, or is an answer (404, 409), is no failure of the service."
_WAITED = "Of those that had to wait."


def dashboards() -> dict[str, Json]:
    """The dashboards, by their names."""
    started = picked(of.STARTED, MESH)
    instances = picked(of.STARTED, MESH, 'service_name="$service"')
    either = f"{of.SERVER_IN_FLIGHT.prometheus}|{of.CLIENT_IN_FLIGHT.prometheus}"
    methods = f'{{__name__=~"{either}", {MESH}}}'
    job = variable("job", f'{{__name__=~"{of.STARTED.prometheus}|{nats.UP.prometheus}"}}', "job", many=True)
    service = variable("service", started, "service_name")
    instance = variable("instance", instances, "service_instance_id", many=True)
    method = variable("method", methods, "rpc_method")
    server = variable("server", picked(nats.UP, MESH), "server_id", many=True)
    return {
        "mesh": dashboard("mesh", "the mesh", _mesh(), [job]),
        "service": dashboard("service", "a service", _service(), [job, service, instance]),
        "endpoint": dashboard("endpoint", "an endpoint", _endpoint(), [job, method]),
        "nats": dashboard("nats", "NATS servers", servers(), [job, server]),
    }


def _mesh() -> Rows:
    started = picked(of.STARTED, MESH)
    return {
        "Now": [
            stat("Services", NUMBER, f"count(group by (service_name) ({started}))"),
            stat("Instances", NUMBER, f"count({started})"),
            stat("Calls", RATE, rate(of.CLIENT_DURATION, WINDOW, MESH)),
            stat("Success, with retries", SHARE, succeeded(of.CLIENT_DURATION, WINDOW, MESH)),
            stat("Success, without", SHARE, succeeded(of.CLIENT_ATTEMPTS, WINDOW, MESH)),
            stat("p99", SECONDS, quantile(0.99, of.CLIENT_DURATION, WINDOW, MESH)),
        ],
        "Services and what is called": [
            table("Services", of.SERVER_DURATION, "service_name", MESH),
            table("Endpoints, as their callers see them", of.CLIENT_DURATION, "rpc_method", MESH),
        ],
        "Calls as services see them": [
            *_served("service_name", MESH),
            _bound("service_name", f"{MESH}, {_SHARED}"),
        ],
        "Calls as their callers see them": _called("service_name", MESH),
        "Events": _events("service_name", MESH),
        "Durable consumers": _durable(MESH),
        "Jobs": _jobs(MESH),
        "Processes": _processes("service_name", MESH),
    }


def _service() -> Rows:
    started = picked(of.STARTED, _SERVICE)
    return {
        "Now": [
            stat("Instances", NUMBER, f"count({started})"),
            stat("Version", NUMBER, f"count by (service_version) ({started})", "{{service_version}}"),
            stat("Since the last start", SECONDS, f"time() - max({started})"),
            stat("Calls", RATE, rate(of.SERVER_DURATION, WINDOW, _SERVICE)),
            stat("Success", SHARE, succeeded(of.SERVER_DURATION, WINDOW, _SERVICE)),
            stat("p99", SECONDS, quantile(0.99, of.SERVER_DURATION, WINDOW, _SERVICE)),
        ],
        "Its endpoints": [
            table("Endpoints", of.SERVER_DURATION, "rpc_method", _SERVICE),
            *_served("rpc_method", _SERVICE),
            _bound("rpc_method", _SERVICE),
        ],
        "Its instances": _served("service_instance_id", _SERVICE)[:3],
        "What it calls": _called("rpc_method", _SERVICE),
        "Its events": _events("messaging_destination_template", _SERVICE),
        "Its durable consumers": _durable(_SERVICE),
        "Its jobs": _jobs(_SERVICE),
        "Its processes": _processes("service_instance_id", _SERVICE),
    }


def _endpoint() -> Rows:
    return {
        "Now": [
            stat("Calls made", RATE, rate(of.CLIENT_DURATION, WINDOW, _ENDPOINT)),
            stat("Success, with retries", SHARE, succeeded(of.CLIENT_DURATION, WINDOW, _ENDPOINT)),
            stat("p99 for its callers", SECONDS, quantile(0.99, of.CLIENT_DURATION, WINDOW, _ENDPOINT)),
            stat("Calls answered", RATE, rate(of.SERVER_DURATION, WINDOW, _ENDPOINT)),
            stat("Success of the service", SHARE, succeeded(of.SERVER_DURATION, WINDOW, _ENDPOINT)),
            stat("p99 in the service", SECONDS, quantile(0.99, of.SERVER_DURATION, WINDOW, _ENDPOINT)),
        ],
        "By instance": _served("service_instance_id", _ENDPOINT),
        "By caller": _called("service_name", _ENDPOINT),
    }


def _served(by: str, where: str) -> list[Panel]:
    """The golden signals of what a service answers."""
    return [
        lines("Calls", RATE, {"": rate(of.SERVER_DURATION, WINDOW, where, by=by)}, by),
        lines("Success", SHARE, {"": succeeded(of.SERVER_DURATION, WINDOW, where, by=by)}, by, note=_FAULTS),
        lines("Latency", SECONDS, quantiles(of.SERVER_DURATION, by, where), by),
        lines("Errors", RATE, {"": by_kind(of.SERVER_DURATION, where, of.SERVER_DURATION)}, "error_type"),
        lines("In flight", NUMBER, {"": now(of.SERVER_IN_FLIGHT, where, by=by)}, by),
        lines("Waited for a slot", SECONDS, quantiles(of.SERVER_QUEUE, by, where), by, note=_WAITED),
        lines("Bytes", BYTES, both(of.SERVER_RECEIVED, of.SERVER_SENT, by, where), by),
    ]


def _bound(by: str, where: str) -> Panel:
    return lines(
        "Handled at a time",
        NUMBER,
        {
            "running": now(of.SERVER_RUNNING, where, by=by),
            "waiting": now(of.SERVER_WAITING, where, by=by),
            "bound": now(of.SERVER_LIMIT, where, by=by),
        },
        by,
        note="And how many may be.",
    )


def _called(by: str, where: str) -> list[Panel]:
    """The golden signals of what is called, and what was done where it failed."""
    return [*_calls(by, where), *_mended(by, where)]


def _calls(by: str, where: str) -> list[Panel]:
    late = 'error_type="DeadlineExceeded"'
    return [
        lines("Calls", RATE, {"": rate(of.CLIENT_DURATION, WINDOW, where, by=by)}, by),
        lines(
            "Success, effective and actual",
            SHARE,
            {
                "calls": succeeded(of.CLIENT_DURATION, WINDOW, where, by=by),
                "attempts": succeeded(of.CLIENT_ATTEMPTS, WINDOW, where, by=by),
            },
            by,
            note="Of calls, in the end; and of attempts, each for itself: what lies between is mended by "
            f"retries. {_FAULTS}",
        ),
        lines("Latency", SECONDS, quantiles(of.CLIENT_DURATION, by, where), by),
        lines("Errors", RATE, {"": by_kind(of.CLIENT_DURATION, where, of.CLIENT_DURATION)}, "error_type"),
        lines("Deadlines missed", RATE, {"": some_rate(of.CLIENT_DURATION, WINDOW, late, where, by=by)}, by),
        lines(
            "On their way, and how many may be",
            NUMBER,
            {"": now(of.CLIENT_IN_FLIGHT, where, by=by), "bound": now(of.CLIENT_LIMIT, where, by=by)},
            by,
        ),
        lines(
            "Waited for the caller's own bound",
            SECONDS,
            quantiles(of.CLIENT_QUEUE, by, where),
            by,
            note=_WAITED,
        ),
        lines("Bytes", BYTES, both(of.CLIENT_RECEIVED, of.CLIENT_SENT, by, where), by),
    ]


def _mended(by: str, where: str) -> list[Panel]:
    return [
        lines(
            "Tried again, or not",
            RATE,
            {
                "retries": rate(of.CLIENT_RETRIES, WINDOW, where, by=by),
                "left out": rate(of.CLIENT_BUDGET, WINDOW, where, by=by),
            },
            by,
            note="Retries and hedges are left out when the budget for them is spent.",
        ),
        lines(
            "Second copies of what takes long",
            RATE,
            {
                "sent": rate(of.CLIENT_HEDGES, WINDOW, where, by=by),
                "answered first": rate(of.CLIENT_HEDGES_WON, WINDOW, where, by=by),
            },
            by,
        ),
        lines(
            "Circuit breakers",
            NUMBER,
            {
                "state": alike(of.CLIENT_CIRCUIT, where, by=by),
                "opened": increase(of.CLIENT_OPENED, WINDOW, where, by=by),
            },
            by,
            note="0 closed, 1 half-open, 2 open; and how often they opened.",
        ),
        lines(
            "Refused by the caller's own side",
            RATE,
            {"": by_kind(of.CLIENT_REFUSALS, where, of.CLIENT_DURATION)},
            "error_type",
        ),
        lines("Fallbacks", RATE, {"": rate(of.CLIENT_FALLBACKS, WINDOW, where, by=by)}, by),
    ]


def _events(by: str, where: str) -> list[Panel]:
    return [
        lines("Events handled", RATE, {"": rate(of.EVENT_DURATION, WINDOW, where, by=by)}, by),
        lines(
            "Success of events",
            SHARE,
            {"": succeeded(of.EVENT_DURATION, WINDOW, where, by=by)},
            by,
            note=_FAULTS,
        ),
        lines("Until they were handled", SECONDS, quantiles(of.EVENT_DURATION, by, where), by),
        lines("Handled or waiting", NUMBER, {"": now(of.EVENT_IN_FLIGHT, where, by=by)}, by),
        lines("Bytes", BYTES, {"": rate(of.EVENT_RECEIVED, WINDOW, where, by=by)}, by),
        lines(
            "Events published",
            RATE,
            {"": rate(of.PUBLISHED, WINDOW, where, by="service_name")},
            "service_name",
        ),
    ]


def _durable(where: str) -> list[Panel]:
    by, which = "messaging_consumer_group_name", "meshkit_stream, messaging_consumer_group_name"
    where_durable = f'{where}, {by}!=""'
    return [
        lines(
            "Lag",
            NUMBER,
            {"": alike(of.CONSUMER_PENDING, where, by=which)},
            by,
            note="Messages that no instance has got yet.",
        ),
        lines(
            "Not yet acknowledged",
            NUMBER,
            {"": alike(of.CONSUMER_UNACKED, where, by=which)},
            by,
            note="Messages that some instance has got, or that wait to be delivered again.",
        ),
        lines(
            "Deliveries",
            RATE,
            {
                "": rate(of.EVENT_DURATION, WINDOW, where_durable, by=by),
                "again": rate(of.CONSUMER_REDELIVERED, WINDOW, where, by=by),
            },
            by,
            note="All of them, and those of messages that had been delivered before.",
        ),
        lines(
            "Deliveries that failed",
            RATE,
            {"": by_kind(of.EVENT_DURATION, where_durable, of.EVENT_DURATION)},
            "error_type",
        ),
        lines(
            "What became of those",
            RATE,
            {
                "given back": rate(of.CONSUMER_RETURNED, WINDOW, where, by=by),
                "dead letters": rate(of.CONSUMER_DEAD, WINDOW, where, by=by),
            },
            by,
            note="What is given back is delivered again, later; `meshkit dead ls` shows those.",
        ),
        lines(
            "Handled at a time",
            NUMBER,
            {
                "running": now(of.CONSUMER_RUNNING, where, by=by),
                "bound": now(of.CONSUMER_LIMIT, where, by=by),
            },
            by,
            note="And how many may be, by all instances together.",
        ),
    ]


def _jobs(where: str) -> list[Panel]:
    by = "meshkit_job_name"
    return [
        lines(
            "How far",
            NUMBER,
            {
                "parts": alike(of.JOB_PARTS, where, by=by),
                "sent": now(of.JOB_SENT, where, by=by),
                "done": now(of.JOB_DONE, where, by=by),
                "failed": now(of.JOB_FAILED, where, by=by),
            },
            by,
        ),
        lines("Time to go", SECONDS, {"": alike(of.JOB_LEFT, where, by=by)}, by, note="At the rate so far."),
    ]


def _processes(by: str, where: str) -> list[Panel]:
    return [
        lines("Event loop, how late", SECONDS, quantiles(of.LOOP_LAG, by, where), by),
        lines(
            "Connection to NATS",
            NUMBER,
            {
                "up": f"min by ({by}) ({picked(of.CONNECTED, where)})",
                "came back": increase(of.RECONNECTS, WINDOW, where, by=by),
            },
            by,
            note="1 while there is one, and how often it was lost and came back.",
        ),
        lines(
            "Dropped (slow consumer)",
            RATE,
            {"": rate(of.DROPPED, WINDOW, where, by=by)},
            by,
            note="Messages that came faster than they could be taken in.",
        ),
    ]
