"""A server that a traced message passed, and what it did with the message: what one event says (ADR-41)."""

from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

from meshkit.telemetry.paths.events import Event, Happened

Kind: TypeAlias = Literal[
    "client", "router", "gateway", "system", "leafnode", "jetstream", "account", "unknown"
]
_KINDS: tuple[Kind, ...] = ("client", "router", "gateway", "system", "leafnode", "jetstream", "account")

# How a server begins to say that the next one is too old to tell its part: no failure.
_DELIVERED = "Message delivered but"


class _Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="step"):
    """What a server did with the message.

    Attributes:
        after: Seconds since the server got the message, by that server's clock; None if it said nothing.
    """

    after: float | None = None


class Mapping(_Step, frozen=True, tag="mapping"):
    """A subject mapping sent it to another subject."""

    to: str


class ServiceImport(_Step, frozen=True, tag="service import"):
    """It went to a service of another account, from one subject to another."""

    account: str
    source: str = msgspec.field(name="from")
    to: str


class StreamExport(_Step, frozen=True, tag="stream export"):
    """It went to who imports a stream of subjects into another account."""

    account: str
    to: str


class Stored(_Step, frozen=True, tag="jetstream"):
    """It came to a JetStream stream.

    Attributes:
        stream: The stream's name.
        subject: What it is stored under.
        no_interest: Whether it was not kept, as the stream keeps what consumers want, and there are none.
        error: Why the stream does not take it.
    """

    stream: str
    subject: str = ""
    no_interest: bool = False
    error: str = ""


class Egress(_Step, frozen=True, tag="egress"):
    """It left the server.

    Attributes:
        kind: What the connection is that it left by.
        name: What is at the other end: a client's name, or a server's.
        cid: The connection's number.
        account: The account, where it is another than the one in which the message came.
        subscription: A client's subscription.
        queue: Its queue group.
        error: Why it was not delivered.
        hop: The server at the other end.
    """

    kind: Kind
    name: str = ""
    cid: int = 0
    account: str = ""
    subscription: str = ""
    queue: str = ""
    error: str = ""
    hop: "Hop | None" = None


Step: TypeAlias = Mapping | ServiceImport | StreamExport | Stored | Egress


class Hop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A server that the message passed.

    Attributes:
        server: The server's name.
        id: Its id.
        cluster: Its cluster.
        version: Its version.
        kind: What the connection is that the message came in by.
        name: What is at the other end: a client's name, or a server's.
        cid: The connection's number.
        account: The account that it came in.
        subject: The subject that it had then.
        at: When it came, by the server's clock; None if nothing was heard of the server.
        transit: Seconds since the server before sent it. The clocks of two machines are compared here: below
            zero they differ by more than that.
        error: Why it went no further.
        steps: What was done with it, in that order.
    """

    server: str
    id: str = ""
    cluster: str = ""
    version: str = ""
    kind: Kind
    name: str = ""
    cid: int = 0
    account: str = ""
    subject: str = ""
    at: datetime | None = None
    transit: float | None = None
    error: str = ""
    steps: tuple[Step, ...] = ()


def told_by(event: Event, before: Happened | None = None, onward: dict[int, Hop] | None = None) -> Hop:
    """What one event alone says.

    Args:
        event: The event.
        before: How the message left the server before, where that is known.
        onward: The servers that it went on to, by the identity of how it left for them.
    """
    came = event.events[0]
    behind = onward or {}
    steps = (_step(one, one.ts - came.ts, behind.get(id(one))) for one in event.events[1:])
    return Hop(
        server=event.server.name,
        id=event.server.id,
        cluster=event.server.cluster,
        version=event.server.ver,
        kind=kind(came),
        name=came.name,
        cid=came.cid,
        account=came.acc,
        subject=came.subj,
        at=came.ts,
        transit=None if before is None else (came.ts - before.ts).total_seconds(),
        error=came.error,
        steps=tuple(step for step in steps if step is not None),
    )


def _step(one: Happened, since: timedelta, hop: Hop | None) -> Step | None:
    after = since.total_seconds()
    match one.type:
        case "sm":
            return Mapping(after=after, to=one.to)
        case "si":
            return ServiceImport(after=after, account=one.acc, source=one.source, to=one.to)
        case "se":
            return StreamExport(after=after, account=one.acc, to=one.to)
        case "js":
            nobody = one.nointerest
            return Stored(
                after=after, stream=one.stream, subject=one.subject, no_interest=nobody, error=one.error
            )
        case "eg":
            return Egress(
                after=after,
                kind=kind(one),
                name=one.name,
                cid=one.cid,
                account=one.acc,
                subscription=one.sub,
                queue=one.queue,
                error=one.error,
                hop=hop,
            )
        case _:
            return None  # of a server newer than this


def failures(hop: Hop) -> list[str]:
    """What went wrong at a server, in its words."""
    texts = [hop.error, *(step.error for step in hop.steps if isinstance(step, Egress | Stored))]
    return [text for text in texts if text and not text.startswith(_DELIVERED)]


def is_unheard(hop: Hop) -> bool:
    """Whether this is where a message was sent to, and there was nobody for it."""
    is_kept = all(isinstance(step, Mapping) for step in hop.steps)
    return hop.kind == "client" and is_kept and not hop.error


def hidden_in(hop: Hop) -> str:
    """The account in which the trace ends at this server; empty if it does not."""
    last = hop.steps[-1] if hop.steps else None
    return last.account if isinstance(last, ServiceImport | StreamExport) else ""


def kind(one: Happened) -> Kind:
    """What kind of connection a message came or left by."""
    return _KINDS[one.kind] if 0 <= one.kind < len(_KINDS) else "unknown"
