"""What a nats-server says of itself over HTTP, as metrics: `/varz`, `/connz` and `/jsz`.

Names and labels are those of prometheus-nats-exporter, so that dashboards made for it go on working. All are
gauges as there, and `server_id` is the URL. https://github.com/nats-io/prometheus-nats-exporter
"""

import asyncio
import logging
import re
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from operator import attrgetter
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from meshkit.errors import ConfigError
from meshkit.layers.statistics import OTHER
from meshkit.telemetry.metrics.catalogue import Family, Labels, Metric
from meshkit.threads import Threads

log = logging.getLogger("meshkit.telemetry")

# Seconds that a server may take to answer.
PATIENCE = 2.0
# Bytes of an answer.
_MOST_BYTES = 64 * 1024 * 1024
# Of one server: connections that are listed, as by default; names of connections; those that have ended;
# streams, and consumers of each. More are left out, or counted together.
_MOST_CONNECTIONS, _MOST_NAMES, _MOST_ENDED, _MOST_STREAMS = 1024, 256, 256, 1000

_SERVER = ("server_id",)
_NAMED = ("server_id", "name")
_OF_JETSTREAM = (*_SERVER, "server_name", "cluster", "domain", "meta_leader", "is_meta_leader")
_OF_STREAM = (*_OF_JETSTREAM, "account", "account_id", "stream_name", "stream_leader", "is_stream_leader")
_OF_CONSUMER = (*_OF_STREAM, "consumer_name", "consumer_leader", "is_consumer_leader")


def _gauge(name: str, text: str, labels: tuple[str, ...] = _SERVER) -> Metric:
    return Metric(name, "gauge", "", text, labels)


UP = Metric("nats.server.up", "gauge", "1", "Whether the server's monitoring answered", _SERVER)

CONNECTIONS = _gauge("gnatsd_varz_connections", "Connections of clients")
TOTAL_CONNECTIONS = _gauge("gnatsd_varz_total_connections", "Connections of clients since it started")
SUBSCRIPTIONS = _gauge("gnatsd_varz_subscriptions", "Subscriptions")
SLOW_CONSUMERS = _gauge(
    "gnatsd_varz_slow_consumers",
    "Connections that were cut off, as they did not read fast enough, since it started",
)
STALLED = _gauge(
    "gnatsd_varz_stalled_clients", "How often a client had to wait for a slow receiver, since it started"
)
IN_MSGS = _gauge("gnatsd_varz_in_msgs", "Messages that arrived since it started")
OUT_MSGS = _gauge("gnatsd_varz_out_msgs", "Messages that were sent since it started")
IN_BYTES = _gauge("gnatsd_varz_in_bytes", "Bytes that arrived since it started")
OUT_BYTES = _gauge("gnatsd_varz_out_bytes", "Bytes that were sent since it started")
MEMORY = _gauge("gnatsd_varz_mem", "Memory that it uses, in bytes")
CPU = _gauge("gnatsd_varz_cpu", "Processor time that it uses, in percent of one core")
ROUTES = _gauge("gnatsd_varz_routes", "Connections to other servers of the cluster")
GATEWAYS = _gauge("gnatsd_varz_remotes", "Connections to other clusters")
LEAVES = _gauge("gnatsd_varz_leafnodes", "Connections of leaf nodes")

# Names of their own: the exporter gives these the names of the sums below, and who adds them up counts twice.
CONNECTION_SUBSCRIPTIONS = Metric(
    "nats.connection.subscriptions", "gauge", "{subscription}", "Subscriptions by connection name", _NAMED
)
CONNECTION_PENDING = Metric(
    "nats.connection.pending",
    "gauge",
    "By",
    "Bytes that wait until their receiver takes them, by connection name",
    _NAMED,
)
CONNECTION_SLOW = Metric(
    "nats.connection.slow",
    "gauge",
    "{connection}",
    f"Connections that were cut off as slow consumers, of the last {_MOST_ENDED} that ended, by name",
    _NAMED,
)
LISTED = _gauge("gnatsd_connz_num_connections", f"Connections that are listed, {_MOST_CONNECTIONS} at most")

# Each by where it is found in what the server says.
_SUMS = {
    "pending_bytes": _gauge("gnatsd_connz_pending_bytes", "Bytes that wait until their receivers take them"),
    "subscriptions": _gauge("gnatsd_connz_subscriptions", "Subscriptions of the connections that are listed"),
    "in_msgs": _gauge("gnatsd_connz_in_msgs", "Messages from the connections that are listed"),
    "out_msgs": _gauge("gnatsd_connz_out_msgs", "Messages to the connections that are listed"),
    "in_bytes": _gauge("gnatsd_connz_in_bytes", "Bytes from the connections that are listed"),
    "out_bytes": _gauge("gnatsd_connz_out_bytes", "Bytes to the connections that are listed"),
}
_JETSTREAM = {
    path: _gauge(f"jetstream_server_{name}", text, _OF_JETSTREAM)
    for path, name, text in (
        ("disabled", "jetstream_disabled", "Whether there is no JetStream"),
        ("config.max_memory", "max_memory", "Bytes that streams in memory may have"),
        ("config.max_storage", "max_storage", "Bytes that streams on disk may have"),
        ("streams", "total_streams", "Streams"),
        ("consumers", "total_consumers", "Consumers"),
        ("messages", "total_messages", "Messages in streams"),
        ("bytes", "total_message_bytes", "Bytes in streams"),
    )
}
_STREAM = {
    path: _gauge(f"jetstream_stream_{name}", text, _OF_STREAM)
    for path, name, text in (
        ("state.messages", "total_messages", "Messages in the stream"),
        ("state.bytes", "total_bytes", "Bytes in the stream"),
        ("state.first_seq", "first_seq", "Number of its first message"),
        ("state.last_seq", "last_seq", "Number of its last message"),
        ("state.consumer_count", "consumer_count", "Its consumers"),
    )
}
_CONSUMER = {
    path: _gauge(f"jetstream_consumer_{name}", text, _OF_CONSUMER)
    for path, name, text in (
        ("delivered.consumer_seq", "delivered_consumer_seq", "How many messages it was sent"),
        ("delivered.stream_seq", "delivered_stream_seq", "Number of the last message that it was sent"),
        ("num_ack_pending", "num_ack_pending", "Messages that it was sent and has not acknowledged"),
        ("num_redelivered", "num_redelivered", "Of them those that it was sent more than once"),
        ("num_waiting", "num_waiting", "Requests for messages that wait"),
        ("num_pending", "num_pending", "Messages that it has not been sent yet: its lag"),
        ("ack_floor.stream_seq", "ack_floor_stream_seq", "All messages up to this number are done"),
        (
            "ack_floor.consumer_seq",
            "ack_floor_consumer_seq",
            "So many of its messages are done without a gap",
        ),
    )
}
STREAM_MESSAGES, STREAM_BYTES = _STREAM["state.messages"], _STREAM["state.bytes"]
STREAM_LAST = _STREAM["state.last_seq"]
CONSUMER_PENDING, CONSUMER_UNACKED = _CONSUMER["num_pending"], _CONSUMER["num_ack_pending"]
CONSUMER_REDELIVERED, CONSUMER_WAITING = _CONSUMER["num_redelivered"], _CONSUMER["num_waiting"]

# Without the less usual numbers of /varz, all of which are shown.
SERVER_CATALOGUE = tuple(
    dict.fromkeys(
        [
            *(value for value in dict(globals()).values() if isinstance(value, Metric)),
            *(metric for table in (_SUMS, _JETSTREAM, _STREAM, _CONSUMER) for metric in table.values()),
        ]
    )
)
_KNOWN = {metric.name: metric for metric in SERVER_CATALOGUE}
# What a metric can be called.
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

_Samples = Iterator[tuple[Metric, Labels, float]]


class _Connection(msgspec.Struct):
    name: str = ""
    reason: str = ""
    pending_bytes: int = 0
    subscriptions: int = 0
    in_msgs: int = 0
    out_msgs: int = 0
    in_bytes: int = 0
    out_bytes: int = 0


class _Connz(msgspec.Struct):
    connections: list[_Connection] = []


class _Cluster(msgspec.Struct):
    name: str = ""
    leader: str | None = None

    def labels(self, what: str, server: str) -> Labels:
        """Who leads; a server without others does."""
        leads = self.leader in {None, server}
        return {f"{what}_leader": self.leader or "", f"is_{what}_leader": "true" if leads else "false"}


class _Sequences(msgspec.Struct):
    consumer_seq: int = 0
    stream_seq: int = 0


class _ConsumerDetail(msgspec.Struct):
    name: str
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    delivered: _Sequences = msgspec.field(default_factory=_Sequences)
    ack_floor: _Sequences = msgspec.field(default_factory=_Sequences)
    num_ack_pending: int = 0
    num_redelivered: int = 0
    num_waiting: int = 0
    num_pending: int = 0


class _State(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    consumer_count: int = 0


class _StreamDetail(msgspec.Struct):
    name: str
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    state: _State = msgspec.field(default_factory=_State)
    consumer_detail: list[_ConsumerDetail] = []


class _Account(msgspec.Struct):
    name: str
    id: str = ""
    stream_detail: list[_StreamDetail] = []


class _Config(msgspec.Struct):
    domain: str = ""
    max_memory: int = 0
    max_storage: int = 0


class _Jsz(msgspec.Struct):
    disabled: bool = False
    streams: int = 0
    consumers: int = 0
    messages: int = 0
    bytes: int = 0
    config: _Config = msgspec.field(default_factory=_Config)
    meta_cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    account_details: list[_Account] = []


class _Answers(msgspec.Struct):
    """What a server said; None where it did not."""

    varz: dict[str, Any] | None
    connz: _Connz | None
    ended: _Connz | None
    jsz: _Jsz | None


# Where each is asked for, and what it is.
_PATHS: tuple[tuple[str, Any], ...] = (
    ("/varz", dict[str, Any]),
    (f"/connz?sort=pending&limit={_MOST_CONNECTIONS}", _Connz),
    (f"/connz?state=closed&sort=stop&limit={_MOST_ENDED}", _Connz),
    ("/jsz?consumers=true", _Jsz),
)


class Monitoring:
    """The monitoring of some nats-servers.

    Args:
        urls: Where each listens, such as http://127.0.0.1:8222.

    Raises:
        ConfigError: One is no such URL.
    """

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = list(dict.fromkeys(_checked(url) for url in urls))
        self._threads = Threads(len(_PATHS) * len(self._urls), "monitoring")
        self._down: set[str] = set()
        # These servers are near: no proxy that the environment may name is on the way.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    async def families(self) -> list[Family]:
        """What all of them say; of one that does not answer, that it does not."""
        said = await asyncio.gather(*map(self._ask, self._urls))
        samples: dict[Metric, list[tuple[Labels, Any]]] = {}
        for url, answers in zip(self._urls, said, strict=True):
            for metric, labels, value in _server(answers, is_up=url not in self._down):
                samples.setdefault(metric, []).append(({"server_id": url} | labels, value))
        return [Family(metric, values) for metric, values in samples.items()]

    def close(self) -> None:
        """Ask no more."""
        self._threads.close()

    async def _ask(self, url: str) -> _Answers:
        answers = await asyncio.gather(*(self._answer(url + path, kind) for path, kind in _PATHS))
        wrong = [answer for answer in answers if isinstance(answer, str)]
        if not wrong:
            self._down.discard(url)
        elif url not in self._down:
            self._down.add(url)
            log.warning("%s: its monitoring does not answer as it should: %s", url, wrong[0])
        return _Answers(*(None if isinstance(answer, str) else answer for answer in answers))

    async def _answer(self, url: str, kind: Any) -> Any:
        """What the server answers; as text, why it does not."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._threads.run(self._read, url=url, kind=kind)
        except TimeoutError:
            return f"no answer in {PATIENCE:.0f} s"

    def _read(self, url: str, kind: Any) -> Any:
        try:
            with self._open(url, timeout=PATIENCE) as answer:
                return msgspec.json.decode(answer.read(_MOST_BYTES), type=kind)
        except (OSError, HTTPException, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            # Not the error itself, which would keep the socket.
            return str(error) or type(error).__name__


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in url or parts.query:
        raise ConfigError(f"{url!r} is not where a nats-server's monitoring is; write http://127.0.0.1:8222")
    return url.rstrip("/")


def _server(said: _Answers, *, is_up: bool) -> _Samples:
    yield UP, {}, int(is_up)
    varz = said.varz or {}
    for key, value in _numbers(varz):
        name = f"gnatsd_varz_{key}"
        yield _KNOWN.get(name) or _gauge(name, key), {}, value
    if said.connz is not None:
        yield from _connections(said.connz.connections)
    if said.ended is not None:
        for name, ended in _by_name(said.ended.connections).items():
            if slow := sum("Slow Consumer" in one.reason for one in ended):
                yield CONNECTION_SLOW, {"name": name}, slow
    if said.jsz is not None:
        yield from _jetstream(said.jsz, str(varz.get("server_name", "")))


def _numbers(said: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """All numbers, those of tables within it too."""
    for key, value in said.items():
        if not _NAME.match(key):
            continue
        if isinstance(value, dict):
            yield from _numbers(cast("dict[str, Any]", value), f"{before}{key}_")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield before + key, value


def _connections(listed: list[_Connection]) -> _Samples:
    yield LISTED, {}, len(listed)
    for path, metric in _SUMS.items():
        yield metric, {}, sum(map(attrgetter(path), listed))
    for name, connections in _by_name(listed).items():
        yield CONNECTION_SUBSCRIPTIONS, {"name": name}, sum(one.subscriptions for one in connections)
        yield CONNECTION_PENDING, {"name": name}, sum(one.pending_bytes for one in connections)


def _by_name(connections: list[_Connection]) -> dict[str, list[_Connection]]:
    found: dict[str, list[_Connection]] = {}
    for one in connections:
        name = one.name if one.name in found or len(found) < _MOST_NAMES else OTHER
        found.setdefault(name, []).append(one)
    return found


def _jetstream(said: _Jsz, server: str) -> _Samples:
    meta = said.meta_cluster
    labels = {"server_name": server, "cluster": meta.name, "domain": said.config.domain}
    labels |= meta.labels("meta", server)
    yield from _values(said, _JETSTREAM, labels)
    room = _MOST_STREAMS
    for account in said.account_details:
        of_account = labels | {"account": account.name, "account_id": account.id}
        for stream in account.stream_detail[:room]:
            room -= 1
            yield from _of_stream(stream, of_account, server)


def _of_stream(stream: _StreamDetail, labels: Labels, server: str) -> _Samples:
    labels = labels | {"stream_name": stream.name} | stream.cluster.labels("stream", server)
    yield from _values(stream, _STREAM, labels)
    for consumer in stream.consumer_detail[:_MOST_STREAMS]:
        whose = {"consumer_name": consumer.name} | consumer.cluster.labels("consumer", server)
        yield from _values(consumer, _CONSUMER, labels | whose)


def _values(said: msgspec.Struct, table: dict[str, Metric], labels: Labels) -> _Samples:
    for path, metric in table.items():
        yield metric, labels, int(attrgetter(path)(said))
