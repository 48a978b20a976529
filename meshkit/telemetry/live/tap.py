"""Watching live calls: an instance sends a record of some of its calls to whoever asks on `_MESH.tap`.

A plain subscription to their subjects would not do: for NATS, who subscribes is there to answer, and calls of
a service that is away would wait for their deadline instead of failing at once.
"""

import asyncio
import re
from time import perf_counter, time
from typing import Annotated, Any

import msgspec

from meshkit.durable.declaration import Consumption
from meshkit.durable.delivery import attempt
from meshkit.errors import DeclarationError, MeshError, Unavailable, kind, shortened
from meshkit.headers import find, parse
from meshkit.layers.statistics import OK
from meshkit.message import CALLER, Handler, Request, Response
from meshkit.service import Declared, Endpoint
from meshkit.subject import Pattern, problem
from meshkit.telemetry.distribution import Count
from meshkit.telemetry.logs import trace_of
from meshkit.transport import INBOX, Message, Transport
from meshkit.transport import Subscription as Interest

TAP = "_MESH.tap"
"""Where one asks all instances for their calls; guarded by the permission to publish there."""

# What one instance does at most, whoever asks: taps at a time, records a second, bytes of a payload.
_MOST_TAPS, MOST_RATE, MOST_PAYLOAD = 4, 250.0, 4096
# Seconds after which a tap ends that nobody renews, at most.
_LONGEST_LEASE = 60.0
# Seconds: after so long without a call as many may be told of at once as otherwise in that time.
_BURST = 1.0
# Endpoints that an answer names.
_MOST_NAMED = 50
# Headers of a message, and characters of each.
_MOST_HEADERS, _LONGEST_HEADER = 30, 300

_SECRET = re.compile(
    "auth|cookie|token|secret|passw|pwd|credential|session|csrf|jwt|bearer|signature"
    "|(api|access|private)[-_]?key",
    re.IGNORECASE,
)
MASKED = "***"
"""Stands for the value of a header that is a secret by its name."""

_CALLER = f"\r\n{CALLER}:".encode()

# What an instance tells is checked when it is decoded: until the year 8900, up to a century.
_Time = Annotated[float, msgspec.Meta(ge=0, le=2.2e11)]
_Duration = Annotated[float, msgspec.Meta(ge=0, le=3.2e9)]


class TapRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody wants to see; asked for again before `seconds` are over, by the same reply subject.

    Attributes:
        subject: The pattern of the subjects.
        seconds: How long to send records; 0 ends it.
        rate: Records a second of one instance.
        errors: Whether to leave out calls that succeed.
        headers: Whether to send the headers, those masked that are secrets by their name.
        payload: How many bytes of the payloads to send.
    """

    subject: str
    seconds: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_LEASE)]
    rate: Annotated[float, msgspec.Meta(gt=0, le=MOST_RATE)] = 10.0
    errors: bool = False
    headers: bool = False
    payload: Annotated[int, msgspec.Meta(ge=0, le=MOST_PAYLOAD)] = 0


class Tapped(msgspec.Struct, frozen=True, omit_defaults=True, tag="tapped"):
    """An instance's answer to a TapRequest.

    Attributes:
        service: Its service.
        instance: Its id.
        endpoints: Endpoints and subscriptions whose calls and events it will send, the first fifty.
        refused: Why it sends none; empty if it does.
    """

    service: str
    instance: str
    endpoints: list[str] = []
    refused: str = ""


class Record(msgspec.Struct, frozen=True, omit_defaults=True, tag="call"):
    """A call, an event or the delivery of a message that is over.

    Attributes:
        time: When it arrived, in seconds since 1970.
        service: The service that handled it.
        instance: The id of its instance.
        endpoint: The name of the endpoint, the subscription or the consumer.
        subject: What was called or published.
        outcome: `ok`, or the kind of the error.
        seconds: How long it took, waiting included.
        is_event: Whether it is an event or a delivery.
        delivery: Which delivery of its message it is, from 1.
        caller: `service/instance` that called, if it says so.
        error: The error's text.
        queued: Seconds of them that it waited for a slot.
        trace: The id of its trace.
        received: Bytes of the payload.
        sent: Bytes of the answer's; of a stream's last item.
        items: How many items of a stream were sent before.
        left_out: How many calls that match were not sent since the last record, as there were too many.
        headers: The headers, if asked for.
        reply_headers: Those of the answer.
        payload: The payload's beginning, if asked for; bytes that are no UTF-8 are U+FFFD.
        reply: That of the answer's.
    """

    time: _Time
    service: str
    instance: str
    endpoint: str
    subject: str
    outcome: str
    seconds: _Duration
    is_event: bool = False
    delivery: Count = 1
    caller: str = ""
    error: str = ""
    queued: _Duration = 0.0
    trace: str = ""
    received: Count = 0
    sent: Count = 0
    items: Count = 0
    left_out: Count = 0
    headers: dict[str, str] | None = None
    reply_headers: dict[str, str] | None = None
    payload: str | None = None
    reply: str | None = None


class _Rate:
    """So many records a second, and after a quiet second as many at once."""

    def __init__(self, rate: float, now: float) -> None:
        self._each = 1 / rate
        # Until when the records so far have used up the rate.
        self._used_until = now - _BURST

    def has_room(self, now: float) -> bool:
        return self._used_until <= now

    def use(self, now: float) -> None:
        self._used_until = max(self._used_until, now - _BURST) + self._each


class _Tap:
    """What one asks for, and how many records it may still get."""

    def __init__(self, request: TapRequest, pattern: Pattern, now: float) -> None:
        self.request = request
        self.ends: asyncio.TimerHandle | None = None
        self._pattern = pattern
        self._left_out = 0
        self._rate = _Rate(request.rate, now)

    def overlaps(self, pattern: Pattern) -> bool:
        """Whether it may be about calls on a pattern."""
        return self._pattern.overlaps(pattern)

    def admits(self, request: Request, outcome: Response | MeshError, most: _Rate, now: float) -> bool:
        """Whether a call is asked for, and another record within the rate and that of the instance."""
        if self.request.errors and isinstance(outcome, Response):
            return False
        if not self._pattern.covers(request.subject):
            return False
        if not (self._rate.has_room(now) and most.has_room(now)):
            self._left_out += 1
            return False
        self._rate.use(now)
        most.use(now)
        return True

    def fields(self, request: Request, outcome: Response | MeshError, *, is_event: bool) -> dict[str, Any]:
        """What it may know of a call, as in Record."""
        left_out, self._left_out = self._left_out, 0
        fields: dict[str, Any] = {
            "subject": request.subject,
            "caller": shortened(find(request.head, _CALLER) or "", _LONGEST_HEADER),
            "queued": request.queued,
            "trace": trace_of(request).get("trace_id", ""),
            "received": len(request.payload),
            "items": request.sent,
            "left_out": left_out,
        }
        most = self.request.payload
        if self.request.headers:
            fields["headers"] = _shown(request.head)
        if most:
            fields["payload"] = request.payload[:most].decode(errors="replace")
        if isinstance(outcome, MeshError):
            # Whatever a handler raised, it can be encoded.
            text = shortened(outcome.message).encode("utf-8", "replace").decode()
            return fields | {"outcome": kind(outcome), "error": text}
        if is_event:
            return fields | {"outcome": OK}
        if self.request.headers:
            fields["reply_headers"] = _shown(outcome.head)
        if most:
            fields["reply"] = outcome.payload[:most].decode(errors="replace")
        return fields | {"outcome": OK, "sent": len(outcome.payload)}


class Tappable:
    """The calls of an endpoint, or the messages of a subscription or a consumer, that can be watched.

    Args:
        declared: The endpoint, the subscription or the consumer.
        stack: Handles them.

    Attributes:
        stack: What is to handle them now: through a layer of ours, while somebody watches.
    """

    __slots__ = ("is_durable", "is_event", "name", "pattern", "stack", "untapped")

    def __init__(self, declared: Declared, stack: Handler) -> None:
        self.name = declared.name
        self.pattern = declared.pattern
        self.is_event = not isinstance(declared, Endpoint)
        self.is_durable = isinstance(declared, Consumption)
        self.stack = self.untapped = stack


class Taps:
    """Who watches the calls of one instance. While nobody does, they do not go through here.

    Args:
        transport: The connection.
        service: The instance's service.
        instance_id: Its id.
    """

    def __init__(self, transport: Transport, service: str, instance_id: str) -> None:
        self._transport = transport
        self._service = service
        self._id = instance_id
        self._loop = asyncio.get_running_loop()
        self._interest: Interest | None = None
        # By reply subject.
        self._taps: dict[str, _Tap] = {}
        self._rate = _Rate(MOST_RATE, self._loop.time())
        self._tappable: list[Tappable] = []

    def add(self, declared: Declared, stack: Handler) -> Tappable:
        """There are calls that can be watched; the arguments are those of Tappable."""
        tappable = Tappable(declared, stack)
        self._tappable.append(tappable)
        return tappable

    async def start(self) -> None:
        """Listen to who wants to watch."""
        self._interest = await self._transport.subscribe(TAP, self._on_request, optional=True)

    async def stop(self) -> None:
        """Send nothing any more."""
        for reply in list(self._taps):
            self._end(reply)
        if self._interest is not None:
            await self._interest.close()

    def _on_request(self, message: Message) -> None:
        # Elsewhere the instance may publish where who asks may not.
        if not message.reply.startswith(INBOX) or problem(message.reply):
            return
        try:
            request = msgspec.json.decode(message.payload, type=TapRequest)
            pattern = Pattern(request.subject)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DeclarationError) as error:
            self._answer(message.reply, refused=shortened(str(error), 300))
            return
        before = self._end(message.reply)
        if not request.seconds:
            return
        endpoints = [one.name for one in self._tappable if one.pattern.overlaps(pattern)]
        if not endpoints:
            return
        if len(self._taps) >= _MOST_TAPS:
            self._answer(message.reply, refused=f"{_MOST_TAPS} others watch its calls already")
            return
        if before is not None and before.request == request:
            tap = before
        else:
            tap = _Tap(request, pattern, self._loop.time())
        tap.ends = self._loop.call_later(request.seconds, self._end, message.reply)
        self._taps[message.reply] = tap
        self._install()
        self._answer(message.reply, endpoints)

    def _answer(self, reply: str, endpoints: list[str] | None = None, refused: str = "") -> None:
        named = (endpoints or [])[:_MOST_NAMED]
        self._tell(reply, Tapped(self._service, self._id, named, refused))

    def _tell(self, reply: str, told: Tapped | Record) -> None:
        encoded = msgspec.json.encode(told)
        # For one message too large the server ends the connection.
        if self._transport.is_connected and len(encoded) <= self._transport.max_payload:
            self._transport.tell(reply, encoded)

    def _end(self, reply: str) -> _Tap | None:
        tap = self._taps.pop(reply, None)
        if tap is not None and tap.ends is not None:
            tap.ends.cancel()
            self._install()
        return tap

    def _install(self) -> None:
        """Have calls go through a layer of ours only where somebody watches."""
        for one in self._tappable:
            is_watched = any(tap.overlaps(one.pattern) for tap in self._taps.values())
            one.stack = self._layer(one) if is_watched else one.untapped

    def _layer(self, tapped: Tappable) -> Handler:
        async def handle(request: Request) -> Response:
            at, started = time(), perf_counter()
            outcome: Response | MeshError = Unavailable("the instance stopped before the call was finished")
            try:
                outcome = await tapped.untapped(request)
            except MeshError as error:
                outcome = error
                raise
            else:
                return outcome
            finally:
                known = {
                    "time": at,
                    "endpoint": tapped.name,
                    "seconds": perf_counter() - started,
                    "is_event": tapped.is_event,
                    "delivery": attempt(request.reply) if tapped.is_durable else 1,
                }
                self._record(request, outcome, known)
                del outcome  # an error in it and this frame would keep each other alive

        return handle

    def _record(self, request: Request, outcome: Response | MeshError, known: dict[str, Any]) -> None:
        for reply, tap in self._taps.items():
            if tap.admits(request, outcome, self._rate, self._loop.time()):
                fields = tap.fields(request, outcome, is_event=known["is_event"])
                self._tell(reply, Record(service=self._service, instance=self._id, **known, **fields))


def _shown(head: bytes) -> dict[str, str]:
    """Headers of bounded size, without secrets."""
    return {
        shortened(name, _LONGEST_HEADER): MASKED if _SECRET.search(name) else shortened(text, _LONGEST_HEADER)
        for name, text in list(parse(head).items())[:_MOST_HEADERS]
    }
