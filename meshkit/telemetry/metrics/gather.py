"""The metrics of the whole mesh, gathered over NATS: no service needs a port for it."""

import asyncio
import functools
import logging
from collections.abc import Iterable
from datetime import datetime
from time import perf_counter

import msgspec

from meshkit.discovery.protocol import StatsResponse, UnreadableReplyError, control_subject, decode
from meshkit.errors import Disconnected, MeshError
from meshkit.telemetry.metrics.catalogue import Family, Labels, Metric
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.monitoring import Monitoring
from meshkit.telemetry.metrics.page import page
from meshkit.telemetry.report import STATS, Report, readable
from meshkit.telemetry.report import decode as decode_report
from meshkit.transport import Message, Transport

log = logging.getLogger("meshkit.telemetry")

# Seconds to wait for the first answer, and for all of them.
_FIRST, _ALL = 0.5, 3.0
# Endpoints of an instance of another client.
_MOST_ENDPOINTS = 256
# Of a report: bytes, characters of its sender's name and id, and entries, which are endpoints, targets, and
# what became of their calls. An instance that calls as many targets as are counted has some 1000, and 200 kB.
# Each takes up to 35 lines of the page, all with the name, and while they are written nothing else runs.
_MOST_BYTES, _MOST_NAME, _MOST_ENTRIES = 512 * 1024, 256, 2048

UP = Metric("meshkit.gather.up", "gauge", "1", "Whether the mesh could be asked")
DURATION = Metric("meshkit.gather.duration", "gauge", "s", "How long it took to gather all of this")
INSTANCES = Metric("meshkit.gather.instances", "gauge", "{instance}", "Instances of meshkit that answered")
OTHERS = Metric(
    "meshkit.gather.other_instances", "gauge", "{instance}", "Instances of other clients that answered"
)
UNREADABLE = Metric(
    "meshkit.gather.unreadable",
    "gauge",
    "{answer}",
    "Answers that were left out: of another version of meshkit, too large, or none that can be understood",
)
MICRO_REQUESTS = Metric(
    "nats.micro.requests",
    "counter",
    "{call}",
    "Calls of endpoints of other clients, such as Go's: what they answer on $SRV.STATS",
    ("rpc.method",),
)
MICRO_ERRORS = Metric(
    "nats.micro.errors",
    "counter",
    "{call}",
    "Of the calls of other clients' endpoints those that failed, as they count",
    ("rpc.method",),
)
MICRO_PROCESSING = Metric(
    "nats.micro.processing_time",
    "counter",
    "s",
    "How long the calls of other clients' endpoints took together",
    ("rpc.method",),
)
MICRO_STARTED = Metric(
    "nats.micro.start_time",
    "gauge",
    "s",
    "When the instance of another client started, in seconds since 1970",
    ("service.version",),
)

GATHER_CATALOGUE = tuple(value for value in dict(globals()).values() if isinstance(value, Metric))


class Gatherer:
    """Gathers what all instances report, what those of other clients do, and what the servers say.

    Args:
        transport: The connection to ask on.
        monitoring: The servers'.
    """

    def __init__(self, transport: Transport, monitoring: Monitoring) -> None:
        self._transport = transport
        self._monitoring = monitoring
        self._gathering: asyncio.Task[str] | None = None
        self._trouble = ""

    async def page(self) -> str:
        """All metrics as they are now, for Prometheus; who asks while they are gathered gets the same."""
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())
        return await asyncio.shield(self._gathering)

    async def _gather(self) -> str:
        started = perf_counter()
        mesh, servers = await asyncio.gather(self._mesh(), self._monitoring.families())
        return page([*mesh, *servers, _one(DURATION, perf_counter() - started)])

    async def _mesh(self) -> list[Family]:
        try:
            reports, stats = await asyncio.gather(self._ask(STATS), self._ask(control_subject("STATS")))
        except MeshError as error:
            self._say(f"the mesh cannot be asked: {error.message}")
            return [_one(UP, 0)]
        unreadable: list[str] = []
        own = {(each.name, each.id): each for each in readable(reports, _report, unreadable)}
        # Instances of meshkit answer both, and the one has all that the other has.
        stats = [message for message in stats if _sender(message) not in own]
        of_stats = functools.partial(decode, response=StatsResponse)
        others = {(each.name, each.id): each for each in readable(stats, of_stats, unreadable)}
        # They come in any order, and it is said anew when it is another one.
        self._say(f"{len(unreadable)} answers are left out, such as: {min(unreadable)}" if unreadable else "")
        return [
            *families(own.values()),
            *_others(others.values()),
            _one(UP, 1),
            _one(INSTANCES, len(own)),
            _one(OTHERS, len(others)),
            _one(UNREADABLE, len(unreadable)),
        ]

    async def _ask(self, subject: str) -> list[Message]:
        if not self._transport.is_connected:  # it would wait for seconds until it is
            raise Disconnected("there is no connection to NATS")
        return await self._transport.gather(subject, timeout=_FIRST, most=_ALL)

    def _say(self, trouble: str) -> None:
        """Log what is wrong, once as long as it stays the same."""
        if trouble and trouble != self._trouble:
            log.warning(trouble)
        self._trouble = trouble


class _Sender(msgspec.Struct):
    name: str = ""
    id: str = ""


def _sender(message: Message) -> tuple[str, str]:
    """Who sent an answer, without looking at the rest, which is the most of it."""
    try:
        sender = msgspec.json.decode(message.payload, type=_Sender)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", ""
    return sender.name, sender.id


def _report(payload: bytes) -> Report:
    """What an instance reports, if it is of a size that can be shown."""
    report = decode_report(payload)
    entries = len(report.served) + len(report.called)
    entries += sum(len(each.outcomes) for each in (*report.served, *report.called))
    entries += sum(len(each.attempts) + len(each.refusals) for each in report.called)
    name = len(report.name) + len(report.id)
    if entries > _MOST_ENTRIES or len(payload) > _MOST_BYTES or name > _MOST_NAME:
        raise UnreadableReplyError(
            f"a report that is too large: {entries} entries, {len(payload)} bytes, {name} characters of name"
        )
    return report


def _others(instances: Iterable[StatsResponse]) -> list[Family]:
    """What instances of other clients count, whatever their language: endpoints of one subject together."""
    found: dict[Metric, dict[tuple[str, str, str], float]] = {
        metric: {} for metric in (MICRO_REQUESTS, MICRO_ERRORS, MICRO_PROCESSING)
    }
    started: list[tuple[Labels, float]] = []
    for one in instances:
        whose = {"service.name": one.name, "service.instance.id": one.id}
        since = datetime.fromisoformat(one.started).timestamp()
        started.append((whose | {"service.version": one.version}, since))
        for endpoint in one.endpoints[:_MOST_ENDPOINTS]:
            key = (one.name, one.id, endpoint.subject)
            for metric, value in (
                (MICRO_REQUESTS, endpoint.num_requests),
                (MICRO_ERRORS, endpoint.num_errors),
                (MICRO_PROCESSING, endpoint.processing_time / 1e9),
            ):
                found[metric][key] = found[metric].get(key, 0) + value
    names = ("service.name", "service.instance.id", "rpc.method")
    values = [
        Family(metric, [(dict(zip(names, key, strict=True)), value) for key, value in series.items()])
        for metric, series in found.items()
    ]
    return [family for family in (Family(MICRO_STARTED, list(started)), *values) if family.samples]


def _one(metric: Metric, value: float) -> Family:
    return Family(metric, [({}, value)])
