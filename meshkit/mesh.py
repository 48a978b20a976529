"""What a user holds: the mesh, to call, publish, serve and look around."""

import asyncio
import functools
import inspect
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from meshkit import codec
from meshkit import headers as wire
from meshkit.callee import Callee, Callees
from meshkit.codec import Decoder
from meshkit.discovery import registry
from meshkit.discovery.directory import Directory
from meshkit.discovery.protocol import NAME, new_instance_id
from meshkit.discovery.registry import DiscoveredService
from meshkit.durable.declaration import StreamConfig, check_streams
from meshkit.durable.jetstream import JetStream
from meshkit.durable.plan import settle
from meshkit.durable.publisher import Publisher, Stored
from meshkit.errors import (
    BadReply,
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    InternalError,
    MeshError,
    RateLimited,
    Unavailable,
    from_headers,
)
from meshkit.instance import Instance
from meshkit.job import MOST_JOBS, Job, JobReport
from meshkit.knobs import DURATION
from meshkit.layers.propagation import merge
from meshkit.message import CURRENT, LONGEST_TIMEOUT, Opening, Request, Response
from meshkit.policies import NO_POLICIES, Policies
from meshkit.policy import CallPolicy
from meshkit.service import Endpoint, Service, Target
from meshkit.stream import ROOM, Stream, refuse
from meshkit.subject import check
from meshkit.telemetry.report import Called, Report
from meshkit.telemetry.telemetry import Telemetry
from meshkit.transport import Sender, Transport

if TYPE_CHECKING:
    from meshkit.telemetry.paths.path import Path
    from meshkit.telemetry.traces.tracing import Tracer

R = TypeVar("R")
Errors = type[MeshError] | tuple[type[MeshError], ...]
StrPath = str | os.PathLike[str]

_decoder = functools.lru_cache(maxsize=1024)(Decoder)
_RAW = Decoder(bytes)
_ANYTHING = Decoder(Any)

# What a fallback is for: the callee fails, is not there, or has too much to do. Not the caller's mistakes.
_FAILURES = (Unavailable, DeadlineExceeded, ConnectionLost, RateLimited, InternalError)


# Messages that may be on their way to streams at a time, each waited for by somebody.
_STORING = 4096


class Mesh:
    """A connection to the mesh. Made by `connect`; handlers have one in `ctx.mesh`.

    Args:
        transport: The connection.
        content: Content type of what is sent.
        caller: `service/instance` whose mesh this is; None for a client that is no service.
        policies: For calls, and for the services that are served.
        directory: What services announce; one for all meshes of a connection.
        telemetry: Who reports, and where traces go; one for all meshes of a connection.
        tracer: Makes the spans of one instance; by default the connection's.
        name: What the client is called in metrics.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        content: str = codec.JSON,
        caller: str | None = None,
        policies: Policies = NO_POLICIES,
        directory: Directory | None = None,
        telemetry: Telemetry | None = None,
        tracer: "Tracer | None" = None,
        name: str | None = None,
    ) -> None:
        self.transport = transport
        self.policies = policies
        self.directory = Directory(transport) if directory is None else directory
        self.telemetry = telemetry or Telemetry(transport)
        self.tracer = tracer or self.telemetry.tracer
        self._traced_publish: Callable[[Sender, Request, bytes], Awaitable[None]] | None = None
        if self.tracer is not None:
            from meshkit.layers.trace import publish  # which loads OpenTelemetry

            self._traced_publish = functools.partial(publish, self.tracer)
        self._storing: Publisher | None = None
        self._jobs: list[Job] = []
        if caller is None:
            self.telemetry.reporters.append(functools.partial(self._report, name or "client"))
        self.published = 0
        self._content = content
        # What travels with a message that is given no headers.
        self._head = b"" if content == codec.JSON else wire.line(codec.CONTENT_TYPE, content)
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._callees = Callees(
            transport,
            self._send,
            caller=caller,
            policies=policies,
            directory=self.directory,
            tracer=self.tracer,
        )

    @overload
    async def call(
        self,
        target: Endpoint[..., Any, R] | Target[R],
        message: object = ...,
        *,
        timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
    ) -> R: ...
    @overload
    async def call(
        self,
        target: Endpoint[..., Any, R] | Target[R],
        message: object = ...,
        *,
        timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
        fallback: object,
        fallback_for: Errors = ...,
    ) -> R | Any: ...
    @overload
    async def call(
        self,
        target: str,
        message: object = ...,
        *,
        returns: type[R],
        timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
    ) -> R: ...
    @overload
    async def call(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        message: object = ...,
        *,
        returns: Any = ...,
        timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
        fallback: object = ...,
        fallback_for: Errors = ...,
    ) -> Any: ...
    async def call(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        message: object = None,
        *,
        returns: Any = ...,
        timeout: float | str | None = None,
        headers: Mapping[str, str] | None = None,
        policy: CallPolicy | None = None,
        fallback: object = ...,
        fallback_for: Errors = _FAILURES,
    ) -> Any:
        """Call an endpoint and wait for its reply.

        Args:
            target: A subject, an endpoint, or `endpoint.at(...)` for one whose subject has parameters.
            message: What to send, of any type that msgspec encodes; `bytes` are sent as they are, None is no
                message.
            returns: The type of the reply; an endpoint's own by default, for a subject whatever the reply's
                JSON is. `bytes` is the payload as it is.
            timeout: How long to wait in all, in seconds or as text such as `"250ms"`; the endpoint's own by
                default, else 5. Within a handler the call ends with the handler's own deadline, if that is
                earlier.
            headers: To send along.
            policy: What is to be done to keep this call alive, where that differs from what holds for its
                target.
            fallback: What the call gives if it fails: a value, or a function of the error, which may be
                async, and may raise it again.
            fallback_for: The errors that it is for. By default those of a callee that fails, is not there, or
                has too much to do: `Unavailable`, `DeadlineExceeded`, `ConnectionLost`, `RateLimited`,
                `InternalError`.

        Raises:
            MeshError: The call failed; `meshkit.errors` has the tree.
            BadReply: The reply is not of the type asked for.
            ValueError: The subject, a header, the timeout or the policy is none.
            TypeError: msgspec cannot encode the message.
        """
        started = self._loop.time()
        subject, decoder, callee = self._resolve(target, returns)
        if policy is not None:
            callee = callee.under(policy)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        request = Request(
            subject,
            b"" if message is None else codec.encode(message, kind),
            head,
            started,
            _deadline(started, callee.timeout if timeout is None else timeout),
        )
        try:
            response = await callee.stack(request)
            return _decode(decoder, response, kind)
        except MeshError as error:
            error.target = subject
            error.elapsed = self._loop.time() - started
            if fallback is ... or not isinstance(error, fallback_for):
                raise
            callee.statistics.fallbacks += 1
            if request.span is None:
                return await _fall_back(fallback, error)
            with request.span.child("fallback"):
                return await _fall_back(fallback, error)

    @overload
    def stream(
        self,
        target: Endpoint[..., AsyncIterator[R], R] | Target[R],
        message: object = ...,
        *,
        timeout: float | str | None = ...,
        message_timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
    ) -> Stream[R]: ...
    @overload
    def stream(
        self,
        target: str,
        message: object = ...,
        *,
        returns: type[R],
        timeout: float | str | None = ...,
        message_timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
    ) -> Stream[R]: ...
    @overload
    def stream(
        self,
        target: str | Endpoint[..., AsyncIterator[Any], Any] | Target[Any],
        message: object = ...,
        *,
        returns: Any = ...,
        timeout: float | str | None = ...,
        message_timeout: float | str | None = ...,
        headers: Mapping[str, str] | None = ...,
        policy: CallPolicy | None = ...,
    ) -> Stream[Any]: ...
    def stream(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        message: object = None,
        *,
        returns: Any = ...,
        timeout: float | str | None = None,
        message_timeout: float | str | None = None,
        headers: Mapping[str, str] | None = None,
        policy: CallPolicy | None = None,
    ) -> Stream[Any]:
        """Read what an endpoint yields, item by item: `async for line in mesh.stream(tail, Query())`.

        The handler stops when nobody reads any more: after a `break`, at the end of an `async with`, when a
        read is cancelled. It runs at most 64 items or 1 MiB ahead of its reader. What keeps a call alive
        does so for the opening of a stream; once an item has come, nothing is tried again.

        Args:
            target: As in `call`.
            message: As in `call`.
            returns: The type of an item, as in `call`.
            timeout: How long the stream may take in all; by default as long as it takes. Within a handler it
                ends with the handler's own deadline, if that is earlier.
            message_timeout: How long an item may take to come, while it is waited for; by default what a call
                to the target may take.
            headers: As in `call`.
            policy: As in `call`.

        Raises:
            ValueError: The subject, a header, a timeout or the policy is none.
            TypeError: msgspec cannot encode the message, or the endpoint is no stream.
            StreamBroken: While reading: items were lost.
            ConnectionLost: While reading: the connection broke, and items may be lost.
            DeadlineExceeded: While reading: no item came in time.
            BadReply: While reading: an item is not of the type asked for.
            MeshError: While reading: what `call` raises, or the handler failed after some items.
        """
        subject, decoder, callee = self._resolve(target, returns, stream=True)
        if policy is not None:
            callee = callee.under(policy)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        payload = b"" if message is None else codec.encode(message, kind)
        each = callee.timeout if message_timeout is None else _seconds(message_timeout, "message_timeout")
        return Stream(
            callee.opening,
            Opening(subject, payload, head + ROOM, 0, 0),
            functools.partial(_decode, decoder, kind=kind),
            timeout=LONGEST_TIMEOUT if timeout is None else _seconds(timeout),
            message_timeout=each,
            statistics=callee.statistics,
        )

    def _resolve(
        self,
        target: str | Endpoint[..., Any, Any] | Target[Any],
        returns: Any,
        *,
        stream: bool = False,
    ) -> tuple[str, Decoder, Callee]:
        """Where a call goes, what its reply is, and what is known of the callee."""
        if isinstance(target, str):
            # A subject that is known has been checked.
            callee = self._callees.get(target) or self._callees.meet(check(target))
            return target, _ANYTHING if returns is ... else _decoder(returns), callee
        if isinstance(target, Endpoint):
            endpoint, subject = target, target.subject
            if endpoint.pattern.wire != subject:
                raise ValueError(
                    f"{endpoint.name} is on {subject!r}: call {endpoint.name}.at(...) with its parameters, "
                    "or a subject"
                )
        elif isinstance(target, Target):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
            endpoint, subject = target.endpoint, target.subject
        else:
            raise TypeError(f"{target!r} cannot be called; give a subject, an endpoint, or endpoint.at(...)")
        if endpoint.signature.is_stream is not stream:
            how = "yields: read it with mesh.stream(...)" if endpoint.is_stream else "yields nothing: call it"
            raise TypeError(f"{endpoint.name} {how}")
        callee = (
            self._callees.get(endpoint)
            or self._callees.get((endpoint, subject))
            or self._callees.meet(subject, endpoint)
        )
        return subject, endpoint.signature.reply if returns is ... else _decoder(returns), callee

    def _given(self, headers: Mapping[str, str], message: object) -> tuple[bytes, str]:
        """What travels with a message that is given headers, and its content type."""
        wire.check(headers)
        is_named = any(name.lower() == codec.CONTENT_TYPE.lower() for name in headers)
        head = b"" if is_named else self._head
        head += wire.render(headers)
        return head, codec.content_type(head, any_if_raw=_RAW if isinstance(message, bytes) else None)

    async def _send(self, request: Request) -> Response:
        message = await self.transport.request(
            request.subject, request.payload, request.head, request.deadline
        )
        if message.head:
            if (error := from_headers(message.headers)) is not None:
                try:
                    raise error
                finally:
                    del error  # else it and this frame keep each other until the garbage collector comes
            refuse(self.transport, request.subject, message)
        return Response(message.payload, message.head)

    @overload
    async def publish(
        self,
        subject: str,
        message: object = ...,
        *,
        headers: Mapping[str, str] | None = ...,
        durable: Literal[False] = ...,
    ) -> None: ...
    @overload
    async def publish(
        self,
        subject: str,
        message: object = ...,
        *,
        headers: Mapping[str, str] | None = ...,
        durable: Literal[True],
        id: str | None = ...,
    ) -> Stored: ...
    async def publish(
        self,
        subject: str,
        message: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        durable: bool = False,
        id: str | None = None,  # noqa: A002 # what it is called everywhere
    ) -> Stored | None:
        """Publish an event, to whoever listens.

        Args:
            subject: Where to.
            message: What, as in `call`.
            headers: To send along.
            durable: Whether to wait until a stream has stored it, which takes a round trip; what a lost
                connection leaves open is sent again, for half a minute or until the deadline of the call
                that is handled. For many messages, `publisher` does not wait for each.
            id: With `durable`: a stream stores one message of an id only, within its duplicate window.

        Returns:
            With `durable`, where the message is stored.

        Raises:
            Disconnected: There is no connection, and none came in time.
            BadRequest: The event is larger than the server takes.
            NoResponders: With `durable`: no stream keeps messages of the subject.
            MeshError: With `durable`: it was not stored, or nobody knows.
            ValueError: The subject, a header or the id is none.
            TypeError: msgspec cannot encode the message.
        """
        if not durable:
            if id is not None:
                raise ValueError("only a stream looks at ids: publish with durable=True")
            await self._publish(self.transport, subject, message, headers)
            return None
        self._storing = self._storing or self.publisher(_STORING)
        return await self._storing.store(subject, message, id, headers)

    def publisher(self, window: int = 256) -> Publisher:
        """What publishes many messages to streams: `async with mesh.publisher() as publisher`.

        Args:
            window: How many may be on their way at a time.

        Raises:
            ValueError: The window is none.
        """
        if not isinstance(window, int) or window < 1:  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
            raise ValueError(f"window is a whole number from 1, not {window!r}")
        return Publisher(self.transport, self._publish, window)

    async def _publish(
        self, sender: Sender, subject: str, message: object, headers: Mapping[str, str] | None
    ) -> None:
        """Encode a message and hand it to what sends it."""
        check(subject)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        current = CURRENT.get()
        inherited = b"" if current is None else current.inherited
        payload = b"" if message is None else codec.encode(message, kind)
        try:
            if self._traced_publish is None:
                await sender.publish(subject, payload, merge(inherited, head) if inherited else head)
            else:
                await self._traced_publish(sender, Request(subject, payload, head, 0.0, math.inf), inherited)
        except MeshError as error:
            error.target = subject
            raise
        self.published += 1

    async def declare(self, *streams: StreamConfig) -> list[str]:
        """Make streams, or change them to what they are declared as. Services do it when they start.

        Returns:
            What was done.

        Raises:
            ConfigError: A change would destroy something, or JetStream does not take it.
            MeshError: JetStream cannot be reached.
        """
        return await settle(JetStream(self.transport), check_streams("declare", streams), ())

    def job(self, name: str, total: int, *, sent: int = 0, done: int = 0, failed: int = 0) -> Job:
        """Bounded work, whose progress `meshkit jobs` and the metrics show; whoever does it counts.

        Args:
            name: What it is called. Another one of that name takes its place.
            total: Of how many parts it consists.
            sent: How many have been handed out before.
            done: How many have been done before.
            failed: How many never will be.

        Raises:
            ValueError: The name is no printable text of up to 100 characters, or a number is none from 0.
        """
        job = Job(name, total, sent, done, failed)
        self._jobs = [*(other for other in self._jobs if other.name != name), job][-MOST_JOBS:]
        return job

    def jobs(self) -> list[JobReport]:
        """How far the jobs are."""
        return [job.report() for job in self._jobs]

    @asynccontextmanager
    async def serve(self, service: Service, *, instance_id: str | None = None) -> AsyncGenerator[Instance]:
        """Serve within an `async with` block; leaving it drains.

        Args:
            service: What to serve. A connection can serve several.
            instance_id: The instance's id in discovery; a new one by default.

        Raises:
            Forbidden: The connection's user may not subscribe to a subject of the service.
            ConfigError: The policies for an endpoint cannot hold together.
        """
        instance_id = instance_id or new_instance_id()
        if not NAME.match(instance_id):
            raise ValueError(f"instance id {instance_id!r} may hold letters, digits, - and _ only")
        tracer = self.telemetry.tracer
        mesh = Mesh(
            self.transport,
            content=self._content,
            caller=f"{service.name}/{instance_id}",
            policies=self.policies,
            directory=self.directory,
            telemetry=self.telemetry,
            tracer=tracer and tracer.of(service.name, instance_id, service.version),
        )
        instance = Instance(service, mesh, self.transport, instance_id)
        await instance.start()
        try:
            yield instance
        finally:
            await instance.stop()

    @property
    def callees(self) -> dict[str, Callee]:
        """What has been called so far, by target: policies, circuit breakers, and what they did."""
        return dict(self._callees.by_target)

    def called(self) -> list[Called]:
        """What became of the calls, by target; targets that have been idle for ten minutes are left out."""
        return self._callees.report()

    @property
    def circuits(self) -> dict[str, str]:
        """The circuit breakers that are not closed, by target."""
        return self._callees.circuits

    def reports(self) -> list[Report]:
        """What was called and served on this connection so far: of each instance, and of the client."""
        return self.telemetry.reports()

    def _report(self, name: str) -> Report:
        return self.telemetry.report(
            name=name, called=self.called(), published=self.published, jobs=self.jobs()
        )

    async def services(self) -> list[DiscoveredService]:
        """Everything that answers in the mesh, of whatever client; statistics are summed over instances."""
        return await registry.services(self.transport)

    async def service(self, name: str) -> DiscoveredService:
        """One service with its instances, endpoints and statistics.

        Raises:
            NotFound: Nothing of that name answers.
        """
        return await registry.service(self.transport, name)

    async def trace_path(
        self,
        subject: str,
        message: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        deliver: bool = False,
        timeout: float | str = 2.0,
    ) -> "Path":
        """Which way a message takes through the NATS servers, and whom it reaches; servers since 2.11 tell.

        Args:
            subject: Where to.
            message: What, as in `call`. Mappings and permissions go by the subject; streams look at the size.
            headers: To send along.
            deliver: Whether it is delivered, too, as an event: nobody is asked for a reply.
            timeout: How long the servers may take to tell, in seconds or as text. Once all of them have told
                it ends.

        Raises:
            Forbidden: The connection's user may not publish to the connection's own inbox, or listen on it.
                That the subject is denied stands in the path's errors.
            DeadlineExceeded: No server told anything in time.
            MeshError: The server is older than 2.11.
            ValueError: The subject, a header or the timeout is none.
            TypeError: msgspec cannot encode the message.
        """
        from meshkit.telemetry.paths import path

        check(subject)
        head, kind = (self._head, self._content) if headers is None else self._given(headers, message)
        payload = b"" if message is None else codec.encode(message, kind)
        return await path.trace(
            self.transport, subject, payload, head, deliver=deliver, timeout=_seconds(timeout)
        )


def _deadline(now: float, timeout: float | str) -> float:
    if isinstance(timeout, str) or not 0 < timeout <= LONGEST_TIMEOUT:
        timeout = _seconds(timeout)
    current = CURRENT.get()
    return now + timeout if current is None else min(now + timeout, current.deadline)


def _seconds(timeout: float | str, name: str = "timeout") -> float:
    return DURATION.check(name, timeout)


async def _fall_back(fallback: Any, error: MeshError) -> Any:
    if not callable(fallback):
        return fallback
    value = fallback(error)
    return await value if inspect.isawaitable(value) else value


def _decode(decoder: Decoder, response: Response, kind: str) -> Any:
    try:
        if response.head:
            kind = codec.content_type(response.head, any_if_raw=decoder, usual=kind)
        return decoder(response.payload, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadRequest) as error:
        what = kind if decoder.type is Any else decoder.type
        raise BadReply(f"the reply is not {what}: {error}; returns=bytes gives it as it is") from None
