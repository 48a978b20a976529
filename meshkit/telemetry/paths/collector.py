"""What NATS servers tell of messages becomes spans of the traces that those belong to.

Two kinds of events are read: the path of a message (ADR-41), which servers publish where an account has a
`msg_trace` destination and the message's `traceparent` is sampled, and the latency of a service (ADR-3),
where an export asks for it. Each event is read by itself, and span ids follow from what is in it: several
collectors can share the work, and no event waits for another.
"""

import asyncio
import functools
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Annotated, Any, TypeAlias

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from meshkit.telemetry.paths.events import Event, content, parse
from meshkit.telemetry.paths.hops import Hop, failures, is_unheard, told_by
from meshkit.transport import Message, Transport

log = logging.getLogger("meshkit.telemetry")

QUEUE = "meshkit-collect"

_LATENCY = "io.nats.server.metric.v1.service_latency"
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?", re.IGNORECASE)
# What servers add to the headers of a message on its way.
_ADDED = "nats-"
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("meshkit", version("meshkit"))


class Party(msgspec.Struct, frozen=True):
    """Who asked, or who answered; who asked says more than its account only if it wants to (`share: true`).

    Attributes:
        acc: The account.
        name: The connection's name.
        server: The server that it is connected to.
        rtt: Nanoseconds from that server there and back.
    """

    acc: str = ""
    name: str = ""
    server: str = ""
    rtt: int = 0


class Latency(msgspec.Struct, frozen=True):
    """How long a service of another account took to answer a request, in nanoseconds (ADR-3).

    Attributes:
        id: The event's id.
        start: When the requestor sent it.
        service: What the service took.
        system: What was spent between servers.
        total: All together, with the way from requestor and responder to their servers.
        status: 200, 400 if the request was none, 408 if the requestor waited no more, 503 if nobody listens,
            504 if the service did not answer in time.
        description: What went wrong.
        requestor: Who asked.
        responder: Who answered; None if nobody did.
        header: The request's headers by which the server decided to measure it.
    """

    id: str
    start: Annotated[datetime, msgspec.Meta(tz=True)]
    service: int = 0
    system: int = 0
    total: int = 0
    status: int = 200
    description: str = ""
    requestor: Party = Party()
    responder: Party | None = None
    header: dict[str, list[str]] = msgspec.field(default_factory=dict[str, list[str]])


Told: TypeAlias = Event | Latency


class Collected(msgspec.Struct):
    """What was collected so far.

    Attributes:
        events: How many events of both kinds.
        spans: How many spans they became.
        no_trace: Events that belong to no trace.
        unreadable: Messages that are no such events.
    """

    events: int = 0
    spans: int = 0
    no_trace: int = 0
    unreadable: int = 0


class _Type(msgspec.Struct):
    type: str = ""


def read(message: Message) -> Told:
    """An event, told apart by what is in it.

    Raises:
        ValueError: It is neither of them.
    """
    payload = content(message)
    try:
        if msgspec.json.decode(payload, type=_Type).type == _LATENCY:
            return msgspec.json.decode(payload, type=Latency)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return parse(payload)


@asynccontextmanager
async def collecting(
    transport: Transport,
    subjects: Sequence[str],
    exporter: SpanExporter | None,
    *,
    show: Callable[[Told], object] | None = None,
) -> AsyncGenerator[Collected]:
    """Collect for the time of a block; at its end everything is exported.

    Args:
        transport: The connection.
        subjects: Where events are published, wildcards allowed. Several collectors share them.
        exporter: Where spans go; None for nowhere.
        show: Gets each event.

    Raises:
        Forbidden: The connection's user may not listen on a subject.
    """
    collected = Collected()
    processor = None if exporter is None else BatchSpanProcessor(exporter)

    def take(message: Message) -> None:
        try:
            told = read(message)
        except ValueError as error:
            collected.unreadable += 1
            log.warning("a message on %s is no event of a NATS server: %s", message.subject, error)
            return
        collected.events += 1
        spans = spans_of(told)
        collected.no_trace += not spans
        collected.spans += len(spans)
        if show is not None:
            show(told)
        if processor is not None:
            for span in spans:
                processor.on_end(span)

    subscriptions = [await transport.subscribe(subject, take, QUEUE) for subject in subjects]
    try:
        await transport.flush()
        yield collected
    finally:
        for subscription in subscriptions:
            await subscription.drain()
        if processor is not None:
            await asyncio.to_thread(processor.shutdown)


def trace_of(told: Told) -> tuple[int, int] | None:
    """The trace and the span that an event belongs to, by their ids; None if it belongs to none."""
    header = told.request.header if isinstance(told, Event) else told.header
    for name, values in header.items():
        found = _TRACEPARENT.fullmatch(values[0]) if name.lower() == "traceparent" and values else None
        if found and (ids := (int(found[1], 16), int(found[2], 16))) and all(ids):
            return ids
    return None


def spans_of(told: Told) -> list[ReadableSpan]:
    """The spans that an event becomes; none if it belongs to no trace."""
    ids = trace_of(told)
    if ids is None:
        return []
    return [_passage(told, *ids)] if isinstance(told, Event) else _latency(told, *ids)


# The path of a message


def _passage(event: Event, trace_id: int, parent_id: int) -> ReadableSpan:
    """One server that a message passed: a part of what sent it, or of the server before."""
    hop = told_by(event)
    message = _identity(event, trace_id, parent_id)
    place = event.hop
    if place:
        parent_id = _span_id(message, place.rpartition(".")[0])
    began = event.events[0].ts
    what = {
        "nats.server.name": hop.server,
        "nats.cluster": hop.cluster,
        "nats.account": hop.account,
        "nats.connection.kind": hop.kind,
        "nats.connection.name": hop.name,
        "nats.connection.id": hop.cid,
        "messaging.system": "nats",
        "messaging.destination.name": hop.subject,
        "messaging.message.envelope.size": event.request.msgsize,
    }
    return _span(
        f"nats-server {hop.server}",
        (trace_id, _span_id(message, place), parent_id),
        began,
        max(one.ts for one in event.events),
        resource=_resource(hop.server, hop.id, hop.version),
        attributes=what,
        events=[_step(step, began) for step in hop.steps],
        error=_wrong(hop),
    )


def _step(step: Any, began: datetime) -> SpanEvent:
    said: dict[str, Any] = msgspec.to_builtins(step)
    name, after = said.pop("step"), said.pop("after")
    attributes = {f"nats.{key}": value for key, value in said.items()}
    return SpanEvent(name, attributes, _nanoseconds(began + timedelta(seconds=after)))


def _wrong(hop: Hop) -> str:
    """What went wrong at a server; empty if nothing did."""
    if is_unheard(hop):
        return f"nobody listens on {hop.subject}"
    return "; ".join(failures(hop))


def _identity(event: Event, trace_id: int, parent_id: int) -> str:
    """What is the same in all events of one message, and different in those of the next."""
    headers = sorted(
        (name.lower(), values)
        for name, values in event.request.header.items()
        if not name.lower().startswith(_ADDED)
    )
    return f"{trace_id:032x}{parent_id:016x}{headers}"


# The latency of a service


def _latency(told: Latency, trace_id: int, parent_id: int) -> list[ReadableSpan]:
    """The whole, and its parts one after the other: how long they took is known, not when they were."""
    responder = told.responder or Party()
    whole_id = _span_id(told.id)
    parts = {
        "requestor": told.requestor.rtt,
        "responder": responder.rtt,
        "service": told.service,
        "system": told.system,
    }
    what = {
        "nats.status": told.status,
        "nats.requestor.account": told.requestor.acc,
        "nats.requestor.name": told.requestor.name,
        "nats.responder.account": responder.acc,
        "nats.responder.name": responder.name,
        "messaging.system": "nats",
    }
    resource = _resource(responder.server or told.requestor.server, "", "")
    error = "" if told.status == 200 else told.description or f"status {told.status}"
    end = told.start + timedelta(microseconds=told.total / 1000)
    whole = _span(
        "nats service latency",
        (trace_id, whole_id, parent_id),
        told.start,
        end,
        resource=resource,
        attributes=what,
        error=error,
    )
    spans, began = [whole], told.start
    for name, took in parts.items():
        ended = began + timedelta(microseconds=took / 1000)
        if took:
            ids = (trace_id, _span_id(told.id, name), whole_id)
            spans.append(_span(f"nats latency {name}", ids, began, ended, resource=resource))
        began = ended
    return spans


# Spans


def _span(
    name: str,
    ids: tuple[int, int, int],
    began: datetime,
    ended: datetime,
    *,
    resource: Resource,
    attributes: dict[str, Any] | None = None,
    events: Sequence[SpanEvent] = (),
    error: str = "",
) -> ReadableSpan:
    trace_id, span_id, parent_id = ids
    return ReadableSpan(
        name,
        context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED),
        parent=SpanContext(trace_id, parent_id, is_remote=True, trace_flags=_SAMPLED),
        resource=resource,
        attributes={key: value for key, value in (attributes or {}).items() if value != ""},
        events=events,
        status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET),
        start_time=_nanoseconds(began),
        end_time=_nanoseconds(ended),
        instrumentation_scope=_SCOPE,
    )


@functools.lru_cache(maxsize=1024)
def _resource(name: str, server_id: str, release: str) -> Resource:
    what = {
        "service.name": "nats-server",
        "service.instance.id": name or server_id,
        "service.version": release,
    }
    return Resource({key: value for key, value in what.items() if value})


def _span_id(*parts: str) -> int:
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) or 1  # zero is none


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000) * 1000
