"""The dashboard of the NATS servers: what they say of themselves."""

from meshkit.telemetry.dashboards.grafana import Panel, Rows
from meshkit.telemetry.dashboards.panels import BYTES, MESH, NUMBER, RATE, WINDOW, both, lines, or_none, stat
from meshkit.telemetry.dashboards.promql import increase, now, picked, rate
from meshkit.telemetry.metrics import monitoring as nats
from meshkit.telemetry.metrics.catalogue import Metric

# Which series the dashboard picks.
_SERVER = f'{MESH}, server_id=~"$server"'
_SERVERS = f"sum({picked(nats.UP, _SERVER)})"


def servers() -> Rows:
    """Its rows."""
    by, where = "server_id", _SERVER
    return {
        "Now": [
            stat("Servers", NUMBER, _SERVERS),
            stat("Connections", NUMBER, f"sum({picked(nats.CONNECTIONS, where)})"),
            stat("Subscriptions", NUMBER, f"sum({picked(nats.SUBSCRIPTIONS, where)})"),
            stat("Messages in", RATE, rate(nats.IN_MSGS, WINDOW, where)),
            stat("Messages out", RATE, rate(nats.OUT_MSGS, WINDOW, where)),
            stat("Slow consumers in an hour", NUMBER, increase(nats.SLOW_CONSUMERS, "1h", where)),
        ],
        "Traffic": [
            lines("Messages", RATE, both(nats.IN_MSGS, nats.OUT_MSGS, by, where), by),
            lines("Bytes", BYTES, both(nats.IN_BYTES, nats.OUT_BYTES, by, where), by),
            lines(
                "Connections",
                NUMBER,
                {
                    "clients": now(nats.CONNECTIONS, where, by=by),
                    "routes": now(nats.ROUTES, where, by=by),
                    "gateways": now(nats.GATEWAYS, where, by=by),
                    "leaf nodes": now(nats.LEAVES, where, by=by),
                },
                by,
            ),
            lines("New connections", RATE, {"": rate(nats.TOTAL_CONNECTIONS, WINDOW, where, by=by)}, by),
            lines("Processor, percent of a core", NUMBER, {"": now(nats.CPU, where, by=by)}, by),
            lines("Memory", "bytes", {"": now(nats.MEMORY, where, by=by)}, by),
        ],
        "Who does not keep up": _behind(),
        "JetStream": _jetstream(),
    }


def _behind() -> list[Panel]:
    by, where = "server_id", _SERVER
    slow = or_none(now(nats.CONNECTION_SLOW, where, by="name"), "name", _SERVERS)
    return [
        lines(
            "Cut off as slow consumers",
            NUMBER,
            {"": slow},
            "name",
            "Of the connections that ended last, by name: an instance's is service/version/id.",
        ),
        lines("Bytes that wait", "bytes", {"": now(nats.CONNECTION_PENDING, where, by="name")}, "name"),
        lines("Had to wait for a slow receiver", RATE, {"": rate(nats.STALLED, WINDOW, where, by=by)}, by),
        lines("Subscriptions", NUMBER, {"": now(nats.CONNECTION_SUBSCRIPTIONS, where, by="name")}, "name"),
    ]


def _jetstream() -> list[Panel]:
    where, by = f'{_SERVER}, is_stream_leader="true"', "stream_name"
    return [
        _stored("Messages", NUMBER, now(nats.STREAM_MESSAGES, where, by=by), by),
        _stored("Size", "bytes", now(nats.STREAM_BYTES, where, by=by), by),
        _stored("Messages stored", RATE, rate(nats.STREAM_LAST, WINDOW, where, by=by), by),
        _consumers("Consumers, not yet sent", nats.CONSUMER_PENDING),
        _consumers("Consumers, not yet acknowledged", nats.CONSUMER_UNACKED),
        _consumers("Consumers, sent again", nats.CONSUMER_REDELIVERED),
    ]


def _stored(title: str, unit: str, found: str, by: str) -> Panel:
    return lines(title, unit, {"": or_none(found, by, _SERVERS)}, by)


def _consumers(title: str, metric: Metric) -> Panel:
    found = now(metric, f'{_SERVER}, is_consumer_leader="true"', by="stream_name, consumer_name")
    return _stored(title, NUMBER, found, "consumer_name")
