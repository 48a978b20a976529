"""The path of a message through the NATS servers (ADR-41): what they tell of it, and the tree that it makes.

A message with the header `Nats-Trace-Dest` has each server that it passes publish one event to that subject:
how it came in, what became of it there, and where it went. Each server that passes it on writes a number into
it, `2`, then `2.1`, by which the events are put together. Servers do so since 2.11.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from meshkit.errors import BadReply, DeadlineExceeded, Forbidden, MeshError
from meshkit.headers import parse, render
from meshkit.telemetry.paths.events import DESTINATION, ONLY, Event, Happened, decode
from meshkit.telemetry.paths.hops import Egress, Hop, Kind, Stored, failures, hidden_in, kind, told_by
from meshkit.transport import INBOX, Message, Transport

_FIRST_SERVER = (2, 11)
# Seconds after which the other servers know who listens: the `nats` command waits as long.
_KNOWN_AFTER = 0.25
_RESERVED = "nats-trace-"
MISSING = "nothing was heard of this server"


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """Where a message went, or would have gone.

    Attributes:
        subject: What it was sent to.
        delivered: Whether it was delivered, too; else the servers only said where it would have gone.
        complete: Whether every server told its part.
        reached: How many clients and streams got it, or would have.
        hidden: Accounts that it went to, whose servers do not say what became of it there: the import or
            export has no `allow_trace: true`.
        errors: What went wrong, each with the name of the server before it.
        egress: How often it left a server, by kind of connection.
        origin: The server that it was sent to, and from there all others.
    """

    subject: str
    delivered: bool
    complete: bool
    reached: int
    hidden: tuple[str, ...]
    errors: tuple[str, ...]
    egress: dict[Kind, int]
    origin: Hop


async def trace(
    transport: Transport,
    subject: str,
    payload: bytes = b"",
    head: bytes = b"",
    *,
    deliver: bool = False,
    timeout: float = 2.0,
) -> Path:
    """Send a message, and have the servers tell which way it takes.

    Args:
        transport: The connection to send it on.
        subject: Where to.
        payload: What.
        head: Its headers.
        deliver: Whether it is delivered, too.
        timeout: Seconds for the servers to tell.

    Raises:
        MeshError: The server is too old, or tells nothing.
        Forbidden: The connection's user may not publish to, or listen on, its own inbox.
        BadReply: An event cannot be read.
        ValueError: A header is one of those that ask for a trace.
    """
    check(parse(head))
    _check_version(transport)
    inbox = f"{INBOX}{secrets.token_hex(11)}"
    asking = {DESTINATION: inbox} if deliver else {DESTINATION: inbox, ONLY: "1"}
    arrivals: asyncio.Queue[Message | asyncio.Future[Message]] = asyncio.Queue()
    subscription = await transport.subscribe(inbox, arrivals.put_nowait)
    # They are told what this connection's user may not publish to. That it is the subject itself, a server
    # also tells in its event, if it can.
    loop = asyncio.get_running_loop()
    failure: asyncio.Future[Message] = loop.create_future()
    denial: asyncio.Future[Message] = loop.create_future()
    failure.add_done_callback(arrivals.put_nowait)
    told = {transport.attach(inbox, failure): failure, transport.attach(subject, denial): denial}
    try:
        await transport.flush()
        await asyncio.sleep(_KNOWN_AFTER)
        await transport.publish(subject, payload, head + render(asking))
        events = await _gather(arrivals, timeout)
        if not events:
            if denial.done():
                denial.result()
            raise DeadlineExceeded(
                f"NATS at {transport.server_url} told nothing of the message in {timeout:g} s"
            )
    except Forbidden as error:
        if not failure.done():
            raise
        raise Forbidden(f"{error.message}, where the servers tell of the message: permit it") from None
    finally:
        for reply, future in told.items():
            transport.detach(reply)
            if not future.cancel():
                future.exception()  # else asyncio complains that nobody asked
        await subscription.close()
    return put_together(subject, events, delivered=deliver)


def check(names: Iterable[str]) -> None:
    """Refuse headers that would ask for another trace.

    Args:
        names: The names of the headers.

    Raises:
        ValueError: One of them would.
    """
    for name in names:
        if name.lower().startswith(_RESERVED):
            raise ValueError(f"header {name} is set by the trace itself")


def _check_version(transport: Transport) -> None:
    version = transport.server_version
    if tuple(map(int, version.split(".")[:2])) < _FIRST_SERVER:
        raise MeshError(
            f"NATS at {transport.server_url} is {version}; servers tell the path of a message since 2.11"
        )


async def _gather(
    arrivals: asyncio.Queue[Message | asyncio.Future[Message]], timeout: float
) -> dict[str, Event]:
    """What the servers tell, by place in the tree."""
    events: dict[str, Event] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while not is_complete(events):
                arrived = await arrivals.get()
                try:
                    event = decode(arrived.result() if isinstance(arrived, asyncio.Future) else arrived)
                except ValueError as error:
                    raise BadReply(f"what a server tells of the message cannot be read: {error}") from None
                events.setdefault(event.hop, event)
    return events


def is_complete(events: dict[str, Event], key: str = "") -> bool:
    """Whether every server has told to which the message went.

    Args:
        events: By their place in the tree.
        key: Where to begin.
    """
    event = events.get(key)
    return event is not None and all(is_complete(events, hop) for _, hop in event.onward())


def put_together(subject: str, events: dict[str, Event], *, delivered: bool) -> Path:
    """The tree that events make. Servers of which nothing was heard get a place in it.

    Args:
        subject: What the message was sent to.
        events: By their place in the tree.
        delivered: Whether it was delivered, too.
    """
    origin = _build(events, "")
    hops = list(_all(origin))
    ends = [step for hop in hops for step in hop.steps if isinstance(step, Egress | Stored)]
    return Path(
        subject=subject,
        delivered=delivered,
        complete=is_complete(events),
        reached=sum(map(_is_reached, ends)),
        hidden=tuple(account for hop in hops if (account := hidden_in(hop))),
        errors=tuple(f"{hop.server}: {text}" for hop in hops for text in failures(hop)),
        egress=dict(Counter(end.kind if isinstance(end, Egress) else "jetstream" for end in ends)),
        origin=origin,
    )


def _is_reached(end: Egress | Stored) -> bool:
    return not end.error and (not end.no_interest if isinstance(end, Stored) else end.kind == "client")


def _build(events: dict[str, Event], key: str, before: Happened | None = None) -> Hop:
    event = events.get(key)
    if event is None:
        return _placeholder(events, key, before)
    return told_by(event, before, {id(one): _build(events, hop, one) for one, hop in event.onward()})


def _placeholder(events: dict[str, Event], key: str, before: Happened | None) -> Hop:
    """In place of a server of which nothing was heard, with those behind it of which something was."""
    depth = key.count(".") + 2 if key else 1
    behind = sorted(
        {
            ".".join(other.split(".")[:depth])
            for other in events
            if other and (not key or other.startswith(f"{key}."))
        }
    )
    told = [(hop, events.get(hop)) for hop in behind]
    # Whoever sent it there knows its name, and who got it from there.
    names = [before.name] if before else [event.events[0].name for _, event in told if event]
    return Hop(
        server=next(iter(names), ""),
        kind=kind(before) if before else "client",
        error=MISSING,
        steps=tuple(
            Egress(
                kind="unknown" if event is None else kind(event.events[0]),
                name="" if event is None else event.server.name,
                hop=_build(events, hop),
            )
            for hop, event in told
        ),
    )


def _all(hop: Hop) -> Iterator[Hop]:
    yield hop
    for step in hop.steps:
        if isinstance(step, Egress) and step.hop is not None:
            yield from _all(step.hop)
