"""A connection that is kept: made, mended, and moved to another server when its own is about to end."""

# nats-py leaves many of its types open.
# pyright: reportUnknownMemberType=false

import asyncio
import contextlib
import functools
import logging
import os
import random
import secrets
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from nats import errors as nats_errors
from nats.aio.client import Server

from meshkit import headers
from meshkit.errors import ConnectionLost, Disconnected, MeshError
from meshkit.transport import Sink, fast
from meshkit.transport.client import GuardedClient
from meshkit.transport.denials import Denials
from meshkit.transport.interest import Crossing, Interest
from meshkit.transport.options import Options, redacted

log = logging.getLogger("meshkit.transport")

# Bytes that may wait to be written before whoever publishes has to wait too.
PENDING_LIMIT = 2 * 1024 * 1024
# Seconds.
_CLOSE_PATIENCE = 5.0
_RECONNECT_FIRST, _RECONNECT_MOST = 0.1, 2.0
# After which everybody who lost the connection with us has had the time to come back.
_SETTLED_AFTER = _RECONNECT_MOST + 1.0
# Of a server that is about to end: within which its clients leave, each at another time; after which every
# server of the cluster knows the new subscriptions, or has given its last to the old ones.
_LEAVING, _KNOWN_AFTER = 0.5, 0.5
_BARRIER = 1

# Switches the fast path off, for who suspects it.
FAST_PATH = "MESHKIT_FAST_PATH"


class Connection:
    """A connection to NATS on nats-py, mended when it breaks.

    Args:
        options: The servers, and who connects.
        name: What the connection is called in the server's monitoring.

    Attributes:
        is_settled: Whether it is connected, and has been so long that whoever lost the server too is back.
        reconnects: How often it was lost and came back.
        dropped: How many messages were dropped, as they came faster than they could be taken in.
        denials: What was denied.
    """

    def __init__(self, options: Options, name: str | None = None) -> None:
        self._options = options
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        # Who waits for an answer: by what follows the inbox in its subject, and with what was called.
        self._waiting: dict[bytes, tuple[str, Sink]] = {}
        self._interests: dict[Interest, None] = {}
        self._up = asyncio.Event()
        self.is_settled = False
        self._settling: asyncio.TimerHandle | None = None
        # Bytes of payload and head that need no further look; less than none while there is no connection.
        self._room = -1
        self.denials = Denials(self._waiting)
        self._denied: set[str] = set()
        # Subjects of what may be denied, as the server writes them.
        self._optional: set[str] = set()
        self._on_reconnect: list[Callable[[], None]] = []
        self.dropped = 0
        self.reconnects = 0
        self._refused: asyncio.Future[BaseException] = self._loop.create_future()
        self._attempts = 0
        self._closed = False
        self._is_new = True
        self._refusals = 0
        self._moving: asyncio.Task[None] | None = None
        # Not while subscriptions go over to another server.
        self._steady = asyncio.Event()
        self._steady.set()
        self._client = self._new_client()

    # Connecting

    async def connect(self, timeout: float) -> None:
        """Make the first connection.

        Args:
            timeout: Seconds to go on trying.

        Raises:
            Disconnected: No server could be reached, or it refused; the text says which and why.
        """
        urls = random.sample(self._options.urls, len(self._options.urls))
        attempt = asyncio.create_task(self._dial(self._client, urls))
        tasks: set[asyncio.Future[Any]] = {attempt, self._refused}
        try:
            await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done() or attempt.exception() is not None:
                raise self._unreachable(attempt, timeout)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _end(attempt)
                await self.close()
            raise
        self._is_new = False
        self._open()
        self.is_settled = self._up.is_set()

    def _new_client(self) -> GuardedClient:
        def on_lost() -> None:
            if client is self._client:
                self._fail_all()

        client = _client()(
            self._inbox, waiting=self._waiting, tls=self._options.tls is not None, on_lost=on_lost
        )
        return client

    def _dial(self, client: GuardedClient, servers: list[str]) -> Coroutine[Any, Any, None]:
        return client.connect(
            servers,
            **self._options.for_nats(),
            name=self._name,
            error_cb=functools.partial(self._on_error, client),
            reconnected_cb=functools.partial(self._on_reconnected, client),
            lame_duck_mode_cb=functools.partial(self._on_lame_duck, client),
            dont_randomize=True,
            reconnect_to_server_handler=self._next_server,
            connect_timeout=5,
            reconnect_time_wait=0.1,  # pyright: ignore[reportArgumentType] # seconds; nats-py says int
            max_reconnect_attempts=-1,
            ping_interval=10,
            max_outstanding_pings=2,
            pending_size=0,  # nothing is buffered while disconnected, and publish never blocks
            flusher_queue_size=0,
        )

    def _open(self) -> None:
        if self._client.is_connected:  # it may have broken already, and will be up when it is mended
            self._up.set()
            self._room = self.max_payload - headers.FRAME

    def _settle(self) -> None:
        self.is_settled = True

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
        most = min(_RECONNECT_MOST, _RECONNECT_FIRST * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 16)
        server = min(servers, key=lambda one: (one.reconnects, random.random()))  # noqa: S311 # spreads load
        return server, random.uniform(0, most)  # noqa: S311 # spreads load

    async def _on_reconnected(self, client: GuardedClient) -> None:
        if client is not self._client or not client.is_connected:  # it has broken again, unnoticed by nats-py
            return
        self._attempts = 0
        self.reconnects += 1
        self._open()
        self._settling = self._loop.call_later(_SETTLED_AFTER, self._settle)
        log.info("connected to NATS again at %s", self.server_url)
        for callback in self._on_reconnect:
            callback()

    async def _on_error(self, client: GuardedClient, error: Exception) -> None:
        """Take nats-py's reports; it calls this in its read loop, which an exception here would end."""
        text = str(error).removeprefix("nats: ") or type(error).__name__
        level = logging.WARNING
        if "permissions violation for publish" in text:
            text = self.denials.take(text)
            if '"_mesh.' in text:
                level = logging.DEBUG  # what is said there makes things better, and nobody depends on it
        elif "permissions violation for subscription" in text:
            if any(subject in text for subject in self._optional):
                level = logging.DEBUG
            else:
                self._denied.add(text)
        elif isinstance(error, nats_errors.SlowConsumerError):
            self.dropped += 1
            text = f"{self.dropped} messages dropped so far, which came faster than they can be taken in"
            if self.dropped.bit_count() > 1:
                level = logging.DEBUG
        elif client is not self._client:
            # Another server may take what one refuses.
            level = logging.DEBUG
        elif self._is_new:
            # Whoever makes the first connection is told.
            level = logging.DEBUG
            self._refusals += _is_refusal(error)
            if self._refusals == len(self._options.urls) and not self._refused.done():
                self._refused.set_result(error)
        elif self._attempts > 1:
            # The first attempt to reconnect has said it.
            level = logging.DEBUG
        log.log(level, "NATS at %s: %s", self.server_url, text)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Have something called after each time that the connection was lost and is back."""
        self._on_reconnect.append(callback)

    # Losing the connection

    def _fail_all(self) -> None:
        """The connection is broken: whoever waits for an answer cannot know whether it was executed."""
        self._up.clear()
        self.is_settled = False
        if self._settling is not None:
            self._settling.cancel()
        self._room = -1
        for _, answer in list(self._waiting.values()):
            if not answer.done():
                answer.set_exception(ConnectionLost())
        self._waiting.clear()

    # Moving

    async def _on_lame_duck(self, client: GuardedClient) -> None:
        """The server is about to end; nats-py calls this in its read loop."""
        client.is_lame = True
        if client is self._client and not self._closed and (self._moving is None or self._moving.done()):
            self._moving = self._loop.create_task(self._move_on())

    async def _move_on(self) -> None:
        await asyncio.sleep(random.uniform(0, _LEAVING))  # noqa: S311 # spreads load
        while self._client.is_lame and await self._move():
            pass

    async def _move(self) -> bool:
        """Go to another server of the cluster before this one cuts the connection; False if there is none."""
        old, new = self._client, self._new_client()
        if not new.learn_servers(old):
            return False
        attempt = self._loop.create_task(self._dial(new, []))
        try:
            await old.unless_lost(attempt)
            self._steady.clear()
            await self._hand_over(old, new, [Crossing(interest, new) for interest in self._interests])
        except (MeshError, nats_errors.Error, OSError) as error:
            log.warning("NATS at %s is about to end; there was no way to another: %r", self.server_url, error)
        finally:
            self._steady.set()
            with anyio.CancelScope(shield=True):
                await _end(attempt)
                await (new if self._client is old else old).close()
        return self._client is new

    async def _hand_over(self, old: GuardedClient, new: GuardedClient, crossings: list[Crossing]) -> None:
        try:
            for crossing in crossings:
                await crossing.begin()
            await new.unless_lost(new.flush())
        except BaseException:
            for crossing in crossings:
                crossing.give_up()
            raise
        # What was sent so far is to arrive before what is sent by the new one.
        self._up.clear()
        self._room = -1
        with contextlib.suppress(MeshError, nats_errors.Error):
            await old.unless_lost(old.flush(_BARRIER))
        self._client = new
        for crossing in crossings:
            crossing.cross()
        self._open()
        log.info("moved to NATS at %s", self.server_url)
        try:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                await old.unless_lost(asyncio.sleep(_KNOWN_AFTER))
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await asyncio.gather(
                        *(crossing.drain() for crossing in crossings), return_exceptions=True
                    )
        finally:
            for crossing in crossings:
                crossing.release()
                self._loop.call_later(_KNOWN_AFTER, crossing.settle)

    async def ready(self, deadline: float) -> None:
        """Wait for the connection, and for room in it."""
        while True:
            if self._closed:
                raise Disconnected("the connection to NATS is closed")
            is_up = self._up.is_set()
            if is_up and self._client.pending_data_size <= PENDING_LIMIT:
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

    async def close(self) -> None:
        """Send what is to be sent and end the connection."""
        try:
            async with asyncio.timeout(_CLOSE_PATIENCE):
                await self._steady.wait()
                if self.is_connected:
                    await self._client.unless_lost(self._client.flush())
        except (TimeoutError, MeshError) as error:
            log.warning("closed without the server's word that it has everything (%r)", error)
        finally:
            self._closed = True
            self._fail_all()
            self._up.set()  # for who waits for it, and is told
            if self._moving is not None:
                self._moving.cancel()
                await asyncio.gather(self._moving, return_exceptions=True)
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


async def _end(attempt: "asyncio.Task[None]") -> None:
    # Until Python 3.12 asyncio.wait_for passes over a cancellation if a connection is refused at that moment.
    while not attempt.done():
        attempt.cancel()
        await asyncio.wait([attempt], timeout=0.1)


def _client() -> type[GuardedClient]:
    """The client to use: fast, or as it can be."""
    if os.environ.get(FAST_PATH) == "off":
        return GuardedClient
    if fast.PROBLEM is not None:
        log.warning("%s: going on by its public interface, which is slower", fast.PROBLEM)
        return GuardedClient
    return fast.FastClient


def _is_refusal(error: Exception) -> bool:
    """Whether trying the same server again is of no use."""
    return isinstance(error, nats_errors.Error | ssl.SSLError) and not isinstance(
        error, TimeoutError | nats_errors.StaleConnectionError
    )
