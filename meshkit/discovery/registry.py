"""The client's half of discovery: who is there, what they offer, what they did, and how they are."""

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import datetime

import msgspec

from meshkit.discovery.health import HealthResponse, health_subject
from meshkit.discovery.protocol import (
    NAME,
    EndpointInfo,
    EndpointStats,
    InfoResponse,
    PingResponse,
    Response,
    StatsResponse,
    UnreadableReplyError,
    control_subject,
    decode,
    version_key,
)
from meshkit.errors import DeadlineExceeded, Forbidden, NoResponders, NotFound
from meshkit.transport import Transport

log = logging.getLogger("meshkit.discovery")

PING_SECONDS = 1.0


class DiscoveredEndpoint(EndpointStats, frozen=True, kw_only=True):
    """What an endpoint is and what it did, times in nanoseconds; `queue_group` is empty if it has none."""

    metadata: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class DiscoveredInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One running instance of a service.

    Attributes:
        id: Its id.
        version: The service's version that it runs.
        metadata: The service's metadata there.
        started: Since when it counts; None if it did not tell, and its endpoints' counts are then 0.
        healthy: Whether its health checks pass; None for an instance that does not answer on `_MESH.health`.
        checks: For each of its health checks "ok", or what is wrong.
        endpoints: Its endpoints in the order in which they were declared.
    """

    id: str
    version: str
    metadata: dict[str, str]
    started: datetime | None
    healthy: bool | None
    checks: dict[str, str]
    endpoints: tuple[DiscoveredEndpoint, ...]


class DiscoveredService(msgspec.Struct, frozen=True, kw_only=True):
    """All running instances of a service.

    Attributes:
        name: Its name.
        description: What the newest version says it is.
        versions: The versions that run, the oldest first.
        instances: The instances, by version and id.
        endpoints: Their endpoints, those of the same name, subject and queue group added up. The metadata is
            the newest version's, `last_error` that of one of the instances that had any.
    """

    name: str
    description: str
    versions: tuple[str, ...]
    instances: tuple[DiscoveredInstance, ...]
    endpoints: tuple[DiscoveredEndpoint, ...]


class PingedInstance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that answered a ping.

    Attributes:
        service: The service's name.
        id: The instance's id.
        version: The service's version that it runs.
        rtt_ms: Milliseconds for a question to it alone and back; None if it did not answer a second one.
        healthy: Whether its health checks pass; None if it does not answer on `_MESH.health`.
    """

    service: str
    id: str
    version: str
    rtt_ms: float | None
    healthy: bool | None


async def services(transport: Transport) -> list[DiscoveredService]:
    """All services that answer, by name. Takes a third of a second, or as long as answers come."""
    return await _discover(transport)


async def service(transport: Transport, name: str, instance: str = "") -> DiscoveredService:
    """One service.

    Args:
        transport: The connection to ask on.
        name: The service's name.
        instance: The id of the one instance to ask; all of them if empty.

    Raises:
        NotFound: Nobody of that name, or that id, answers; the text says who does.
    """
    if found := await _discover(transport, name, instance):
        return found[0]
    raise await _missing(transport, name, instance)


async def _missing(transport: Transport, name: str, instance: str = "") -> NotFound:
    there = await instances(transport)
    if ids := sorted(one.id for one in there if one.name == name):
        return NotFound(f"service {name!r} has no instance {instance!r}; its instances: {', '.join(ids)}")
    names = ", ".join(sorted({one.name for one in there})) or "none"
    return NotFound(f"no service {name!r} answers; services that do: {names}")


async def instances(transport: Transport, name: str = "") -> list[PingResponse]:
    """The instances of a service, or of all services, by service, version and id."""
    answers = await _ask(transport, control_subject("PING"), (name,), PingResponse)
    return sorted(answers, key=_order)


async def health(transport: Transport, name: str = "", instance: str = "") -> list[HealthResponse]:
    """The health of all instances that speak of it, of those of a service, or of one."""
    try:
        return await _ask(transport, health_subject(), (name, instance), HealthResponse)
    except Forbidden:  # who may use the protocol and no more can look around, too: health is not known then
        return []


async def ping(transport: Transport, name: str = "") -> list[PingedInstance]:
    """Ping the instances of a service, or of all services, by service, version and id.

    Raises:
        NotFound: Nobody of that name answers; the text says who does.
    """
    there, reports = await asyncio.gather(instances(transport, name), health(transport, name))
    if name and not there:
        raise await _missing(transport, name)
    healthy = {(report.service, report.id): report.healthy for report in reports}
    return [
        PingedInstance(
            service=one.name,
            id=one.id,
            version=one.version,
            # One after the other: a round trip is not to include the others' answers.
            rtt_ms=await _round_trip(transport, control_subject("PING", one.name, one.id)),
            healthy=healthy.get((one.name, one.id)),
        )
        for one in there
    ]


async def _round_trip(transport: Transport, subject: str) -> float | None:
    deadline = asyncio.get_running_loop().time() + PING_SECONDS
    before = time.perf_counter()  # uvloop's clock has milliseconds only
    try:
        await transport.request(subject, b"", b"", deadline)
    except (NoResponders, DeadlineExceeded):
        return None
    return (time.perf_counter() - before) * 1000


async def _ask(
    transport: Transport, subject: str, scope: tuple[str, ...], response: type[Response]
) -> list[Response]:
    """The answers that can be read."""
    tokens = [token for token in scope if token]
    if not all(NAME.match(token) for token in tokens):
        return []  # nobody can have such a name, and with a dot or `*` in it the subject would mean another
    subject = ".".join((subject, *tokens))
    answers: list[Response] = []
    for message in await transport.gather(subject):
        try:
            answers.append(decode(message.payload, response))
        except UnreadableReplyError as error:
            log.warning("a reply to %s is left out: %s", subject, error)
    return answers


async def _discover(transport: Transport, name: str = "", instance: str = "") -> list[DiscoveredService]:
    infos, stats, reports = await asyncio.gather(
        _ask(transport, control_subject("INFO"), (name, instance), InfoResponse),
        _ask(transport, control_subject("STATS"), (name, instance), StatsResponse),
        health(transport, name, instance),
    )
    stats_of = {(one.name, one.id): one for one in stats}
    report_of = {(one.service, one.id): one for one in reports}
    by_name: dict[str, list[tuple[InfoResponse, DiscoveredInstance]]] = {}
    for info in sorted(infos, key=_order):
        key = (info.name, info.id)
        found = _instance(info, stats_of.get(key), report_of.get(key))
        by_name.setdefault(info.name, []).append((info, found))
    return [
        DiscoveredService(
            name=name,
            description=found[-1][0].description,
            versions=tuple(dict.fromkeys(info.version for info, _ in found)),
            instances=tuple(instance for _, instance in found),
            endpoints=_added_up(endpoint for _, instance in found for endpoint in instance.endpoints),
        )
        for name, found in by_name.items()
    ]


def _order(one: PingResponse | InfoResponse) -> tuple[object, ...]:
    return (one.name, version_key(one.version), one.id)


def _instance(
    info: InfoResponse, stats: StatsResponse | None, report: HealthResponse | None
) -> DiscoveredInstance:
    counted = list(stats.endpoints) if stats else []
    return DiscoveredInstance(
        id=info.id,
        version=info.version,
        metadata=info.metadata,
        started=datetime.fromisoformat(stats.started) if stats else None,
        healthy=report.healthy if report else None,
        checks=report.checks if report else {},
        endpoints=tuple(_endpoint(endpoint, counted) for endpoint in info.endpoints),
    )


def _endpoint(info: EndpointInfo, counted: list[EndpointStats]) -> DiscoveredEndpoint:
    """The endpoint with its statistics, taken out of `counted`: several may share name and subject."""
    same = [one for one in counted if (one.name, one.subject) == (info.name, info.subject)]
    # After a reset, Go's statistics have lost the queue group.
    stats = next((one for one in same if one.queue_group == info.queue_group), same[0] if same else None)
    if stats is None:
        stats = EndpointStats(name=info.name, subject=info.subject)
    else:
        counted.remove(stats)
    fields = msgspec.structs.asdict(stats) | msgspec.structs.asdict(info)
    return DiscoveredEndpoint(**fields)


def _added_up(endpoints: Iterable[DiscoveredEndpoint]) -> tuple[DiscoveredEndpoint, ...]:
    groups: dict[tuple[str, str, str], list[DiscoveredEndpoint]] = {}
    for endpoint in endpoints:
        groups.setdefault((endpoint.name, endpoint.subject, endpoint.queue_group), []).append(endpoint)
    return tuple(_sum(group) for group in groups.values())


def _sum(group: list[DiscoveredEndpoint]) -> DiscoveredEndpoint:
    requests = sum(one.num_requests for one in group)
    time = sum(one.processing_time for one in group)
    return msgspec.structs.replace(
        group[-1],
        num_requests=requests,
        num_errors=sum(one.num_errors for one in group),
        last_error=next((one.last_error for one in reversed(group) if one.last_error), ""),
        processing_time=time,
        average_processing_time=time // requests if requests else 0,
        data=msgspec.UNSET,
    )
