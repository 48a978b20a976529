"""What a service says of itself: the protocol's INFO and STATS, drawn from its declaration and statistics."""

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from meshkit.discovery.protocol import (
    DECLARED_SUBJECT,
    DESCRIPTION,
    IDEMPOTENT,
    POLICY,
    REPLY_SCHEMA,
    REQUEST_SCHEMA,
    STREAM,
    TIMEOUT,
    EndpointInfo,
    EndpointStats,
    InfoResponse,
    StatsResponse,
    timestamp,
)
from meshkit.layers.statistics import Statistics
from meshkit.policies import put_together
from meshkit.service import Endpoint, Service
from meshkit.telemetry.report import Served

log = logging.getLogger("meshkit.discovery")


def describe(service: Service, instance_id: str, max_payload: int) -> InfoResponse:
    """The answer to `$SRV.INFO`.

    Args:
        service: What is described.
        instance_id: The instance that describes itself.
        max_payload: Bytes that an answer may have; the JSON Schemas are left out where they would exceed it.
    """
    info = _info(service, instance_id, schemas=True)
    if len(msgspec.json.encode(info)) > max_payload:
        log.warning(
            "%s has too many endpoints for one message; their schemas are not announced", service.name
        )
        info = _info(service, instance_id, schemas=False)
    return info


def _info(service: Service, instance_id: str, *, schemas: bool) -> InfoResponse:
    return InfoResponse(
        name=service.name,
        id=instance_id,
        version=service.version,
        metadata=dict(service.metadata),
        description=service.description,
        endpoints=tuple(
            EndpointInfo(
                name=endpoint.name,
                subject=endpoint.pattern.wire,
                queue_group=endpoint.queue or "",
                metadata=_metadata(endpoint, schemas=schemas),
            )
            for endpoint in service.endpoints
        ),
    )


def announce(service: Service, instance_id: str) -> InfoResponse:
    """What callers are to know before they call: the subjects of the endpoints, and their policies."""
    return InfoResponse(
        name=service.name,
        id=instance_id,
        version=service.version,
        endpoints=tuple(
            EndpointInfo(
                name=endpoint.name,
                subject=endpoint.pattern.wire,
                metadata=_policy(_told(endpoint)),
            )
            for endpoint in service.endpoints
        ),
    )


def _told(endpoint: Endpoint[..., Any, Any]) -> dict[str, Any]:
    """What callers are told to do, field by field."""
    return vars(put_together(endpoint.call_policies)[0])


def _policy(told: dict[str, Any]) -> dict[str, str]:
    return {POLICY: msgspec.json.encode(told).decode()} if told else {}


def _metadata(endpoint: Endpoint[..., Any, Any], *, schemas: bool) -> dict[str, str]:
    metadata: dict[str, str] = {}
    if documentation := (endpoint.function.__doc__ or "").strip():
        metadata[DESCRIPTION] = documentation.splitlines()[0]
    if endpoint.subject != endpoint.pattern.wire:
        metadata[DECLARED_SUBJECT] = endpoint.subject
    told = _told(endpoint)
    metadata |= _policy(told)
    if "timeout" in told:
        metadata[TIMEOUT] = f"{told['timeout']:g}"
    if told.get("idempotent"):
        metadata[IDEMPOTENT] = "true"
    if endpoint.is_stream:
        metadata[STREAM] = "true"
    if schemas:
        signature = endpoint.signature
        for key, schema in (
            (REQUEST_SCHEMA, signature.request_schema),
            (REPLY_SCHEMA, signature.reply_schema),
        ):
            if schema is not None:
                metadata[key] = msgspec.json.encode(schema).decode()
    return metadata | dict(endpoint.metadata)


def stats(
    service: Service, instance_id: str, started: datetime, statistics: Iterable[tuple[Statistics, Served]]
) -> StatsResponse:
    """The answer to `$SRV.STATS`.

    Args:
        service: What is reported on.
        instance_id: The instance that reports.
        started: When it started.
        statistics: What was counted of each of its endpoints, and what is reported of it.
    """
    return StatsResponse(
        name=service.name,
        id=instance_id,
        version=service.version,
        metadata=dict(service.metadata),
        started=timestamp(started),
        endpoints=tuple(
            _stats(endpoint, *counted)
            for endpoint, counted in zip(service.endpoints, statistics, strict=True)
        ),
    )


def _stats(endpoint: Endpoint[..., Any, Any], counted: Statistics, served: Served) -> EndpointStats:
    nanoseconds = int(counted.processing * 1e9)
    return EndpointStats(
        name=endpoint.name,
        subject=endpoint.pattern.wire,
        queue_group=endpoint.queue or "",
        num_requests=counted.requests,
        num_errors=counted.errors,
        last_error=counted.last_error,
        processing_time=nanoseconds,
        average_processing_time=nanoseconds // max(1, counted.requests),
        data=served,
    )
