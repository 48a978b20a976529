"""Dashboards for Grafana, from the catalogue: the mesh, a service, an endpoint, and the NATS servers."""

from meshkit.telemetry.dashboards.grafana import Column, Json, Panel, Rows, dashboard, variable
from meshkit.telemetry.dashboards.promql import increase, now, picked, quantile, rate, some_rate, succeeded
from meshkit.telemetry.metrics import catalogue as of
from meshkit.telemetry.metrics import monitoring as nats
from meshkit.telemetry.metrics.catalogue import Metric

# Several scrapes, as far as a point of the line stands for.
_WINDOW = "$__rate_interval"
# What panels show of a number, as Grafana calls it.
_SECONDS, _SHARE, _RATE, _BYTES, _NUMBER = "s", "percentunit", "cps", "Bps", "short"
# Which series a dashboard picks.
_MESH = 'job=~"$job"'
_SERVICE = f'{_MESH}, service_name="$service", service_instance_id=~"$instance"'
_ENDPOINT = f'{_MESH}, rpc_method="$method"'
_SERVER = f'{_MESH}, server_id=~"$server"'
_SERVERS = f"sum({picked(nats.UP, _SERVER)})"
# What all endpoints of a service share.
_SHARED = 'rpc_method=""'

_FAULTS = "What is wrong with a call, or is an answer (404, 409), is no failure of the service."
_WAITED = "Of those that had to wait."


def dashboards() -> dict[str, Json]:
    """The dashboards, by their names."""
    started = picked(of.STARTED, _MESH)
    instances = picked(of.STARTED, _MESH, 'service_name="$service"')
    either = f"{of.SERVER_IN_FLIGHT.prometheus}|{of.CLIENT_IN_FLIGHT.prometheus}"
    methods = f'{{__name__=~"{either}", {_MESH}}}'
    job = variable("job", f'{{__name__=~"{of.STARTED.prometheus}|{nats.UP.prometheus}"}}', "job", many=True)
    service = variable("service", started, "service_name")
    instance = variable("instance", instances, "service_instance_id", many=True)
    method = variable("method", methods, "rpc_method")
    server = variable("server", picked(nats.UP, _MESH), "server_id", many=True)
    return {
        "mesh": dashboard("mesh", "the mesh", _mesh(), [job]),
        "service": dashboard("service", "a service", _service(), [job, service, instance]),
        "endpoint": dashboard("endpoint", "an endpoint", _endpoint(), [job, method]),
        "nats": dashboard("nats", "NATS servers", _nats(), [job, server]),
    }


def _mesh() -> Rows:
    started = picked(of.STARTED, _MESH)
    return {
        "Now": [
            _stat("Services", _NUMBER, f"count(group by (service_name) ({started}))"),
            _stat("Instances", _NUMBER, f"count({started})"),
            _stat("Calls", _RATE, rate(of.CLIENT_DURATION, _WINDOW, _MESH)),
            _stat("Success, with retries", _SHARE, succeeded(of.CLIENT_DURATION, _WINDOW, _MESH)),
            _stat("Success, without", _SHARE, succeeded(of.CLIENT_ATTEMPTS, _WINDOW, _MESH)),
            _stat("p99", _SECONDS, quantile(0.99, of.CLIENT_DURATION, _WINDOW, _MESH)),
        ],
        "Services and what is called": [
            _table("Services", of.SERVER_DURATION, "service_name", _MESH),
            _table("Endpoints, as their callers see them", of.CLIENT_DURATION, "rpc_method", _MESH),
        ],
        "Calls as services see them": [
            *_served("service_name", _MESH),
            _bound("service_name", f"{_MESH}, {_SHARED}"),
        ],
        "Calls as their callers see them": _called("service_name", _MESH),
        "Events": _events("service_name", _MESH),
        "Processes": _processes("service_name", _MESH),
    }


def _service() -> Rows:
    started = picked(of.STARTED, _SERVICE)
    return {
        "Now": [
            _stat("Instances", _NUMBER, f"count({started})"),
            _stat("Version", _NUMBER, f"count by (service_version) ({started})", "{{service_version}}"),
            _stat("Since the last start", _SECONDS, f"time() - max({started})"),
            _stat("Calls", _RATE, rate(of.SERVER_DURATION, _WINDOW, _SERVICE)),
            _stat("Success", _SHARE, succeeded(of.SERVER_DURATION, _WINDOW, _SERVICE)),
            _stat("p99", _SECONDS, quantile(0.99, of.SERVER_DURATION, _WINDOW, _SERVICE)),
        ],
        "Its endpoints": [
            _table("Endpoints", of.SERVER_DURATION, "rpc_method", _SERVICE),
            *_served("rpc_method", _SERVICE),
            _bound("rpc_method", _SERVICE),
        ],
        "Its instances": _served("service_instance_id", _SERVICE)[:3],
        "What it calls": _called("rpc_method", _SERVICE),
        "Its events": _events("messaging_destination_template", _SERVICE),
        "Its processes": _processes("service_instance_id", _SERVICE),
    }


def _endpoint() -> Rows:
    return {
        "Now": [
            _stat("Calls made", _RATE, rate(of.CLIENT_DURATION, _WINDOW, _ENDPOINT)),
            _stat("Success, with retries", _SHARE, succeeded(of.CLIENT_DURATION, _WINDOW, _ENDPOINT)),
            _stat("p99 for its callers", _SECONDS, quantile(0.99, of.CLIENT_DURATION, _WINDOW, _ENDPOINT)),
            _stat("Calls answered", _RATE, rate(of.SERVER_DURATION, _WINDOW, _ENDPOINT)),
            _stat("Success of the service", _SHARE, succeeded(of.SERVER_DURATION, _WINDOW, _ENDPOINT)),
            _stat("p99 in the service", _SECONDS, quantile(0.99, of.SERVER_DURATION, _WINDOW, _ENDPOINT)),
        ],
        "By instance": _served("service_instance_id", _ENDPOINT),
        "By caller": _called("service_name", _ENDPOINT),
    }


def _served(by: str, where: str) -> list[Panel]:
    """The golden signals of what a service answers."""
    return [
        _lines("Calls", _RATE, {"": rate(of.SERVER_DURATION, _WINDOW, where, by=by)}, by),
        _lines(
            "Success", _SHARE, {"": succeeded(of.SERVER_DURATION, _WINDOW, where, by=by)}, by, note=_FAULTS
        ),
        _lines("Latency", _SECONDS, _quantiles(of.SERVER_DURATION, by, where), by),
        _lines("Errors", _RATE, {"": _by_kind(of.SERVER_DURATION, where, of.SERVER_DURATION)}, "error_type"),
        _lines("In flight", _NUMBER, {"": now(of.SERVER_IN_FLIGHT, where, by=by)}, by),
        _lines("Waited for a slot", _SECONDS, _quantiles(of.SERVER_QUEUE, by, where), by, note=_WAITED),
        _lines("Bytes", _BYTES, _both(of.SERVER_RECEIVED, of.SERVER_SENT, by, where), by),
    ]


def _bound(by: str, where: str) -> Panel:
    return _lines(
        "Handled at a time",
        _NUMBER,
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
        _lines("Calls", _RATE, {"": rate(of.CLIENT_DURATION, _WINDOW, where, by=by)}, by),
        _lines(
            "Success, effective and actual",
            _SHARE,
            {
                "calls": succeeded(of.CLIENT_DURATION, _WINDOW, where, by=by),
                "attempts": succeeded(of.CLIENT_ATTEMPTS, _WINDOW, where, by=by),
            },
            by,
            note="Of calls, in the end; and of attempts, each for itself: what lies between is mended by "
            f"retries. {_FAULTS}",
        ),
        _lines("Latency", _SECONDS, _quantiles(of.CLIENT_DURATION, by, where), by),
        _lines("Errors", _RATE, {"": _by_kind(of.CLIENT_DURATION, where, of.CLIENT_DURATION)}, "error_type"),
        _lines(
            "Deadlines missed", _RATE, {"": some_rate(of.CLIENT_DURATION, _WINDOW, late, where, by=by)}, by
        ),
        _lines(
            "On their way, and how many may be",
            _NUMBER,
            {"": now(of.CLIENT_IN_FLIGHT, where, by=by), "bound": now(of.CLIENT_LIMIT, where, by=by)},
            by,
        ),
        _lines(
            "Waited for the caller's own bound",
            _SECONDS,
            _quantiles(of.CLIENT_QUEUE, by, where),
            by,
            note=_WAITED,
        ),
        _lines("Bytes", _BYTES, _both(of.CLIENT_RECEIVED, of.CLIENT_SENT, by, where), by),
    ]


def _mended(by: str, where: str) -> list[Panel]:
    return [
        _lines(
            "Tried again, or not",
            _RATE,
            {
                "retries": rate(of.CLIENT_RETRIES, _WINDOW, where, by=by),
                "left out": rate(of.CLIENT_BUDGET, _WINDOW, where, by=by),
            },
            by,
            note="Retries and hedges are left out when the budget for them is spent.",
        ),
        _lines(
            "Second copies of what takes long",
            _RATE,
            {
                "sent": rate(of.CLIENT_HEDGES, _WINDOW, where, by=by),
                "answered first": rate(of.CLIENT_HEDGES_WON, _WINDOW, where, by=by),
            },
            by,
        ),
        _lines(
            "Circuit breakers",
            _NUMBER,
            {
                "state": f"max by ({by}) ({picked(of.CLIENT_CIRCUIT, where)})",
                "opened": increase(of.CLIENT_OPENED, _WINDOW, where, by=by),
            },
            by,
            note="0 closed, 1 half-open, 2 open; and how often they opened.",
        ),
        _lines(
            "Refused by the caller's own side",
            _RATE,
            {"": _by_kind(of.CLIENT_REFUSALS, where, of.CLIENT_DURATION)},
            "error_type",
        ),
        _lines("Fallbacks", _RATE, {"": rate(of.CLIENT_FALLBACKS, _WINDOW, where, by=by)}, by),
    ]


def _events(by: str, where: str) -> list[Panel]:
    return [
        _lines("Events handled", _RATE, {"": rate(of.EVENT_DURATION, _WINDOW, where, by=by)}, by),
        _lines(
            "Success of events",
            _SHARE,
            {"": succeeded(of.EVENT_DURATION, _WINDOW, where, by=by)},
            by,
            note=_FAULTS,
        ),
        _lines("Until they were handled", _SECONDS, _quantiles(of.EVENT_DURATION, by, where), by),
        _lines("Handled or waiting", _NUMBER, {"": now(of.EVENT_IN_FLIGHT, where, by=by)}, by),
        _lines("Bytes", _BYTES, {"": rate(of.EVENT_RECEIVED, _WINDOW, where, by=by)}, by),
        _lines(
            "Events published",
            _RATE,
            {"": rate(of.PUBLISHED, _WINDOW, where, by="service_name")},
            "service_name",
        ),
    ]


def _processes(by: str, where: str) -> list[Panel]:
    return [
        _lines("Event loop, how late", _SECONDS, _quantiles(of.LOOP_LAG, by, where), by),
        _lines(
            "Connection to NATS",
            _NUMBER,
            {
                "up": f"min by ({by}) ({picked(of.CONNECTED, where)})",
                "came back": increase(of.RECONNECTS, _WINDOW, where, by=by),
            },
            by,
            note="1 while there is one, and how often it was lost and came back.",
        ),
        _lines(
            "Dropped (slow consumer)",
            _RATE,
            {"": rate(of.DROPPED, _WINDOW, where, by=by)},
            by,
            note="Messages that came faster than they could be taken in.",
        ),
    ]


def _nats() -> Rows:
    by, where = "server_id", _SERVER
    return {
        "Now": [
            _stat("Servers", _NUMBER, _SERVERS),
            _stat("Connections", _NUMBER, f"sum({picked(nats.CONNECTIONS, where)})"),
            _stat("Subscriptions", _NUMBER, f"sum({picked(nats.SUBSCRIPTIONS, where)})"),
            _stat("Messages in", _RATE, rate(nats.IN_MSGS, _WINDOW, where)),
            _stat("Messages out", _RATE, rate(nats.OUT_MSGS, _WINDOW, where)),
            _stat("Slow consumers in an hour", _NUMBER, increase(nats.SLOW_CONSUMERS, "1h", where)),
        ],
        "Traffic": [
            _lines("Messages", _RATE, _both(nats.IN_MSGS, nats.OUT_MSGS, by, where), by),
            _lines("Bytes", _BYTES, _both(nats.IN_BYTES, nats.OUT_BYTES, by, where), by),
            _lines(
                "Connections",
                _NUMBER,
                {
                    "clients": now(nats.CONNECTIONS, where, by=by),
                    "routes": now(nats.ROUTES, where, by=by),
                    "gateways": now(nats.GATEWAYS, where, by=by),
                    "leaf nodes": now(nats.LEAVES, where, by=by),
                },
                by,
            ),
            _lines("New connections", _RATE, {"": rate(nats.TOTAL_CONNECTIONS, _WINDOW, where, by=by)}, by),
            _lines("Processor, percent of a core", _NUMBER, {"": now(nats.CPU, where, by=by)}, by),
            _lines("Memory", "bytes", {"": now(nats.MEMORY, where, by=by)}, by),
        ],
        "Who does not keep up": _behind(),
        "JetStream": _jetstream(),
    }


def _behind() -> list[Panel]:
    by, where = "server_id", _SERVER
    slow = _or_none(now(nats.CONNECTION_SLOW, where, by="name"), "name", _SERVERS)
    return [
        _lines(
            "Cut off as slow consumers",
            _NUMBER,
            {"": slow},
            "name",
            "Of the connections that ended last, by name: an instance's is service/version/id.",
        ),
        _lines("Bytes that wait", "bytes", {"": now(nats.CONNECTION_PENDING, where, by="name")}, "name"),
        _lines("Had to wait for a slow receiver", _RATE, {"": rate(nats.STALLED, _WINDOW, where, by=by)}, by),
        _lines("Subscriptions", _NUMBER, {"": now(nats.CONNECTION_SUBSCRIPTIONS, where, by="name")}, "name"),
    ]


def _jetstream() -> list[Panel]:
    where, by = f'{_SERVER}, is_stream_leader="true"', "stream_name"
    return [
        _stored("Messages", _NUMBER, now(nats.STREAM_MESSAGES, where, by=by), by),
        _stored("Size", "bytes", now(nats.STREAM_BYTES, where, by=by), by),
        _stored("Messages stored", _RATE, rate(nats.STREAM_LAST, _WINDOW, where, by=by), by),
        _consumers("Consumers, not yet sent", nats.CONSUMER_PENDING),
        _consumers("Consumers, not yet acknowledged", nats.CONSUMER_UNACKED),
        _consumers("Consumers, sent again", nats.CONSUMER_REDELIVERED),
    ]


def _stored(title: str, unit: str, found: str, by: str) -> Panel:
    return _lines(title, unit, {"": _or_none(found, by, _SERVERS)}, by)


def _consumers(title: str, metric: Metric) -> Panel:
    found = now(metric, f'{_SERVER}, is_consumer_leader="true"', by="stream_name, consumer_name")
    return _stored(title, _NUMBER, found, "consumer_name")


def _stat(title: str, unit: str, query: str, called: str = "") -> Panel:
    return Panel(title, unit, {called: query}, kind="stat")


def _lines(title: str, unit: str, queries: dict[str, str], by: str, note: str = "") -> Panel:
    return Panel(title, unit, queries, by, note=note)


def _table(title: str, metric: Metric, by: str, where: str) -> Panel:
    columns = [
        Column("Calls", _RATE, rate(metric, _WINDOW, where, by=by)),
        Column("Success", _SHARE, succeeded(metric, _WINDOW, where, by=by)),
        Column("p50", _SECONDS, quantile(0.5, metric, _WINDOW, where, by=by)),
        Column("p99", _SECONDS, quantile(0.99, metric, _WINDOW, where, by=by)),
    ]
    return Panel(title, "", {}, by, kind="table", columns=columns)


def _quantiles(metric: Metric, by: str, where: str) -> dict[str, str]:
    return {
        f"p{share * 100:g}": quantile(share, metric, _WINDOW, where, by=by) for share in (0.5, 0.95, 0.99)
    }


def _both(received: Metric, sent: Metric, by: str, where: str) -> dict[str, str]:
    return {"received": rate(received, _WINDOW, where, by=by), "sent": rate(sent, _WINDOW, where, by=by)}


def _by_kind(metric: Metric, where: str, of_all: Metric) -> str:
    """Errors a second, by kind."""
    found = rate(metric, _WINDOW, 'error_type!=""', where, by="error_type")
    return _or_none(found, "error_type", rate(of_all, _WINDOW, where))


def _or_none(found: str, label: str, there: str) -> str:
    """What was found or, if nothing was, a line at 0 as long as something is there."""
    return f'{found} or on () label_replace(0 * {there}, "{label}", "none", "", "")'
