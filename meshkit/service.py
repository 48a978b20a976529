"""What a user declares: a service, what it handles, its lifespan and its health."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import EllipsisType
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from msgspec import UNSET, UnsetType

from meshkit.declaration import (
    check_count,
    check_function,
    check_metadata,
    check_name,
    check_parameters,
    check_parentheses,
    check_queue,
    check_seconds,
    check_version,
)
from meshkit.discovery.protocol import ENDPOINT_KEYS
from meshkit.durable.declaration import Consumption, Start, StreamConfig, check_streams
from meshkit.errors import DeclarationError
from meshkit.knobs import RateLimit
from meshkit.policies import Source
from meshkit.policy import UNBOUND_ADAPTIVE, UNBOUND_SERVICE, CallPolicy, ServePolicy, declared
from meshkit.signature import Signature
from meshkit.subject import Pattern

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
L = TypeVar("L", bound=Callable[..., Any])
C = TypeVar("C", bound=Callable[..., Any])

Inherit = EllipsisType

_ANY_PING = Pattern("any.PING")
# How many events wait for a subscription's handler before the newest are dropped.
_EVENT_BACKLOG = 10_000


class Endpoint(Generic[P, T, R]):
    """A declared endpoint: the function itself, still callable, and the typed handle for `mesh.call`.

    Attributes:
        service: The service that it belongs to.
        name: Its name in discovery.
        subject: As declared: `hotel.rooms.{room}.price`.
        pattern: The same as a pattern to subscribe to and to fill in.
        queue: Queue group whose members share the calls; None if every instance gets every call.
        metadata: What the declaration adds to discovery.
        call: What it tells its callers to do.
        serve: What it does to protect itself.
        signature: How the function is called.
    """

    def __init__(
        self,
        service: "Service",
        function: Callable[P, T],
        pattern: Pattern,
        *,
        name: str,
        queue: str | None,
        metadata: Mapping[str, str],
        call: CallPolicy,
        serve: ServePolicy,
    ) -> None:
        self.service = service
        self.function = function
        self.pattern = pattern
        self.subject = pattern.declared
        self.signature = Signature(function, pattern)
        if self.is_stream and queue is None:
            raise DeclarationError(
                f"{self.signature.where} yields, and a stream comes from one instance; give it a queue group"
            )
        self.name = name
        self.queue = queue
        self.metadata = metadata
        self.call = call
        self.serve = serve
        if serve.adaptive is True and not serve.concurrency:
            raise DeclarationError(f"{self.signature.where}: {UNBOUND_ADAPTIVE}")
        # Its name and docstring, not what other decorators have hung onto it.
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function itself, without the mesh."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} on {self.subject}>"

    @property
    def is_stream(self) -> bool:
        """Whether it is read with `mesh.stream`, and not called."""
        return self.signature.is_stream

    @property
    def call_policies(self) -> list[Source]:
        """What callers are told to do, the weakest first."""
        return [
            Source(self.service.call, f"service {self.service.name}"),
            Source(self.call, f"endpoint {self.service.name}.{self.name}"),
        ]

    @property
    def serve_policies(self) -> list[Source]:
        """What the endpoint does to protect itself, the weakest first."""
        whole = self.service.serve
        inherited = ServePolicy(timeout=whole.timeout, backlog=whole.backlog, access_log=whole.access_log)
        return [
            Source(inherited, f"service {self.service.name}"),
            Source(self.serve, f"endpoint {self.service.name}.{self.name}"),
        ]

    def at(self, **values: object) -> "Target[R]":
        """The endpoint at one subject: `price.at(room=12)`.

        Args:
            values: A value for each `{parameter}` of the subject.

        Raises:
            ValueError: One is missing or unknown, or is not a single token.
        """
        return Target(self, self.pattern.fill(values))


class Target(Generic[R]):
    """An endpoint at one subject, for `mesh.call`."""

    __slots__ = ("endpoint", "subject")

    def __init__(self, endpoint: "Endpoint[..., Any, R]", subject: str) -> None:
        self.endpoint = endpoint
        self.subject = subject


class Subscription:
    """A declared subscription to events.

    Attributes:
        subject: As declared.
        pattern: The same as a pattern to subscribe to.
        queue: Queue group whose members share the events; None if every instance gets all.
        concurrency: How many events are handled at a time; 1 keeps their order.
        timeout: Seconds that handling one may take; None for as long as it takes.
        signature: How the function is called.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        pattern: Pattern,
        *,
        queue: str | None,
        concurrency: int,
        timeout: float | None,
    ) -> None:
        self.pattern = pattern
        self.subject = pattern.declared
        self.signature = Signature(function, pattern)
        if self.signature.is_stream:
            raise DeclarationError(f"{self.signature.where} yields, and nobody reads what comes of an event")
        self.name = function.__name__
        self.queue = queue
        self.concurrency = concurrency
        self.backlog = _EVENT_BACKLOG
        self.timeout = timeout


Declared: TypeAlias = Endpoint[..., Any, Any] | Subscription | Consumption
"""What a service handles: calls, events, messages of a stream."""


class _Declare(Protocol):
    """The decorator that `endpoint(...)` gives: it knows what calling the endpoint returns."""

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Endpoint[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[R]], /) -> Endpoint[P, AsyncIterator[R], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Endpoint[P, R, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Endpoint[..., Any, Any]:
        """Declare the function."""
        ...


class Group:
    """Endpoints that share the beginning of their subjects, and a queue group.

    Made by `service.group(...)`; groups nest.
    """

    def __init__(self, service: "Service", prefix: str, queue: str | None) -> None:
        self._service = service
        self._prefix = prefix
        self._queue = queue

    def group(self, prefix: str, *, queue: str | Inherit | None = ...) -> "Group":
        """A group whose subjects begin with `prefix`, after this group's own.

        Args:
            prefix: One or more tokens; empty to share nothing but the queue.
            queue: Queue group of its endpoints; None switches it off; inherited if not given.
        """
        return Group(self._service, _join(self._prefix, prefix), self._inherit(queue))

    def endpoint(
        self,
        subject: str | None = None,
        *,
        name: str | None = None,
        queue: str | Inherit | None = ...,
        metadata: Mapping[str, str] | None = None,
        timeout: float | str | UnsetType = UNSET,
        idempotent: bool | UnsetType = UNSET,
        concurrency: int | UnsetType | None = UNSET,
        rate_limit: RateLimit | str | Sequence[str] | UnsetType | None = UNSET,
        call: CallPolicy | None = None,
        serve: ServePolicy | None = None,
    ) -> _Declare:
        """Declare a function as an endpoint.

        Args:
            subject: Where it is called. `{tokens}` are handed to parameters of that name, `*` and `>` are
                wildcards. By default `<service>.<function>`, in a group `<prefix>.<function>`.
            name: Name in discovery; by default the function's.
            queue: Queue group whose members share the calls; None for every instance to get every call.
            metadata: Strings to show in discovery, beside those that meshkit writes.
            timeout: How long a call may take, for its callers and here, in seconds or as text such as
                `"250ms"`; by default the service's, else 5.
            idempotent: Whether executing a call twice does no harm, so that it may be tried again when nobody
                knows whether it was executed.
            concurrency: How many calls an instance executes at a time, within the service's bound.
            rate_limit: How many calls are let through, such as `"100/second"`.
            call: What else callers are to do; they learn of it, and their own policies go before it.
            serve: What else the endpoint does to protect itself.

        Raises:
            DeclarationError: Something in it cannot work; the text says what to write instead.
        """
        check_parentheses("endpoint", subject)

        def declare(function: Callable[..., Any]) -> Endpoint[..., Any, Any]:
            own = check_function("endpoint", function)
            prefix = self._prefix or self._service.name if subject is None else self._prefix
            where = f"endpoint {own}()"
            endpoint = Endpoint[..., Any, Any](
                self._service,
                function,
                Pattern(_join(prefix, own if subject is None else subject)),
                name=check_name("endpoint", own if name is None else name),
                queue=self._inherit(queue),
                metadata=check_metadata(where, metadata, ENDPOINT_KEYS),
                call=declared(call, CallPolicy, where, timeout=timeout, idempotent=idempotent),
                serve=declared(
                    serve,
                    ServePolicy,
                    where,
                    timeout=timeout,
                    concurrency=concurrency,
                    rate_limit=rate_limit,
                ),
            )
            self._service.add(endpoint)
            return endpoint

        return declare  # pyright: ignore[reportReturnType] # overloads of a protocol cannot be met by a function

    def subscribe(
        self, subject: str, *, queue: str | None = None, concurrency: int = 1, timeout: float | None = None
    ) -> Callable[[C], C]:
        """Have a function handle events.

        Args:
            subject: Which; `{tokens}`, `*` and `>` as in endpoints.
            queue: Queue group whose members share the events; by default every instance gets all of them.
            concurrency: How many are handled at a time; 1, the default, keeps them in order.
            timeout: Seconds that handling one may take; by default as long as it takes.

        Raises:
            DeclarationError: Something in it cannot work; the text says what to write instead.
        """
        check_parentheses("subscribe", subject)

        def declare(function: C) -> C:
            check_function("subscription", function)
            subscription = Subscription(
                function,
                Pattern(_join(self._prefix, subject)),
                queue=check_queue(queue),
                concurrency=check_count("concurrency", concurrency),
                timeout=check_seconds("timeout", timeout),
            )
            self._service.add(subscription)
            return function

        return declare

    def consume(
        self,
        subject: str,
        *,
        stream: StreamConfig | str = "",
        name: str | None = None,
        start: Start = "all",
        concurrency: int | UnsetType = UNSET,
        timeout: float | str | UnsetType | None = UNSET,
        rate_limit: RateLimit | str | Sequence[str] | UnsetType | None = UNSET,
        max_deliver: int = 5,
        ack_wait: float | str = 30.0,
        retry_delay: float | str = 1.0,
        retry_delay_most: float | str = 60.0,
        deduplicate: float | str | None = None,
        ordered_by: str | None = None,
        partitions: int | None = None,
        serve: ServePolicy | None = None,
    ) -> Callable[[C], C]:
        """Have a function handle the messages of a stream, each until it is handled.

        The instances of the service share them. A message whose handler returns is done with. One whose
        handler raises is delivered again later, to some instance: after a delay that doubles each time, or
        after that of `Redeliver`. After `max_deliver` deliveries, or at once if it raises `Reject` or the
        message does not decode, it goes to the dead letters. It may be delivered twice: an instance can be
        killed between handling it and saying so.

        Args:
            subject: Which messages of the stream; `{tokens}`, `*` and `>` as in endpoints.
            stream: The stream, made or updated when the service starts; or only its name: then it is made if
                it is missing, and keeps at least this subject.
            name: The consumer's name, by which JetStream remembers how far it is; by default
                `<service>-<function>`.
            start: Whether a new consumer starts with `all` that the stream has or with what is `new`.
            concurrency: How many an instance handles at a time; as many again are fetched ahead. By default
                10.
            timeout: How long handling one may take, in seconds or as text; by default as long as it takes.
            rate_limit: How many an instance, or with scope "mesh" all of them, begin to handle, such as
                `"100/second"`; the others wait.
            max_deliver: How often a message is delivered at most.
            ack_wait: How long after an instance has died its messages are delivered to others, in seconds or
                as text. As long as it lives it keeps them.
            retry_delay: The most to wait before the second delivery, and at least half of it.
            retry_delay_most: What it doubles up to.
            deduplicate: How long the ids of handled messages are remembered: another message with the same id
                is passed over. None for not at all.
            ordered_by: A `{parameter}` of the subject: messages with the same value are handled one after the
                other, each until it is done with, whatever instances there are.
            partitions: Into how many sequences that is split, by default 8; so many are handled at a time at
                most.
            serve: What else bounds it: timeout, concurrency, rate limit, access log.

        Raises:
            DeclarationError: Something in it cannot work; the text says what to write instead.
        """
        check_parentheses("consume", subject)
        if stream == "":
            raise DeclarationError(
                f"consume({subject!r}) wants stream=, a StreamConfig or the name of a stream that keeps it"
            )

        def declare(function: C) -> C:
            own = check_function("consumer", function)
            consumption = Consumption(
                function,
                Pattern(_join(self._prefix, subject)),
                stream=stream,
                name=f"{self._service.name}-{own}" if name is None else name,
                start=start,
                serve=declared(
                    serve,
                    ServePolicy,
                    f"consumer {own}()",
                    timeout=timeout,
                    concurrency=concurrency,
                    rate_limit=rate_limit,
                ),
                max_deliver=max_deliver,
                ack_wait=ack_wait,
                retry_delay=retry_delay,
                retry_delay_most=retry_delay_most,
                deduplicate=deduplicate,
                ordered_by=ordered_by,
                partitions=partitions,
                service=self._service.name,
            )
            self._service.add(consumption)
            return function

        return declare

    def _inherit(self, queue: str | Inherit | None) -> str | None:
        return self._queue if isinstance(queue, EllipsisType) else check_queue(queue)


class Service(Group):
    """A service: endpoints that answer calls, handlers of events, and consumers of streams.

    Args:
        name: Letters, digits, `-` and `_`. Instances of the same service share it.
        version: A semantic version, such as 1.0.0.
        description: One line for discovery.
        metadata: Strings to show in discovery.
        queue: Queue group of its endpoints, whose members share the calls; None for none.
        concurrency: How many calls an instance executes at a time.
        backlog: How many more wait their turn; beyond that a call is refused at once.
        timeout: How long a call may take, where an endpoint says nothing else, in seconds or as text.
        rate_limit: How many calls are let through, to all endpoints together, such as `"1000/second"`.
        access_log: Which share of the calls gets a line in the access log, where an endpoint says nothing
            else, such as `"10%"`.
        streams: Streams that are made or updated when it starts, beside those of its consumers.
        call: What else callers are to do, where an endpoint says nothing else.
        serve: What else the service as a whole does to protect itself.

    Raises:
        DeclarationError: Something in it cannot work; the text says what to write instead.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.1.0",
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        queue: str | None = "q",
        concurrency: int | UnsetType = UNSET,
        backlog: int | UnsetType = UNSET,
        timeout: float | str | UnsetType = UNSET,
        rate_limit: RateLimit | str | Sequence[str] | UnsetType | None = UNSET,
        access_log: float | str | UnsetType = UNSET,
        streams: Sequence[StreamConfig] = (),
        call: CallPolicy | None = None,
        serve: ServePolicy | None = None,
    ) -> None:
        self.name = check_name("service", name)
        self.version = check_version(version)
        self.description = description
        where = f"service {name!r}"
        self.metadata = check_metadata(where, metadata)
        self.queue = check_queue(queue)
        self.call = declared(call, CallPolicy, where, timeout=timeout)
        self.serve = declared(
            serve,
            ServePolicy,
            where,
            timeout=timeout,
            concurrency=concurrency,
            backlog=backlog,
            rate_limit=rate_limit,
            access_log=access_log,
        )
        if self.serve.concurrency is None:
            raise DeclarationError(f"{where}: {UNBOUND_SERVICE}")
        self.endpoints: list[Endpoint[..., Any, Any]] = []
        self.subscriptions: list[Subscription] = []
        self.consumptions: list[Consumption] = []
        self.streams = check_streams(where, streams)
        self.checks: dict[str, Callable[..., Any]] = {}
        self.is_served = False
        self.surroundings: Callable[..., AbstractAsyncContextManager[Any]] | None = None
        super().__init__(self, "", self.queue)

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.version}>"

    def add(self, declared: Declared) -> None:
        """Take in what a decorator has made.

        Raises:
            DeclarationError: The service runs already, or the endpoint is in another one's way.
        """
        what = f"{declared.signature.where} on {declared.subject!r}"
        if self.is_served:
            raise DeclarationError(f"{what} is declared after the service was started; declare it before")
        if isinstance(declared, Subscription):
            self.subscriptions.append(declared)
            return
        if isinstance(declared, Consumption):
            if any(declared.name == other.name for other in self.consumptions):
                raise DeclarationError(
                    f"{what}: the service has a consumer {declared.name!r} already; give it another name="
                )
            self.consumptions.append(declared)
            self._check_answers()
            return
        if declared.pattern.wire.startswith((">", "*")) and declared.pattern.overlaps(_ANY_PING):
            raise DeclarationError(f"{what} would answer for discovery too; write out its first token")
        for other in self.endpoints:
            if declared.queue == other.queue is not None and declared.pattern.overlaps(other.pattern):
                raise DeclarationError(
                    f"{what} and {other.signature.where} on {other.subject!r} can be called on the same "
                    "subject, and NATS would pick one at random; give one another subject or queue group"
                )
        self.endpoints.append(declared)
        self._check_answers()

    def _check_answers(self) -> None:
        """No stream keeps what an endpoint is called with: JetStream would answer its calls."""
        for stream in (*self.streams, *(consumption.stream for consumption in self.consumptions)):
            if not isinstance(stream, str):
                for subject in stream.subjects:
                    self._check_kept(stream.name, Pattern(subject))

    def _check_kept(self, stream: str, kept: Pattern) -> None:
        for endpoint in self.endpoints:
            if kept.overlaps(endpoint.pattern):
                raise DeclarationError(
                    f"{endpoint.signature.where} on {endpoint.subject!r}: stream {stream!r} keeps "
                    f"{kept.wire!r}, and JetStream would answer its calls; give them other subjects"
                )

    def lifespan(self, function: L) -> L:
        """Declare what surrounds an instance's life: an async generator function that yields once.

        It may take one argument, the `Mesh`; what it yields is `ctx.state` in every handler. If it fails
        while the service runs, as a task group does with its task, the service stops with its error.

        Raises:
            DeclarationError: The function is none, or takes more, or there is a lifespan already.
        """
        check_function("lifespan", function)
        if not inspect.isasyncgenfunction(inspect.unwrap(function)):
            raise DeclarationError(
                f"lifespan {function.__name__}() is no async generator; write `async def` with one `yield`"
            )
        if self.surroundings is not None:
            raise DeclarationError(f"service {self.name!r} has a lifespan already; declare one")
        check_parameters("lifespan", function, "the mesh")
        bare = inspect.isasyncgenfunction(function)
        self.surroundings = contextlib.asynccontextmanager(function) if bare else function
        return function

    def health(self, function: L) -> L:
        """Declare a health check: it raises, or returns False, if what it looks at is not well.

        It may take one argument, the value of the lifespan. It is to answer within a quarter of a second. The
        text of what it raises is shown to whoever asks.

        Raises:
            DeclarationError: It is no function, or takes more arguments.
        """
        check_function("health check", function)
        check_parameters("health check", function, "the lifespan's value")
        self.checks[function.__name__] = function
        return function

    def run(self, url: str | None = None, **options: Any) -> None:
        """Connect, serve until SIGINT or SIGTERM, and drain. Blocks; the options are those of `connect`.

        Raises:
            Disconnected: No NATS server can be reached.
        """
        # Upwards, and only here: who runs a service needs the mesh.
        from meshkit.connecting import run

        run(self, url, **options)


def _join(prefix: str, subject: str) -> str:
    return f"{prefix}.{subject}" if prefix and subject else prefix or subject
