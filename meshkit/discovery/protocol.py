"""The NATS services protocol (ADR-32, revision 6): what an instance answers on `$SRV`, written and read.

What meshkit sends satisfies the clients of all languages and the JSON schemas of the `nats` command line.
What Go, JavaScript and Python services send differs in what is left out or null; `decode` evens that out.
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-32.md
"""

import re
import secrets
import string
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec

from meshkit.telemetry.distribution import Count

# Anchored, without `$`, which would let a trailing newline through.
NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
"""Names of services and of endpoints."""

VERSION = re.compile(
    r"(?P<major>0|[1-9][0-9]*)\.(?P<minor>0|[1-9][0-9]*)\.(?P<patch>0|[1-9][0-9]*)"
    r"(?:-(?P<prerelease>(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
    r"(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+(?P<build>[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?\Z"
)
"""Versions: the expression that https://semver.org suggests."""

# What meshkit writes into an endpoint's metadata, beside what is declared.
DESCRIPTION = "description"
DECLARED_SUBJECT = "subject"
POLICY = "policy"
"""What callers are told to do, as JSON."""
TIMEOUT = "timeout"
IDEMPOTENT = "idempotent"
STREAM = "stream"
"""Whether it yields; the reply schema is then that of one item."""
REQUEST_SCHEMA = "request_schema"
REPLY_SCHEMA = "reply_schema"
ENDPOINT_KEYS = frozenset(
    {DESCRIPTION, DECLARED_SUBJECT, POLICY, TIMEOUT, IDEMPOTENT, STREAM, REQUEST_SCHEMA, REPLY_SCHEMA}
)

VERBS = ("PING", "INFO", "STATS")

# Checked in what others send: these are asked for by name, as tokens of subjects.
_Token = Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}")]

_ID_CHARACTERS = string.digits + string.ascii_letters
_ID_LENGTH = 22


class _Standard(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The fields of every answer."""

    name: _Token
    id: _Token
    version: str
    metadata: dict[str, str] = {}


class PingResponse(_Standard, frozen=True, kw_only=True, tag="io.nats.micro.v1.ping_response"):
    """The answer to `$SRV.PING`: who is there."""


class EndpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint is; `queue_group` is empty where there is none."""

    name: str
    subject: str
    queue_group: str = ""
    metadata: dict[str, str] = {}


class InfoResponse(_Standard, frozen=True, kw_only=True, tag="io.nats.micro.v1.info_response"):
    """The answer to `$SRV.INFO`: what an instance offers."""

    description: str = ""
    endpoints: tuple[EndpointInfo, ...] = ()

    def ping(self) -> PingResponse:
        """The answer to `$SRV.PING` of the same instance."""
        return PingResponse(name=self.name, id=self.id, version=self.version, metadata=self.metadata)


class EndpointStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint did since its instance started; times are in nanoseconds.

    `data` is whatever else the service counts; it is left out of the JSON where it is not set.
    """

    name: str
    subject: str
    queue_group: str = ""
    num_requests: Count = 0
    num_errors: Count = 0
    last_error: str = ""
    processing_time: Count = 0
    average_processing_time: Count = 0
    data: Any = msgspec.UNSET


class StatsResponse(_Standard, frozen=True, kw_only=True, tag="io.nats.micro.v1.stats_response"):
    """The answer to `$SRV.STATS`: what an instance did since `started`, which `timestamp` writes."""

    started: str
    endpoints: tuple[EndpointStats, ...] = ()


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]

Response = TypeVar("Response", bound=msgspec.Struct)


class UnreadableReplyError(ValueError):
    """A reply that is not what the protocol describes; the text names its sender and what is wrong."""


def new_instance_id() -> str:
    """A new id of an instance: 22 characters, like the NUIDs of the official clients, but from `secrets`."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))


def timestamp(moment: datetime) -> str:
    """A point in time as `started` carries it: RFC 3339 in UTC with milliseconds and `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def control_subject(verb: str, name: str = "", instance: str = "") -> str:
    """Where all services, the instances of one, or one instance answer a verb.

    Args:
        verb: PING, INFO or STATS.
        name: The service; all of them if empty.
        instance: The id of the instance; all of them if empty.
    """
    return ".".join(filter(None, ("$SRV", verb, name, instance)))


def control_subjects(name: str, instance: str) -> tuple[str, ...]:
    """The nine subjects on which an instance answers."""
    scopes = ((), (name,), (name, instance))
    return tuple(control_subject(verb, *scope) for verb in VERBS for scope in scopes)


def version_key(version: str) -> tuple[Any, ...]:
    """Sorts versions by the precedence of semantic versioning; what is no such version comes first."""
    match = VERSION.match(version)
    if match is None:
        return (-1, -1, -1, False, (), version)
    prerelease = match["prerelease"]
    identifiers = prerelease.split(".") if prerelease else ()
    return (
        int(match["major"]),
        int(match["minor"]),
        int(match["patch"]),
        prerelease is None,
        tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in identifiers),
        match["build"] or "",
    )


def decode(payload: bytes, response: type[Response]) -> Response:
    """An answer, from whichever implementation.

    Args:
        payload: The reply's JSON.
        response: PingResponse, InfoResponse, StatsResponse or another answer with `name` and `id`.

    Raises:
        UnreadableReplyError: Something that cannot be done without is missing or of a wrong type.
    """
    try:
        fields = _without_nulls(msgspec.json.decode(payload, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableReplyError(f"it is no JSON object: {error}") from error
    try:
        if "endpoints" in fields:
            raw = msgspec.convert(fields["endpoints"], list[dict[str, Any]])
            fields["endpoints"] = [_endpoint(endpoint) for endpoint in raw]
        if "started" in fields:
            fields["started"] = timestamp(msgspec.convert(fields["started"], _Moment))
        return msgspec.convert(fields, response)
    except (msgspec.ValidationError, OverflowError) as error:
        sender = f"{fields.get('name', '?')}/{fields.get('id', '?')}"
        raise UnreadableReplyError(f"from {sender}: {error}") from error


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Null means absent: nats-py and Go send the one where JavaScript does the other."""
    return {key: value for key, value in fields.items() if value is not None}


def _endpoint(fields: dict[str, Any]) -> dict[str, Any]:
    fields = _without_nulls(fields)
    for key in ("processing_time", "average_processing_time"):
        if isinstance(fields.get(key), float):  # JavaScript's iterators divide without rounding
            fields[key] = round(fields[key])
    if not isinstance(fields.get("last_error", ""), str):  # ADR-32 says `Error`, and some send an object
        fields["last_error"] = msgspec.json.encode(fields["last_error"]).decode()
    return fields
