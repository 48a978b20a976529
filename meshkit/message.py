"""What flows: a request down a stack of layers, a response back up, and the context that a handler sees."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from meshkit.mesh import Mesh

T = TypeVar("T")

TIMEOUT = "Mesh-Timeout"
CALLER = "Mesh-Caller"

# Seconds that a call may take when nobody says otherwise, and at most: three years, in twelve digits of ms.
DEFAULT_TIMEOUT = 5.0
LONGEST_TIMEOUT = 1e8


class Request(msgspec.Struct, gc=False):
    """A call on its way to be executed, on either side.

    Attributes:
        subject: The subject that is called.
        payload: The encoded message.
        headers: What travels with it.
        deadline: When the answer is of no use any more, on the event loop's clock; infinite for events.
        handler: `service/instance` that handles the request; empty on the caller's side.
    """

    subject: str
    payload: bytes
    headers: dict[str, str]
    deadline: float
    handler: str = ""


class Response(msgspec.Struct, gc=False):
    """The answer to a request.

    Attributes:
        payload: The encoded reply.
        headers: What travels with it, if anything.
    """

    payload: bytes
    headers: dict[str, str] | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Layer: TypeAlias = Callable[[Handler], Handler]

# The request that the running task handles: its deadline bounds nested calls, its trace goes on in them.
CURRENT: ContextVar[Request | None] = ContextVar("meshkit_request", default=None)

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Context:
    """What a handler may know about the request it handles. Ask for it with a parameter of this type.

    Attributes:
        subject: The subject that was called, `{parameters}` filled in.
        headers: The request's headers, names as the caller wrote them.
        deadline: When the caller stops waiting, on the event loop's clock, in seconds; infinite for events.
        instance: `service/instance` that this is.
        state: The value of the service's lifespan; None without one.
        mesh: For calls and events of the handler's own.
    """

    __slots__ = ("_loop", "deadline", "headers", "instance", "mesh", "state", "subject")

    def __init__(self, request: Request, mesh: "Mesh", state: Any) -> None:
        self.subject = request.subject
        self.headers: Mapping[str, str] = request.headers or _NO_HEADERS
        self.deadline = request.deadline
        self.instance = request.handler
        self.state = state
        self.mesh = mesh
        self._loop = asyncio.get_running_loop()

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
