"""The fast path: messages between the socket and meshkit without nats-py's part of the way.

nats-py goes on doing the connection: handshake, TLS, authentication, reconnects, JetStream. What it does for
each message (seven regular expressions, a queue and a task hop on the way in, a dictionary of headers, a
future and another task on the way out) costs more than all of meshkit. Here a message is found, cut out and
delivered within one callback of the event loop, and what was sent during a turn of the loop is written at its
end.

It reaches into nats-py, so it says which of its versions it is proved with. With another one, or one that
lacks something, the transport says why and keeps to nats-py's public interface.
"""

# nats-py leaves many of its types open, and what is replaced here lies inside of it.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# ruff: noqa: SLF001

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Container
from functools import partial
from typing import Any, cast

from nats import errors
from nats.aio.client import Client, __version__
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from meshkit.headers import FRAME, VERSION
from meshkit.transport.client import Deliver, GuardedClient

log = logging.getLogger("meshkit.transport")

PROVED_WITH = "2.16."

# How reply subjects begin, behind the inbox, that are for more than one message.
ATTACHED = b"s"

# Bytes of a read after which there is probably more. uvloop would go on up to 8 MiB, which are more messages
# than an instance keeps, before it runs the tasks that they start.
_FULL = 250_000
# A control line of a server that is longer is none; the longest, INFO, has some kilobytes.
_LONGEST_LINE = 1024 * 1024
_VERSION = len(VERSION)
_MSG, _HMSG = ord("M"), ord("H")
# What of nats-py's client it uses or replaces.
_CLIENT = (
    *("_pending", "_pending_data_size", "_transport", "_sid", "_flush_pending", "_remove_sub"),
    *("_process_connect_init", "_process_op_err", "_process_err", "_process_info", "_process_msg"),
    *("_process_ping", "_process_pong"),
)


class FastClient(GuardedClient):
    """A guarded client with the fast path, on TCP and TLS; on a WebSocket, nats-py reads and writes."""

    def __init__(
        self, inbox: str, *, waiting: Container[bytes], tls: bool, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(inbox, waiting=waiting, tls=tls, on_lost=on_lost)
        self._loop = asyncio.get_running_loop()
        self._delivers: dict[bytes, Deliver] = {}
        self._wire: Wire | None = None
        self._write_due = False

    # Out

    def send(self, subject: str, payload: bytes, head: bytes, reply: bytes) -> Awaitable[None] | None:
        """Have a message written at the end of this turn of the event loop."""
        if head:
            size = len(head) + FRAME
            command = b"HPUB %b %b %d %d\r\nNATS/1.0%b\r\n\r\n%b\r\n" % (
                subject.encode(),
                reply,
                size,
                size + len(payload),
                head,
                payload,
            )
        else:
            command = b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply, len(payload), payload)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._wire is None:
            return super()._flush_pending()
        if not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write)
        return None

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # What nats-py itself sends goes the same way, so that nothing overtakes anything.
        if self._wire is None:
            return await super()._flush_pending(force_flush)
        if not self._write_due:
            self._write_due = True
            self._loop.call_soon(self._write)
        return None

    def _write(self) -> None:
        self._write_due = False
        wire = self._wire
        # What cannot be written waits, and is what `pending_data_size` bounds.
        if self._pending and wire is not None and wire.is_writable and self.is_connected:
            pending, self._pending = self._pending, []
            self._pending_data_size = 0
            wire.transport.write(b"".join(pending))

    def write_again(self) -> None:
        """The server reads again: send what waited, but no request that was given up meanwhile."""
        self._keep(self._is_wanted)
        self._write()

    def _is_wanted(self, command: bytes) -> bool:
        line = command[: command.find(b"\r\n")]
        at = line.find(self._inbox)
        token = line[at + len(self._inbox) :].partition(b" ")[0]
        # An item of a stream is wanted, though its producer may be done and wait for nothing more.
        return at < 0 or token.startswith(ATTACHED) or token in self._waiting

    # In

    async def listen(self, subject: str, queue: str, deliver: Deliver) -> Subscription:
        """Subscribe; in order of their arrival, messages are delivered without waiting for anything."""
        # Without a callback nats-py starts no task for the subscription, and keeps it for reconnects.
        number = b"%d" % (self._sid + 1)
        self._delivers[number] = deliver
        try:
            return await self.subscribe(subject, queue=queue)
        except BaseException:
            del self._delivers[number]
            raise

    def redirect(self, subscription: Subscription, deliver: Deliver) -> None:
        """Deliver the next messages of a subscription to somebody else."""
        number = b"%d" % subscription._id
        if number in self._delivers:  # else it has ended
            self._delivers[number] = deliver

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._delivers.pop(b"%d" % sid, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # Called by nats-py's parser on a WebSocket, and for subscriptions of nats-py's own.
        deliver = self._delivers.get(b"%d" % sid)
        if deliver is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            deliver(subject, reply, headers[_VERSION:] if headers else b"", data)

    async def _process_connect_init(self) -> None:
        if self._wire is not None:
            self._wire.end()
        await super()._process_connect_init()
        if isinstance(self._transport, TcpTransport):
            self._wire = Wire(self, self._transport, self._delivers)

    def _lose(self) -> None:
        if self._wire is not None:
            self._wire.end()
        super()._lose()


class Wire(asyncio.Protocol):
    """What reads from a connection in place of nats-py's reader.

    nats-py's own protocol is told what happens to the connection, so that its reading task, which sleeps
    meanwhile, notices the end.

    Args:
        client: Whose connection it is.
        connection: The connection.
        delivers: By subscription, who takes its messages.
    """

    def __init__(self, client: FastClient, connection: TcpTransport, delivers: dict[bytes, Deliver]) -> None:
        assert connection._io_writer is not None
        assert connection._io_reader is not None
        self.transport = cast("asyncio.Transport", connection._io_writer.transport)
        self._is_paused = False
        self._is_over = False
        self._client = client
        self._delivers = delivers
        self._before: Any = self.transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._rest: list[bytes] = []
        self._missing = 0
        self._others: deque[Callable[[], Awaitable[object]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.transport.set_protocol(self)
        # What nats-py's reader has read already comes first.
        reader: Any = connection._io_reader
        early, reader._buffer = bytes(reader._buffer), bytearray()
        reader._maybe_resume_transport()
        if early:
            self.data_received(early)

    @property
    def is_writable(self) -> bool:
        """Whether the socket takes more."""
        return not (self._is_paused or self._is_over or self.transport.is_closing())

    def end(self) -> None:
        """Take nothing more from it, and send nothing more."""
        self._is_over = True
        self._others.clear()  # a late PONG would count for the next connection's PING
        self.transport.abort()

    def pause_writing(self) -> None:
        """The server does not read as fast as we write."""
        self._is_paused = True
        self._before.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._before.resume_writing()
        self._client.write_again()

    def eof_received(self) -> bool | None:
        """The server has said its last."""
        return self._before.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._is_over = True
        self._before.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Deliver what has arrived in full, keep the rest."""
        if len(data) >= _FULL and not self.transport.is_closing():
            self.transport.pause_reading()
            self._loop.call_soon(self._read_on)
        if self._rest:
            self._rest.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._rest)
            self._rest.clear()
        if self._is_over:
            return
        try:
            used, self._missing = self._take(data)
        except (ValueError, IndexError, RecursionError):
            used = len(data)
            self._break(errors.ProtocolError())
        if used < len(data):
            self._rest.append(data[used:] if used else data)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _take(self, data: bytes) -> tuple[int, int]:
        """Take messages and control lines; says how many bytes were used, and how many more are needed."""
        delivers = self._delivers
        position = 0
        end = len(data)
        while position < end:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                if end - position > _LONGEST_LINE:
                    raise ValueError
                return position, 1
            body = line_end + 2
            kind = data[position]
            if kind == _HMSG:
                # Not any white space: a subject may hold some.
                parts = data[position + 5 : line_end].split(b" ")
                body_end = body + int(parts[-1])
                payload = body + int(parts[-2])
                head = body + _VERSION
                words = 5
            elif kind == _MSG:
                parts = data[position + 4 : line_end].split(b" ")
                payload = head = body
                body_end = body + int(parts[-1])
                words = 4
            else:
                self._control(data[position:line_end])
                position = body
                continue
            if not body <= payload <= body_end:
                raise ValueError
            if body_end + 2 > end:
                return position, body_end + 2 - end
            deliver = delivers.get(parts[1])
            reply = parts[2] if len(parts) == words else b""
            if deliver is not None:
                deliver(parts[0], reply, data[head:payload], data[payload:body_end])
            else:
                self._later(
                    partial(
                        self._client._process_msg,
                        int(parts[1]),
                        parts[0],
                        reply,
                        data[payload:body_end],
                        data[body:payload],
                    )
                )
            position = body_end + 2
        return position, 0

    def _control(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"PONG":
            self._later(self._client._process_pong)
        elif word == b"PING":
            self._later(self._client._process_ping)
        elif word == b"INFO":
            self._later(partial(self._client._process_info, json.loads(rest)))
        elif word == b"-ERR":
            self._later(partial(self._client._process_err, rest.decode(errors="replace").strip().lower()))
        elif word != b"+OK":
            raise ValueError

    def _later(self, work: Callable[[], Awaitable[object]]) -> None:
        """Have nats-py do something, after all else that it was asked to do before."""
        self._others.append(work)
        if self._worker is None or self._worker.done():
            self._worker = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while self._others:
            try:
                await self._others.popleft()()
            except Exception as error:
                log.exception("what NATS says is not understood; reconnecting")
                await self._client._process_op_err(error)

    def _break(self, error: Exception) -> None:
        self._is_over = True
        self._later(partial(self._client._process_op_err, error))


def _problem() -> str | None:
    """Why the fast path cannot be used with the nats-py that is there; None if it can."""
    if not __version__.startswith(PROVED_WITH):
        return f"nats-py {__version__} is none of {PROVED_WITH}x, which it is proved with"
    for thing, names in (
        (Client(), _CLIENT),
        (TcpTransport(), ("_io_reader", "_io_writer")),
        (asyncio.StreamReader, ("_maybe_resume_transport",)),
    ):
        if missing := [name for name in names if not hasattr(thing, name)]:
            return f"nats-py {__version__} has no {missing[0]}"
    return None


# Why the fast path cannot be used; None if it can.
PROBLEM = _problem()
