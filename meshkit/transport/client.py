"""nats-py's client with what can silently end or corrupt a connection put right.

Each override names the defect of nats-py 2.16 that it mends; `tests/transport/test_client.py` shows each.
"""

# nats-py leaves many of its types open, and what is mended here lies inside of it.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# ruff: noqa: SLF001

import asyncio
import inspect
import logging
import random
import re
from collections.abc import Awaitable, Callable, Container, Coroutine
from typing import Any, TypeAlias, TypeVar

from nats import errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol import parser

from meshkit.errors import ConnectionLost
from meshkit.headers import STATUS, VERSION, parse, render

T = TypeVar("T")

log = logging.getLogger("meshkit.transport")

# To nats-py a form feed or a vertical tab in a subject ended it, and what followed was the subscription:
# anybody who may publish could reach any subscription of the connection, whatever the server permits.
parser.MSG_RE = re.compile(rb"\AMSG ([^ \r\n]+) +(\d+) +(([^ \r\n]+) +)?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG ([^ \r\n]+) +(\d+) +(([^ \r\n]+) +)?(\d+) +(\d+)\r\n")

# Takes a message: subject, reply subject, head and payload. It must neither block nor raise.
Deliver: TypeAlias = Callable[[bytes, bytes, bytes, bytes], None]


class GuardedClient(Client):
    """A nats-py client that survives late answers, hostile messages and errors that the server names.

    Args:
        inbox: Subject prefix of the answers to this connection's requests.
        waiting: What follows that prefix in those that are waited for.
        tls: Whether the connection must be encrypted.
        on_lost: Called as soon as the connection is known to be broken, before anything else happens.
    """

    # Instrumentation of nats-py wraps these; calls of the mesh have spans of their own.
    publish = inspect.unwrap(Client.publish)
    subscribe = inspect.unwrap(Client.subscribe)  # pyright: ignore[reportUnknownArgumentType]
    request = inspect.unwrap(Client.request)

    def __init__(
        self, inbox: str, *, waiting: Container[bytes], tls: bool, on_lost: Callable[[], None]
    ) -> None:
        super().__init__()
        self._inbox = inbox.encode()
        self._waiting = waiting
        self._tls_required = tls
        self._on_lost = on_lost
        # Whether the server has said that it is about to end.
        self.is_lame = False
        # Done as soon as the connection is known to be broken; another one when it has been mended.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, subject: str, payload: bytes, head: bytes, reply: bytes) -> Awaitable[None] | None:
        """Have a message written.

        Args:
            subject: Where to.
            payload: What.
            head: Its headers.
            reply: Where an answer goes; empty if none is wanted.

        Returns:
            None if that is all, else what to await.
        """
        return self.publish(subject, payload, reply.decode(), parse(head) if head else None)

    async def listen(self, subject: str, queue: str, deliver: Deliver) -> Subscription:
        """Subscribe; in order of their arrival, messages are delivered without waiting for anything."""
        return await self.subscribe(subject, queue=queue, cb=_taker(deliver))

    def redirect(self, subscription: Subscription, deliver: Deliver) -> None:
        """Deliver the next messages of a subscription to somebody else."""
        subscription._cb = _taker(deliver)

    def learn_servers(self, other: "GuardedClient") -> bool:
        """Know the servers that another client knows, and try its own last.

        Returns:
            Whether there are any but that.
        """
        own = other._current_server
        assert own is not None
        is_web = own.uri.scheme.startswith("ws")  # to which nats-py adds what is none
        others = [
            server
            for server in other._server_pool
            if server is not own and server.uri.scheme.startswith("ws") == is_web
        ]
        self._server_pool = [*random.sample(others, len(others)), own]
        return bool(others)

    async def unless_lost(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Await something that nats-py would go on waiting for after a disconnect; then it is cancelled.

        Raises:
            ConnectionLost: The connection broke meanwhile.
        """
        task = asyncio.ensure_future(work)
        tasks: set[asyncio.Future[Any]] = {task, self.lost}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionLost
            return task.result()
        finally:
            task.cancel()

    async def _process_pong(self) -> None:
        # A PONG for a flush that was given up raised InvalidStateError and ended the read loop, for good and
        # without a word.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # PING was written past the commands that wait to be written: a flush returned before they had left,
        # and a drain lost the messages that came in between.
        self._pongs.append(future if future is not None else asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_err(self, err_msg: str) -> None:
        # Every error but a stale connection and a missing permission closed the client for good: expired
        # credentials, one message over the limit.
        if "permissions violation" in err_msg:
            await super()._process_err(err_msg)
        else:
            await self._process_op_err(errors.Error(f"nats: {err_msg.strip(chr(39))}"))

    async def _process_op_err(self, e: Exception) -> None:
        if self.is_connected or self.is_connecting:
            log.warning("connection to NATS broken: %s", e)
            self._lose()
        await super()._process_op_err(e)
        self._watch_reconnect()

    async def force_reconnect(self) -> None:
        """Give the connection up and make a new one."""
        if self.is_connected:
            self._lose()
        await super().force_reconnect()
        self._watch_reconnect()

    def _lose(self) -> None:
        """Tell at once who waits for an answer, forget what is not to be sent again, drop the socket.

        nats-py replayed all of it after the reconnect: requests of callers that had given up, subscriptions
        that had ended, PINGs that nobody counted any more. And it closed the socket politely, which with
        unsent data and a peer that no longer reads never ends.
        """
        self._set_lost()
        self._on_lost()
        self._keep(_is_event)
        self._drop_socket()

    def _set_lost(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def _keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Forget the commands not yet written that are not wanted."""
        self._pending = [command for command in self._pending if wanted(command)]
        self._pending_data_size = sum(map(len, self._pending))

    async def close(self) -> None:
        """End the connection now; what is to be sent has been flushed, or cannot be sent."""
        # nats-py waited for the peer to read what is unsent, and failed where there is no peer, or never was.
        if self._flush_queue is None:
            return
        self._set_lost()
        self._pending = []
        self._pending_data_size = 0
        self._drop_socket()
        await super().close()

    async def forget(self, subscription: Subscription) -> None:
        """End a subscription, whatever state an attempt to drain it has left it in."""
        # A drain that failed left it among those that are subscribed again after a reconnect.
        if subscription._id in self._subs:
            self._remove_sub(subscription._id)
            subscription._stop_processing()
            if self.is_connected:
                await self._send_unsubscribe(subscription._id)

    def _drop_socket(self) -> None:
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            self._transport._io_writer.transport.abort()

    def _connect_command(self) -> bytes:
        # With tls:// or a TLS context, a server that offers no TLS got the credentials in plain text.
        if self._tls_required and isinstance(self._transport, TcpTransport):
            writer = self._transport._io_writer
            if writer is None or writer.get_extra_info("ssl_object") is None:
                raise errors.SecureConnWantedError
        return super()._connect_command()

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # Malformed headers raised in the read loop and ended it; with fast-mail-parser installed every value
        # became a list.
        return parse(headers[len(VERSION) :]) if headers else None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A subject that is no UTF-8 raised in the read loop and ended it.
        return self.msg_class(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_connect_init(self) -> None:
        # An attempt that failed after its handshake left its tasks running, beside those of the next one.
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        await super()._process_connect_init()
        self.is_lame = False
        if self.lost.done():
            self.lost = asyncio.get_running_loop().create_future()
        # What was sent in between: subscriptions are replayed from the list of them.
        self._keep(_is_event)
        for task in (self._reading_task, self._flusher_task):
            assert task is not None
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        # Whatever ends the tasks that read and write, nats-py went on as if it were connected.
        if self.is_connected and task in (self._reading_task, self._flusher_task):
            log.error("nats-py stopped reading or writing; reconnecting")
            self._revival = asyncio.get_running_loop().create_task(self.force_reconnect())

    def _watch_reconnect(self) -> None:
        if self._reconnection_task is not None:
            self._reconnection_task.add_done_callback(self._reconnect_ended)

    def _reconnect_ended(self, task: asyncio.Task[Any]) -> None:
        # An error that nats-py does not expect ended its attempts to reconnect, for good and without a word.
        if self.is_reconnecting and task is self._reconnection_task:
            log.error("nats-py stopped reconnecting; going on")
            self._reconnection_task = asyncio.get_running_loop().create_task(self._attempt_reconnect())
            self._watch_reconnect()


def _taker(deliver: Deliver) -> Callable[[Msg], Awaitable[None]]:
    async def take(msg: Msg) -> None:
        # An exception or a cancellation in here would end the subscription: nothing is awaited.
        deliver(msg.subject.encode(), msg.reply.encode(), _head(msg.headers), msg.data)

    return take


def _head(headers: dict[str, str] | None) -> bytes:
    if not headers:
        return b""
    status = headers.pop(STATUS, None)
    return (b" " + status.encode() if status else b"") + render(headers)


def _is_event(command: bytes) -> bool:
    """Whether a command publishes something to which no answer is expected."""
    words = command[: command.find(b"\r\n")].split()
    return (words[0], len(words)) in {(b"PUB", 3), (b"HPUB", 4)}
