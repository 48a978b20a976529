"""What flows: a request down a stack of layers, a response back up, and the context that a handler sees."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from meshkit.headers import parse

if TYPE_CHECKING:
    from meshkit.mesh import Mesh

T = TypeVar("T")

TIMEOUT = "Mesh-Timeout"
CALLER = "Mesh-Caller"

# Seconds that a call may take when nobody says otherwise, and at most: three years, in twelve digits of ms.
DEFAULT_TIMEOUT = 5.0
LONGEST_TIMEOUT = 1e8


# Of W3C (https://www.w3.org/TR/trace-context/), who writes them in lower case; some clients do otherwise.
_TRACE = re.compile(rb"\r\n(traceparent|tracestate|baggage):([^\r\n]*)", re.IGNORECASE)


class Request(msgspec.Struct, gc=False, eq=False):
    """A call on its way to be executed, on either side. No two are equal.

    Attributes:
        subject: The subject that is called.
        payload: The encoded message.
        head: The headers that travel with it, as `meshkit.headers` has them.
        started: When it was called, on the callee's side when it arrived; on the event loop's clock.
        deadline: When the answer is of no use any more, on the same clock; infinite for events.
        handler: `service/instance` that handles the request; empty on the caller's side.
    """

    subject: str
    payload: bytes
    head: bytes
    started: float
    deadline: float
    handler: str = ""
    _trace: bytes | None = None

    @property
    def trace(self) -> bytes:
        """The trace headers, and no others, as a head: what nested calls inherit."""
        if self._trace is None:
            self._trace = trace(self.head) if self.head else b""
        return self._trace


class Response(msgspec.Struct, gc=False):
    """The answer to a request.

    Attributes:
        payload: The encoded reply.
        head: The headers that travel with it, as `meshkit.headers` has them.
    """

    payload: bytes
    head: bytes = b""


def trace(head: bytes) -> bytes:
    """The trace headers of a head. Nothing else: `Nats-*` of one message must never reach another."""
    found: dict[bytes, bytes] = {name.lower(): value for name, value in _TRACE.findall(head)}
    return b"".join(b"\r\n%b:%b" % header for header in found.items())


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

    __slots__ = ("_head", "_headers", "_loop", "deadline", "instance", "mesh", "state", "subject")

    def __init__(self, request: Request, mesh: "Mesh", state: Any) -> None:
        self.subject = request.subject
        self._head = request.head
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
