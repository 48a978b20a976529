"""What runs: one instance of a service on a connection, from its first subscription to its drain."""

import asyncio
import contextvars
import functools
import inspect
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

import anyio

from meshkit import codec
from meshkit.deadlines import Deadlines
from meshkit.discovery.description import announce, describe
from meshkit.discovery.health import run_checks
from meshkit.discovery.responder import Responder
from meshkit.durable.declaration import CONCURRENCY, Consumption
from meshkit.durable.jetstream import JetStream
from meshkit.durable.once import Once
from meshkit.durable.plan import settle
from meshkit.durable.publisher import Publisher
from meshkit.durable.worker import Worker
from meshkit.errors import BadRequest, InternalError, MeshError, Overloaded, Unavailable, to_headers
from meshkit.headers import render
from meshkit.layers.access import access
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.rate_limit import patient
from meshkit.layers.statistics import Statistics
from meshkit.lifespan import Lifespan
from meshkit.message import CURRENT, Context, Handler, Request, Response
from meshkit.policies import Effective, Source, put_together
from meshkit.policies import served as serve_policy
from meshkit.policy import SERVICE_DEFAULTS
from meshkit.producer import end, produce
from meshkit.quota.keys import check_field
from meshkit.service import Endpoint, Service, Subscription
from meshkit.signature import Signature
from meshkit.stack import Bounds, durable_stack, event_stack, server_stack
from meshkit.subject import LONGEST
from meshkit.telemetry.accounts import Accounts
from meshkit.telemetry.live.tap import Tappable, Taps
from meshkit.threads import Threads
from meshkit.transport import CANCEL, Message, Transport
from meshkit.transport import Subscription as Interest

if TYPE_CHECKING:
    from meshkit.mesh import Mesh

log = logging.getLogger("meshkit.service")

Phase = Literal["starting", "ready", "draining"]

# Seconds that running handlers get to finish when an instance drains.
DRAIN_TIMEOUT = 30.0
# Seconds that handlers then get to end when they are cancelled.
_CANCEL_TIMEOUT = 5.0
# Refusals that may be on their way at a time; one turn of the loop reads some three thousand calls at most.
_REFUSALS = 10_000
# Bytes of a reply from which on it is looked at whether the server takes it.
_LARGE = 1024
# Threads for `def` handlers.
_THREADS = 40

_NOTHING = Response(b"")
# From Python 3.12 on a task runs at once, and goes through the event loop only if it has to wait.
_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}


class Instance:
    """One running instance of a service.

    Args:
        service: What to run.
        mesh: The mesh that its handlers use.
        transport: The connection to serve on.
        instance_id: Unique in the mesh.

    Attributes:
        id: Its id.
        name: `service/id`.
        state: The value of the service's lifespan.
        phase: Whether it starts, is ready, or drains.
        report: What it did so far, as a `meshkit.telemetry.report.Report`.
    """

    def __init__(self, service: Service, mesh: "Mesh", transport: Transport, instance_id: str) -> None:
        self.service = service
        self.id = instance_id
        self.name = f"{service.name}/{instance_id}"
        self.state: Any = None
        self.phase: Phase = "starting"
        self._mesh = mesh
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._policy, _ = put_together([Source(SERVICE_DEFAULTS, ""), Source(service.serve, "")])
        self._accounts = Accounts(service, instance_id, mesh)
        self.report = self._accounts.report
        self._taps = Taps(transport, service.name, instance_id)
        self._checks = {name: functools.partial(self._check, check) for name, check in service.checks.items()}
        self._responder = Responder(
            transport,
            functools.partial(describe, service, instance_id, transport.max_payload),
            functools.partial(announce, service, instance_id),
            self._accounts.stats,
            self.report,
            self._checks,
        )
        self._interests: list[Interest] = []
        self._workers: list[Worker] = []
        # In calls whose callers have gone.
        self._cancels: list[Interest] = []
        self._gone: dict[str, str] = {}
        self._lifespan: Lifespan | None = None
        self._running: dict[Request, asyncio.Task[None]] = {}
        self._deadlines: Deadlines[Request] = Deadlines(self._cancel)
        # What the bounds admit, and refusals on their way: more only pile up if nothing can be written.
        waiting = sum(subscription.backlog for subscription in service.subscriptions)
        self._most_running = self._policy.concurrency + self._policy.backlog + waiting + _REFUSALS
        self._overrun = False
        self._dropped = 0
        self._threads = Threads(_THREADS, service.name)
        # Not the handlers' threads, all of which may be busy.
        self._check_threads = Threads(max(1, len(service.checks)), f"{service.name}-health")
        service.is_served = True

    # Life

    async def start(self) -> None:
        """Enter the lifespan, subscribe, and return when the server knows it all.

        Raises:
            Forbidden: The connection's user may not subscribe to a subject of the service.
            ConfigError: The policies for an endpoint cannot hold together.
        """
        self._mesh.telemetry.instances[self.name] = self
        self._mesh.telemetry.serves = True
        try:
            if self.service.streams or self.service.consumptions:
                # Before the lifespan, which may publish to them.
                await settle(JetStream(self._transport), self.service.streams, self.service.consumptions)
            if (surroundings := self.service.surroundings) is not None:
                self._lifespan = Lifespan(surroundings(*_wanted(surroundings, self._mesh)))
                self.state = await self._lifespan.enter()
            for subscription in self.service.subscriptions:
                await self._subscribe(subscription, self._events(subscription))
            shared = self._bounds(self._policy, self.service.name)
            self._accounts.shared = shared.concurrency
            for endpoint in self.service.endpoints:
                await self._subscribe(endpoint, self._calls(endpoint, shared))
                # Not in a queue group: nobody but the instance that runs the call knows that it does.
                of_calls = CANCEL + endpoint.pattern.wire
                gone = await self._transport.subscribe(of_calls, self._on_gone, optional=True)
                self._cancels.append(gone)
            publisher = self._mesh.publisher()
            workers = [self._consume(consumption, publisher) for consumption in self.service.consumptions]
            await self._responder.start()
            await self._taps.start()
            for worker, messages in workers:
                self._workers.append(worker)
                await worker.start(messages)
            self._mesh.telemetry.reporters.append(self.report)
            await self._transport.flush()
            self._responder.announce()
            self.phase = "ready"
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drain, then leave the lifespan.

        A cancellation does not cut it short; a second one leaves it to go on by itself.
        """
        self.phase = "draining"
        stopping = asyncio.create_task(self._stop())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(stopping)

    async def _stop(self) -> None:
        try:
            await self._drain()
        finally:
            self._threads.close()
            self._check_threads.close()
            try:
                if self._lifespan is not None:
                    await self._lifespan.leave()
            finally:
                self._mesh.telemetry.instances.pop(self.name, None)

    async def health(self) -> dict[str, str]:
        """For each of its health checks "ok", or what is wrong; takes a quarter of a second at most."""
        return await run_checks(self._checks)

    async def _drain(self) -> None:
        """Take nothing new, answer what was delivered, wait for what runs."""
        leaving = [interest.drain() for interest in self._interests]
        await self._leave(self._responder.stop(), *leaving, *(worker.stop() for worker in self._workers))
        await self._wait_for_tasks(DRAIN_TIMEOUT)
        if self._running:
            for request in self._running:
                self._cancel(request)
            await self._wait_for_tasks(_CANCEL_TIMEOUT)
        await self._leave(self._taps.stop(), *(interest.close() for interest in self._cancels))
        await self._leave(*(worker.close() for worker in self._workers))
        self._mesh.telemetry.retire(self.report)
        if left := sum(not task.done() for task in self._running.values()):
            log.error("%s: %d handlers do not end when they are cancelled", self.name, left)

    async def _leave(self, *leaving: Awaitable[None]) -> None:
        for outcome in await asyncio.gather(*leaving, return_exceptions=True):
            if outcome is not None:
                log.error("%s: a subscription did not end as it should: %r", self.name, outcome)

    async def _wait_for_tasks(self, seconds: float) -> None:
        if self._running:
            await asyncio.wait(self._running.values(), timeout=seconds)

    def _cancel(self, request: Request) -> None:
        self._running[request].cancel()

    async def _subscribe(
        self, declared: Endpoint[..., Any, Any] | Subscription, callback: Callable[[Message], None]
    ) -> None:
        interest = await self._transport.subscribe(declared.pattern.wire, callback, declared.queue or "")
        self._interests.append(interest)

    # Messages

    def _bounds(self, policy: Effective, what: str) -> Bounds:
        """What keeps calls from being too many."""
        bounds = Bounds()
        if (limit := policy.rate_limit) is not None:
            from meshkit.quota import quota  # which takes 40 ms to import

            bounds.quota = quota(limit, what, transport=self._transport, service=self.service.name)
        if policy.concurrency is not None:
            bounds.concurrency = Concurrency(
                policy.concurrency, policy.backlog, what, adaptive=policy.adaptive
            )
        return bounds

    def _calls(self, endpoint: Endpoint[..., Any, Any], shared: Bounds) -> Callable[[Message], None]:
        """What takes the calls of an endpoint.

        Args:
            endpoint: Whose calls.
            shared: Bounds of the service as a whole.
        """
        said = [*endpoint.serve_policies, *self._mesh.policies.for_endpoint(endpoint.pattern.wire)]
        policy = serve_policy(said, endpoint.pattern.declared)
        check_field(policy.rate_limit, endpoint.signature.message, endpoint.pattern.declared)
        own = self._bounds(policy, endpoint.pattern.declared)
        self._accounts.own[endpoint] = own.concurrency
        stack = server_stack(
            self._handler(endpoint.signature, self._accounts.statistics[endpoint]),
            subject=endpoint.pattern.wire,
            tracer=self._mesh.tracer,
            statistics=self._accounts.statistics[endpoint],
            deadlines=self._deadlines,
            own=own,
            shared=shared,
            timeout=policy.timeout or None,
            access=access(endpoint.name, policy.access_log) if policy.access_log else None,
        )
        calls = self._taps.add(endpoint, stack)

        def take(message: Message) -> None:
            request = self._request(message)
            self._spawn(request, self._answer(calls.stack, request))

        return take

    def _events(self, subscription: Subscription) -> Callable[[Message], None]:
        """What takes the events of a subscription."""
        own = Concurrency(subscription.concurrency, subscription.backlog, subscription.name)
        self._accounts.own[subscription] = own
        stack = event_stack(
            self._handler(subscription.signature, self._accounts.statistics[subscription], replies=False),
            subject=subscription.pattern.wire,
            tracer=self._mesh.tracer,
            statistics=self._accounts.statistics[subscription],
            deadlines=self._deadlines,
            bound=own,
            timeout=subscription.timeout,
        )
        events = self._taps.add(subscription, stack)

        def take(message: Message) -> None:
            request = self._request(message)
            self._spawn(request, self._absorb(events.stack, request))

        return take

    def _consume(self, consumption: Consumption, publisher: Publisher) -> tuple[Worker, Tappable]:
        """What takes the messages of a consumer, and what handles one."""
        said = [*consumption.policies, *self._mesh.policies.for_endpoint(consumption.pattern.wire)]
        policy = serve_policy(said, consumption.subject)
        check_field(policy.rate_limit, consumption.signature.message, consumption.subject)
        # As many as there are would be fetched, and then be lost to other instances.
        limit: int = policy.concurrency or CONCURRENCY
        self._most_running += limit
        worker = Worker(
            consumption,
            self._transport,
            publisher,
            name=self.name,
            limit=limit,
            spawn=self._spawn,
            running=self._running,
        )
        self._accounts.own[consumption] = worker
        self._accounts.deliveries[consumption] = worker.deliveries
        policy.concurrency = None
        quota = self._bounds(policy, consumption.subject).quota
        stack = durable_stack(
            self._handler(consumption.signature, self._accounts.statistics[consumption], replies=False),
            subject=consumption.pattern.wire,
            consumer=consumption.name,
            statistics=self._accounts.statistics[consumption],
            deadlines=self._deadlines,
            patience=None if quota is None else patient(quota, worker.waits),
            once=Once(consumption, self._transport, publisher, worker.waits).layer
            if consumption.deduplicate
            else None,
            alone=worker.suspects.layer,
            timeout=policy.timeout or None,
            tracer=self._mesh.tracer,
            access=access(consumption.name, policy.access_log, is_durable=True)
            if policy.access_log
            else None,
        )
        return worker, self._taps.add(consumption, stack)

    def _request(self, message: Message) -> Request:
        return Request(
            message.subject,
            message.payload,
            message.head,
            self._loop.time(),
            math.inf,
            self.name,
            message.reply,
        )

    def _on_gone(self, message: Message) -> None:
        """A caller waits no more for the call whose reply subject this is."""
        if 0 < len(message.payload) <= LONGEST:
            if not self._gone:
                # When that call's task has begun: else it would end without a word. One search for all.
                self._loop.call_soon(self._stop_gone)
            self._gone[message.payload.decode(errors="replace")] = message.subject

    def _stop_gone(self) -> None:
        for request in self._running:
            if self._is_gone(request) and not request.is_abandoned:
                request.is_abandoned = True
                self._cancel(request)
        self._gone.clear()

    def _is_gone(self, request: Request) -> bool:
        return self._gone.get(request.reply) == CANCEL + request.subject

    def _spawn(self, request: Request, work: Coroutine[Any, Any, None]) -> bool:
        """Leave the transport's callback: the work goes on in a task and a context of its own.

        Returns:
            Whether it does; there may be too much of it.
        """
        overrun, self._overrun = self._overrun, len(self._running) >= self._most_running
        if self._overrun:
            work.close()
            if not overrun:
                log.error("%s: answers cannot be sent and pile up; messages are dropped", self.name)
            return False
        # Not `loop.create_task`, nor a callback when it is done: together they take half a microsecond.
        task = asyncio.Task(work, loop=self._loop, context=contextvars.Context(), name=self.name, **_EAGER)
        if not task.done():
            self._running[request] = task
        return True

    async def _answer(self, stack: Handler, request: Request) -> None:
        """Handle a call and send the answer, whatever it is."""
        CURRENT.set(request)
        # Both may have been read at once, by a process that was stopped for a while.
        request.is_abandoned = bool(self._gone) and self._is_gone(request)
        try:
            response = await stack(request)
        except MeshError as error:
            response = self._refusal(request, error)
        except asyncio.CancelledError:
            # The drain's time is over.
            error = Unavailable("the instance stopped before the call was finished")
            response = self._refusal(request, error)
        # Tasks that the handler has started go on without its deadline.
        request.deadline = math.inf
        try:
            if request.reply:
                await self._transport.publish(request.reply, response.payload, response.head)
        except MeshError as error:
            await self._apologise(request, error)
        finally:
            self._running.pop(request, None)

    def _refusal(self, request: Request, error: MeshError) -> Response:
        head = render(to_headers(error, self.name))
        return Response(b"", head + end(request) if request.sent else head)

    async def _apologise(self, request: Request, error: MeshError) -> None:
        """The answer could not be sent: say so to whoever may still hear it."""
        if isinstance(error, BadRequest):
            refusal = InternalError(f"the reply cannot be sent: {error.message}")
            try:
                await self._transport.publish(request.reply, b"", render(to_headers(refusal, self.name)))
            except MeshError as worse:
                error = worse
            else:
                return
        log.warning("%s: an answer on %s was not sent: %s", self.name, request.subject, error)

    async def _absorb(self, stack: Handler, request: Request) -> None:
        """Handle an event; nobody waits for an answer."""
        CURRENT.set(request)
        try:
            await stack(request)
        except Overloaded as error:
            self._dropped += 1
            # The first, second, fourth, eighth ...: a flood is a line or two.
            if self._dropped.bit_count() == 1:
                log.warning("%s: %d events dropped so far: %s", self.name, self._dropped, error.message)
        except MeshError as error:
            log.warning("%s: an event on %s was not handled: %s", self.name, request.subject, error)
        finally:
            self._running.pop(request, None)
        request.deadline = math.inf

    def _handler(self, signature: Signature, counted: Statistics, *, replies: bool = True) -> Handler:
        """The inside of a stack: decode, call the user's function, encode."""
        function, arguments, message = signature.function, signature.arguments, signature.message

        async def stream(request: Request) -> Response:
            kind = codec.content_type(request.head, any_if_raw=message)
            given = arguments(request, kind, self._context)
            return await produce(function(**given), request, kind, self._transport, counted)

        async def handle(request: Request) -> Response:
            kind = codec.content_type(request.head, any_if_raw=message)
            given = arguments(request, kind, self._context)
            if signature.is_async:
                value = await function(**given)
            else:
                value = await self._threads.run(function, **given)
            if not replies:
                return _NOTHING
            payload = codec.encode(value, kind)
            if len(payload) > _LARGE:
                self._check_size(payload)
            return Response(payload)

        return stream if signature.is_stream else handle

    def _check_size(self, payload: bytes) -> None:
        # Here, and not when it is sent: it is counted, traced and logged as what it is.
        if len(payload) > self._transport.max_payload:
            size, most = len(payload), self._transport.max_payload
            raise InternalError(f"the reply cannot be sent: it has {size:,} bytes, the server takes {most:,}")

    def _context(self, request: Request) -> Context:
        return Context(request, self._mesh, self.state)

    async def _check(self, check: Callable[..., Any]) -> None:
        arguments = _wanted(check, self.state)
        if inspect.iscoroutinefunction(check):
            healthy = await check(*arguments)
        else:
            healthy = await self._check_threads.run(functools.partial(check, *arguments))
        if healthy is False:
            raise RuntimeError("the check returned False")


def _wanted(function: Callable[..., Any], argument: Any) -> tuple[Any, ...]:
    """The argument, if the function takes one."""
    return (argument,) if inspect.signature(function).parameters else ()
