"""What flows: a request down a stack of layers, a response back up, and the context that a handler sees."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from meshkit.durable.delivery import Delivery, delivery, is_delivery
from meshkit.headers import find, parse

if TYPE_CHECKING:
    from meshkit.mesh import Mesh

T = TypeVar("T")

TIMEOUT = "Mesh-Timeout"
CALLER = "Mesh-Caller"
ATTEMPT = "Mesh-Attempt"
PRIORITY = "Mesh-Priority"
RETRY = "Mesh-Retry"
# Of streams.
SEQUENCE = "Mesh-Seq"
END = "Mesh-End"
CREDIT = "Mesh-Credit"

# The least important first: what is shed first.
PRIORITIES = ("sheddable", "default", "critical")

# Seconds that a call may take when nobody says otherwise, and at most: three years, in twelve digits of ms.
DEFAULT_TIMEOUT = 5.0
LONGEST_TIMEOUT = 1e8


# Those of W3C (https://www.w3.org/TR/trace-context/) are written in lower case; some clients do otherwise.
_INHERITED = re.compile(
    rb"\r\n(traceparent|tracestate|baggage|mesh-priority|mesh-retry):([^\r\n]*)", re.IGNORECASE
)
_SPELLED = {name.lower().encode(): name.encode() for name in (PRIORITY, RETRY)}
_RANKS = {name: rank for rank, name in enumerate(PRIORITIES)}
_PRIORITY_LINE = f"\r\n{PRIORITY}:".encode()


class Request(msgspec.Struct, gc=False, eq=False):
    """A call on its way to be executed, on either side. No two are equal.

    Attributes:
        subject: The subject that is called.
        payload: The encoded message.
        head: The headers that travel with it, as `meshkit.headers` has them.
        started: When it was called, on the callee's side when it arrived; on the event loop's clock.
        deadline: When the answer is of no use any more, on the same clock; infinite for events.
        handler: `service/instance` that handles the request; empty on the caller's side.
        reply: On the callee's side, where the answer goes; empty if nobody waits for one.
        is_abandoned: On the callee's side, whether the caller has said that it waits no more.
        sent: On the callee's side, how many items of a stream have been sent.
        sent_at: On the caller's side, when what may have it wait there had let it through, on the same clock;
            infinite until then.
        queued: Seconds that it waited for a slot.
        span: What is traced of it, if traces are made.
    """

    subject: str
    payload: bytes
    head: bytes
    started: float
    deadline: float
    handler: str = ""
    reply: str = ""
    is_abandoned: bool = False
    sent: int = 0
    sent_at: float = math.inf
    queued: float = 0.0
    span: Any = None
    _inherited: bytes | None = None

    @property
    def inherited(self) -> bytes:
        """What nested calls inherit, as a head; without the trace where that goes on in spans."""
        if self._inherited is None:
            self._inherited = inherited(self.head, traced=self.span is not None) if self.head else b""
        return self._inherited

    @property
    def priority(self) -> int:
        """How important the request is: an index of PRIORITIES."""
        named = find(self.head, _PRIORITY_LINE) or "default"
        return _RANKS.get(named, 1)  # whatever else somebody writes is nothing special


class Opening(Request, gc=False, eq=False):
    """A request that opens a stream, on the caller's side.

    Attributes:
        deadline: When the first item is of no use any more.
        until: When the stream as a whole is of no use any more, on the same clock.
    """

    until: float = math.inf


class Response(msgspec.Struct, gc=False):
    """The answer to a request.

    Attributes:
        payload: The encoded reply.
        head: The headers that travel with it, as `meshkit.headers` has them.
    """

    payload: bytes
    head: bytes = b""


def inherited(head: bytes, *, traced: bool = False) -> bytes:
    """What nested calls inherit of a head: the trace, the priority, and that nothing is to be tried again.

    Nothing else: `Nats-*` of one message must never reach another.

    Args:
        head: Of the request that is handled.
        traced: Whether a span is made of it: then that and its context's baggage go on in nested calls.
    """
    found = {name.lower(): value for name, value in _INHERITED.findall(head)}
    if traced:
        for name in (b"traceparent", b"baggage"):
            found.pop(name, None)
    return b"".join(b"\r\n%b:%b" % (_SPELLED.get(name, name), value) for name, value in found.items())


# Where nothing is left to do with the response it need not be a coroutine, which takes 0.1 µs.
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Layer: TypeAlias = Callable[[Handler], Handler]

# The request that the running task handles: its deadline bounds nested calls, its trace goes on in them.
CURRENT: ContextVar[Request | None] = ContextVar("meshkit_request", default=None)


class Context:
    """What a handler may know about the request it handles. Ask for it with a parameter of this type.

    Attributes:
        subject: The subject that was called, `{parameters}` filled in.
        deadline: When the caller stops waiting, on the event loop's clock, in seconds; infinite for events.
        instance: `service/instance` that this is.
        state: The value of the service's lifespan; None without one.
        mesh: For calls and events of the handler's own.
    """

    __slots__ = ("_head", "_headers", "_loop", "_reply", "deadline", "instance", "mesh", "state", "subject")

    def __init__(self, request: Request, mesh: "Mesh", state: Any) -> None:
        self.subject = request.subject
        self._head = request.head
        self._reply = request.reply
        self._headers: Mapping[str, str] | None = None
        self.deadline = request.deadline
        self.instance = request.handler
        self.state = state
        self.mesh = mesh
        self._loop = asyncio.get_running_loop()

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers, names as the caller wrote them."""
        if self._headers is None:
            self._headers = MappingProxyType(parse(self._head))
        return self._headers

    @property
    def delivery(self) -> Delivery:
        """What JetStream says of a message that it delivers.

        Raises:
            RuntimeError: It is a call or another event.
        """
        if not is_delivery(self._reply):
            raise RuntimeError(f"what came on {self.subject!r} is no message of a stream")
        return delivery(self._reply, self._head)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self.deadline - self._loop.time())

    @property
    def caller(self) -> str | None:
        """`service/instance` that calls, if it says so. Not proof of anything: any client can write it."""
        return self.headers.get(CALLER)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine from a `def` handler, which runs in a thread: `ctx.run(ctx.mesh.call(…))`.

        The thread waits meanwhile, and an instance has forty: `def` handlers that call `def` endpoints of
        their own service can take all of them, and then wait for each other.

        Raises:
            RuntimeError: The handler is `async`; it can await the coroutine itself.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        coroutine.close()
        raise RuntimeError("ctx.run is for `def` handlers; an `async def` handler awaits")
