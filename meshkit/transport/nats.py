"""The transport on nats-py: requests by an inbox of its own, and a connection that mends itself."""

# nats-py leaves many of its types open.
# pyright: reportUnknownMemberType=false

import asyncio
import contextlib
import itertools
import logging
import os
import random
import secrets
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
from nats import errors as nats_errors
from nats.aio.client import Server
from nats.aio.subscription import Subscription as NatsSubscription

from meshkit import headers
from meshkit.deadlines import Deadlines
from meshkit.errors import (
    BadRequest,
    ConnectionLost,
    DeadlineExceeded,
    Disconnected,
    Forbidden,
    MeshError,
    NoResponders,
)
from meshkit.transport import Message, fast
from meshkit.transport.client import GuardedClient
from meshkit.transport.options import Options, redacted

log = logging.getLogger("meshkit.transport")

T = TypeVar("T")

# Bytes that may wait to be written before whoever publishes has to wait too.
_PENDING_LIMIT = 2 * 1024 * 1024
# Seconds.
_PUBLISH_PATIENCE = 5.0
_CLOSE_PATIENCE = 5.0
_RECONNECT_FIRST, _RECONNECT_MOST = 0.1, 2.0

# Switches the fast path off, for who suspects it.
FAST_PATH = "MESHKIT_FAST_PATH"


class NatsTransport:
    """A connection to NATS on nats-py; the interface is `meshkit.transport.Transport`.

    Args:
        options: The servers, and who connects.
        name: What the connection is called in the server's monitoring.
    """

    def __init__(self, options: Options, name: str | None = None) -> None:
        self._options = options
        self._name = name
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        self._waiting: dict[bytes, tuple[str, asyncio.Future[Message]]] = {}
        self._client = _client()(
            self._inbox, waiting=self._waiting, tls=options.tls is not None, on_lost=self._fail_all
        )
        self._loop = asyncio.get_running_loop()
        self._up = asyncio.Event()
        # Bytes of payload and head that need no further look; less than none while there is no connection.
        self._room = -1
        self._lost: asyncio.Future[None] = self._loop.create_future()
        # Whoever gets a request knows its reply subject, and must not guess the next one from it.
        self._tokens = itertools.chain.from_iterable(iter(_random_numbers, None))
        self._answers = self._inbox.encode()
        self._token_at = len(self._answers)
        self._deadlines = Deadlines(_expire)
        self._denied: set[str] = set()
        self._dropped = 0
        self._refused: asyncio.Future[BaseException] = self._loop.create_future()
        self._reconnects = 0
        self._closed = False
        self._is_new = True
        self._refusals = 0

    # Connecting

    async def connect(self, timeout: float) -> None:
        """Make the first connection.

        Args:
            timeout: Seconds to go on trying.

        Raises:
            Disconnected: No server could be reached, or it refused; the text says which and why.
        """
        attempt = asyncio.create_task(
            self._client.connect(
                **self._options.for_nats(),
                name=self._name,
                error_cb=self._on_error,
                reconnected_cb=self._on_reconnected,
                reconnect_to_server_handler=self._next_server,
                connect_timeout=5,
                reconnect_time_wait=0.1,  # pyright: ignore[reportArgumentType] # seconds; nats-py says int
                max_reconnect_attempts=-1,
                ping_interval=10,
                max_outstanding_pings=2,
                pending_size=0,  # nothing is buffered while disconnected, and publish never blocks
                flusher_queue_size=0,
            )
        )
        tasks: set[asyncio.Future[Any]] = {attempt, self._refused}
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done() or attempt.exception() is not None:
                raise self._unreachable(attempt, timeout)
        except BaseException:
            with anyio.CancelScope(shield=True):
                attempt.cancel()
                await asyncio.gather(attempt, return_exceptions=True)
                await self.close()
            raise
        self._is_new = False
        await self._client.listen(f"{self._inbox}*", "", self._on_reply)
        if self._client.is_connected:  # it may have broken already, and will be up when it is mended
            self._open()

    def _open(self) -> None:
        self._up.set()
        self._room = self.max_payload - headers.FRAME

    def _unreachable(self, attempt: "asyncio.Task[None]", timeout: float) -> Disconnected:
        servers = ", ".join(map(redacted, self._options.urls))
        cause = attempt.exception() if attempt.done() and not attempt.cancelled() else None
        if cause is None and self._refused.done():
            cause = self._refused.result()
        cause = cause or self._client.last_error
        if cause is None or isinstance(cause, TimeoutError):
            why = f"no answer in {timeout:g} s"
        elif isinstance(cause, nats_errors.SecureConnWantedError):
            why = "TLS is wanted, but the server does not offer it"
        elif "authorization" in str(cause).lower() or isinstance(cause, nats_errors.AuthorizationError):
            why = "the server refused the login; check user, password, token or credentials"
        elif "expecting INFO" in str(cause):
            why = "what answers there is not a NATS server"
        elif isinstance(cause, ConnectionRefusedError):
            why = "nothing listens there; start a server with `meshkit server`, or set NATS_URL"
        else:
            why = str(cause).removeprefix("nats: ") or type(cause).__name__
        error = Disconnected(f"cannot connect to NATS at {servers}: {why}")
        error.__cause__ = cause
        return error

    def _next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server to reconnect to, and the seconds to wait first: full jitter, doubling."""
        most = min(_RECONNECT_MOST, _RECONNECT_FIRST * 2**self._reconnects)
        self._reconnects = min(self._reconnects + 1, 16)
        server = min(servers, key=lambda one: (one.reconnects, random.random()))  # noqa: S311 # spreads load
        return server, random.uniform(0, most)  # noqa: S311 # spreads load

    async def _on_reconnected(self) -> None:
        if not self._client.is_connected:  # it has broken again, and nats-py has not noticed
            return
        self._reconnects = 0
        self._lost = self._loop.create_future()
        self._open()
        log.info("connected to NATS again at %s", self.server_url)

    async def _on_error(self, error: Exception) -> None:
        """Take nats-py's reports; it calls this in its read loop, which an exception here would end."""
        text = str(error).removeprefix("nats: ") or type(error).__name__
        level = logging.WARNING
        if "permissions violation for publish" in text:
            self._fail_denied(text)
        elif "permissions violation for subscription" in text:
            self._denied.add(text)
        elif isinstance(error, nats_errors.SlowConsumerError):
            self._dropped += 1
            text = f"{self._dropped} messages dropped so far, which came faster than they can be taken in"
            if self._dropped.bit_count() > 1:
                level = logging.DEBUG
        elif self._is_new:
            # Whoever makes the first connection is told. Another server may take what one refuses.
            level = logging.DEBUG
            self._refusals += _is_refusal(error)
            if self._refusals == len(self._options.urls) and not self._refused.done():
                self._refused.set_result(error)
        elif self._reconnects > 1:
            # The first attempt to reconnect has said it.
            level = logging.DEBUG
        log.log(level, "NATS at %s: %s", self.server_url, text)

    # Losing the connection

    def _fail_all(self) -> None:
        """The connection is broken: whoever waits for an answer cannot know whether it was executed."""
        self._up.clear()
        self._room = -1
        if not self._lost.done():
            self._lost.set_result(None)
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost())
        self._waiting.clear()

    def _fail_denied(self, text: str) -> None:
        for subject, answer in self._waiting.values():
            # nats-py lower-cases what the server said.
            if f'"{subject.lower()}"' in text and not answer.done():
                answer.set_exception(Forbidden(f"this connection's user may not publish to {subject!r}"))

    async def _unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something that nats-py would go on waiting for after a disconnect."""
        task = asyncio.create_task(work)
        tasks: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionLost
            return task.result()
        finally:
            task.cancel()

    # Requests

    async def request(self, subject: str, payload: bytes, head: bytes, deadline: float) -> Message:
        """Send a message and wait for the first answer."""
        if len(payload) + len(head) > self._room or self._client.pending_data_size > _PENDING_LIMIT:
            await self._admit(subject, payload, head, deadline)
        token = b"%x" % next(self._tokens)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[token] = (subject, answer)
        slot = self._deadlines.add(answer, deadline)
        try:
            sending = self._client.send(subject, payload, head, self._answers + token)
            if sending is not None:
                await sending
            message = await answer
        finally:
            slot.pop(answer, None)
            self._waiting.pop(token, None)
            del answer  # an error in it and this frame would keep each other alive
        if message.head.startswith(headers.NO_RESPONDERS) and not message.payload:
            raise NoResponders(f"no service listens on {subject!r}")
        return message

    def _on_reply(self, subject: bytes, _reply: bytes, head: bytes, payload: bytes) -> None:
        waiting = self._waiting.get(subject[self._token_at :])
        # No entry: the caller has given up.
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(Message("", "", payload, head))

    async def gather(
        self, subject: str, payload: bytes = b"", *, timeout: float = 1.0, stall: float = 0.3
    ) -> list[Message]:
        """Send a message and collect the answers of everybody."""
        answers: asyncio.Queue[Message] = asyncio.Queue()
        inbox = f"_INBOX.{secrets.token_hex(11)}"
        subscription = await self.subscribe(inbox, answers.put_nowait)
        # Among those who wait for an answer, to be told of a lost connection or a missing permission.
        failure: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[inbox.encode()] = (subject, failure)
        gathered: list[Message] = []
        try:
            await self.publish(subject, payload, reply=inbox)
            while True:
                message = await self._first(answers, failure, stall if gathered else timeout)
                if message is None or message.head.startswith(headers.NO_RESPONDERS):
                    return gathered
                gathered.append(message)
        finally:
            failure.cancel()
            self._waiting.pop(inbox.encode(), None)
            await subscription.close()

    async def _first(
        self, answers: asyncio.Queue[Message], failure: "asyncio.Future[Message]", seconds: float
    ) -> Message | None:
        """The next answer; None if there is none in that time."""
        answer = asyncio.create_task(answers.get())
        try:
            tasks: set[asyncio.Future[Any]] = {answer, failure}
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if failure.done():
                failure.result()
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()

    # Publishing

    async def publish(self, subject: str, payload: bytes, head: bytes = b"", reply: str = "") -> None:
        """Send a message; returns when it is on its way to the server."""
        if len(payload) + len(head) > self._room or self._client.pending_data_size > _PENDING_LIMIT:
            await self._admit(subject, payload, head, self._loop.time() + _PUBLISH_PATIENCE)
        sending = self._client.send(subject, payload, head, reply.encode())
        if sending is not None:
            await sending

    async def _admit(self, subject: str, payload: bytes, head: bytes, deadline: float) -> None:
        self._check_size(subject, payload, head)
        await self._ready(deadline)
        # It may be another server by now.
        self._check_size(subject, payload, head)

    def _check_size(self, subject: str, payload: bytes, head: bytes) -> None:
        # nats-py forgets the headers, and for one message too large the server ends the connection.
        size = len(payload) + headers.size(head)
        if size > self.max_payload:
            raise BadRequest(
                f"the message to {subject!r} is {size:,} bytes, the server takes {self.max_payload:,}; "
                "send less, or raise max_payload in its configuration"
            )

    async def _ready(self, deadline: float) -> None:
        """Wait for the connection, and for room in it."""
        while True:
            if self._closed:
                raise Disconnected("the connection to NATS is closed")
            is_up = self._up.is_set()
            if is_up and self._client.pending_data_size <= _PENDING_LIMIT:
                return
            if self._loop.time() >= deadline:
                what = "does not read what it is sent" if is_up else "cannot be reached"
                raise Disconnected(f"NATS at {self.server_url} {what}; there was no more time to wait")
            if is_up:
                # The server does not read as fast as we write. nats-py's own way to wait for it swallows
                # cancellation.
                await asyncio.sleep(0.001)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        await self._up.wait()

    # Subscribing

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], queue: str = ""
    ) -> "Interest":
        """Have messages handed to a callback, which must neither block nor raise."""

        def deliver(to: bytes, reply: bytes, head: bytes, payload: bytes) -> None:
            try:
                callback(Message(to.decode(errors="replace"), reply.decode(errors="replace"), payload, head))
            except Exception:
                # In here it would end the connection.
                log.exception("a message on %s was not handled", subject)

        await self._ready(self._loop.time() + _PUBLISH_PATIENCE)
        return Interest(self, await self._client.listen(subject, queue, deliver))

    async def flush(self) -> None:
        """Wait until the server has processed everything that was sent."""
        await self._ready(self._loop.time() + _PUBLISH_PATIENCE)
        try:
            await self._unless_lost(self._client.flush())
        except nats_errors.TimeoutError:
            raise DeadlineExceeded(f"NATS at {self.server_url} does not confirm what it was sent") from None
        if self._denied:
            denied, self._denied = self._denied, set()
            raise Forbidden(
                f"NATS does not let this connection's user subscribe: {'; '.join(sorted(denied))}"
            )

    async def end(self, subscription: NatsSubscription, *, drain: bool) -> None:
        """End a subscription; with `drain`, hand out first what was delivered."""
        try:
            if drain and self.is_connected:
                await self._unless_lost(subscription.drain())
        except (ConnectionLost, nats_errors.TimeoutError) as error:
            # Without the server's word there is nothing to wait for.
            log.warning("left %s without the server's word: %r", subscription.subject, error)
        finally:
            if not self._client.is_closed:
                await self._client.forget(subscription)

    async def close(self) -> None:
        """Send what is to be sent and end the connection."""
        try:
            if self.is_connected:
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await self._unless_lost(self._client.flush())
        except (TimeoutError, MeshError) as error:
            log.warning("closed without the server's word that it has everything (%r)", error)
        finally:
            self._closed = True
            self._fail_all()
            self._up.set()  # for who waits for it, and is told
            await self._client.close()

    # About the connection

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent right now."""
        return self._up.is_set() and not self._closed

    @property
    def server_url(self) -> str:
        """The server that the connection is, or was last, connected to; without credentials."""
        url = self._client.connected_url
        return redacted(url.geturl() if url else self._options.urls[0])

    @property
    def server_version(self) -> str:
        """That server's version."""
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    @property
    def max_payload(self) -> int:
        """The largest message that server takes, headers included, in bytes."""
        return self._client.max_payload


class Interest:
    """A subscription on nats-py; the interface is `meshkit.transport.Subscription`."""

    def __init__(self, transport: NatsTransport, subscription: NatsSubscription) -> None:
        self._transport = transport
        self._subscription = subscription

    async def drain(self) -> None:
        """End the interest; returns when the callback has had every message that was delivered."""
        await self._transport.end(self._subscription, drain=True)

    async def close(self) -> None:
        """End the interest at once."""
        await self._transport.end(self._subscription, drain=False)


def _client() -> type[GuardedClient]:
    """The client to use: fast, or as it can be."""
    if os.environ.get(FAST_PATH) == "off":
        return GuardedClient
    if fast.PROBLEM is not None:
        log.warning("%s: going on by its public interface, which is slower", fast.PROBLEM)
        return GuardedClient
    return fast.FastClient


def _random_numbers() -> memoryview:
    """A thousand random numbers of 64 bits: one call of the system for each would cost more than all else."""
    return memoryview(os.urandom(8192)).cast("Q")


def _expire(answer: "asyncio.Future[Message]") -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded())


def _is_refusal(error: Exception) -> bool:
    """Whether trying the same server again is of no use."""
    return isinstance(error, nats_errors.Error | ssl.SSLError) and not isinstance(
        error, TimeoutError | nats_errors.StaleConnectionError
    )
