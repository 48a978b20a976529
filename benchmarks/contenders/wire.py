"""The limit: the protocol of NATS by hand, no library, and nothing that a real client must also do.

No timeouts, no reconnect, no back-pressure, no slow consumers. Headers are written from a template and cut
off unread. Commands are joined and written once a turn of the loop.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from benchmarks.work import Answer, Ask, Call, answer, check, headers

_ask, _answer = msgspec.json.Decoder(Ask), msgspec.json.Decoder(Answer)
_encode = msgspec.json.Encoder().encode

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"hand"}\r\n'
_LINES = b"".join(f"{name}: {text}\r\n".encode() for name, text in headers(0).items())
# The trace is another in every call, as elsewhere.
_HEADERS = b"NATS/1.0\r\n%b\r\n" % _LINES.replace(b"0" * 16, b"%016x")
_HEAD = len(_HEADERS % 0)


class Wire(asyncio.Protocol):
    """A connection.

    Args:
        take: Gets the subject, the reply subject (if there is one) and the payload of each message.
    """

    def __init__(self, take: Callable[[bytes, bytes, bytes], None]) -> None:
        self.take = take
        self.ready = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.WriteTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Cut messages out of the stream."""
        data = self._rest + data if self._rest else data
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            start = end + 2
            if data.startswith((b"MSG ", b"HMSG "), at):
                parts = data[at:end].split(b" ")
                stop = start + int(parts[-1])
                if len(data) < stop + 2:
                    break
                body = start + int(parts[-2]) if parts[0] == b"HMSG" else start
                self.take(parts[1], parts[3], data[body:stop])
                at = stop + 2
                continue
            if data.startswith(b"PING", at):
                self.send(b"PONG\r\n")
            elif data.startswith(b"PONG", at):
                self.ready.set_result(None)
            at = start
        self._rest = data[at:]

    def send(self, command: bytes) -> None:
        """Write a command at the end of this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)

    def publish(self, names: bytes, payload: bytes, n: int, *, with_headers: bool) -> None:
        """Publish to a subject; `names` is that and a reply subject, if any."""
        if with_headers:
            head = _HEADERS % n
            self.send(b"HPUB %b %d %d\r\n%b%b\r\n" % (names, _HEAD, _HEAD + len(payload), head, payload))
        else:
            self.send(b"PUB %b %d\r\n%b\r\n" % (names, len(payload), payload))

    def _flush(self) -> None:
        self.transport.write(b"".join(self._out))
        self._out.clear()


async def connection(url: str, subscription: bytes, take: Callable[[bytes, bytes, bytes], None]) -> Wire:
    """Connect and subscribe."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(lambda: Wire(take), address.hostname, address.port)
    wire.send(_CONNECT + b"SUB %b 1\r\nPING\r\n" % subscription)
    await wire.ready
    return wire


@asynccontextmanager
async def serve(url: str, *, with_headers: bool = False) -> AsyncIterator[None]:
    """The echo."""

    def take(_: bytes, reply: bytes, payload: bytes) -> None:
        ask = _ask.decode(payload)
        wire.publish(reply, _encode(answer(ask)), ask.n, with_headers=with_headers)

    wire = await connection(url, b"echo q", take)
    yield
    wire.transport.close()


@asynccontextmanager
async def client(url: str, *, with_headers: bool = False) -> AsyncIterator[Call]:
    """Its caller."""
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}
    tokens = itertools.count()

    def take(subject: bytes, _: bytes, payload: bytes) -> None:
        waiting.pop(subject).set_result(payload)

    async def call(n: int) -> None:
        inbox = b"_INBOX.hand.%d" % next(tokens)
        future = waiting[inbox] = loop.create_future()
        wire.publish(b"echo " + inbox, _encode(Ask("world", n)), n, with_headers=with_headers)
        check(_answer.decode(await future).n, n)

    wire = await connection(url, b"_INBOX.hand.*", take)
    yield call
    wire.transport.close()
