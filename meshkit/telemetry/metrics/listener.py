"""The HTTP port of a process: what Prometheus, Kubernetes and load balancers ask it."""

import asyncio
import contextlib
import errno
import logging
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from meshkit.errors import ConfigError

log = logging.getLogger("meshkit.telemetry")

# Of a request, its headers included.
_MOST_BYTES = 8192
# Its end; who types it by hand may leave out the carriage returns.
_END = re.compile(rb"\r?\n\r?\n")
# Seconds from the beginning of a connection until the answer is read.
_PATIENCE = 10.0
# Connections at a time: strangers must not use up the process's file descriptors.
_MOST_CONNECTIONS = 64

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class Answer(NamedTuple):
    """What is shown at a path."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[], Awaitable[Answer]]]


@contextlib.asynccontextmanager
async def listening(port: int, pages: Pages) -> AsyncGenerator[None]:
    """Answer GET and HEAD on a port of all interfaces, for the time of an `async with` block.

    Prometheus and the probes of Kubernetes come from outside. Who is not to see it is kept away by the
    network: there is neither a password nor TLS.

    Args:
        port: The port.
        pages: What is shown, by path.

    Raises:
        ConfigError: The port is taken, or may not be used.
    """
    connections: dict[asyncio.Task[None], None] = {}  # in the order they came

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(connections) >= _MOST_CONNECTIONS:
            # Not the newest: who connects and says nothing would keep the probes out.
            oldest = next(iter(connections))
            del connections[oldest]
            oldest.cancel()
        task = asyncio.create_task(_serve(reader, writer, pages))
        connections[task] = None
        task.add_done_callback(lambda task: connections.pop(task, None))

    server = await asyncio.start_server(on_connection, sock=_bind(port), limit=_MOST_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _bind(port: int) -> socket.socket:
    family = socket.AF_INET6 if (dual := socket.has_dualstack_ipv6()) else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise ConfigError(f"the metrics port {port} {why}; choose another one") from None


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages) -> None:
    try:
        # Whoever hangs up, or takes too long, is not waited for.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                response = await _response(reader, pages)
                if writer.transport.is_closing():
                    return
                writer.write(response)
                await writer.drain()
                # Closing at once, with something unread, would have the system throw the answer away.
                writer.write_eof()
                while await reader.read(_MOST_BYTES):
                    pass
                writer.close()
                await writer.wait_closed()
    finally:
        # Closing would wait, without end, until who does not read has read everything.
        writer.transport.abort()


async def _response(reader: asyncio.StreamReader, pages: Pages) -> bytes:
    """The response to the request that comes; only one on each connection."""
    request = b""
    while not _END.search(request):
        if len(request) == _MOST_BYTES:
            text = f"A request has {_MOST_BYTES} bytes at most."
            return _rendered(_sentence(text, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        if not (more := await reader.read(_MOST_BYTES - len(request))):
            raise ConnectionResetError
        request += more
    method, _, rest = request.splitlines()[0].decode("latin-1").partition(" ")
    target, _, protocol = rest.partition(" ")
    if not protocol.startswith("HTTP/1."):
        return _rendered(_sentence("This is an HTTP/1.1 port.", HTTPStatus.BAD_REQUEST))
    if method not in {"GET", "HEAD"}:
        return _rendered(_sentence("Only GET and HEAD are answered here.", HTTPStatus.METHOD_NOT_ALLOWED))
    page = pages.get(target.partition("?")[0])
    if page is None:
        return _rendered(_sentence(f"There is {', '.join(pages)} here.", HTTPStatus.NOT_FOUND))
    try:
        answer = await page()
    except Exception:
        log.exception("%s cannot be shown", target)
        answer = _sentence("It failed; the log says why.", HTTPStatus.INTERNAL_SERVER_ERROR)
    return _rendered(answer, with_body=method == "GET")


def _sentence(text: str, status: HTTPStatus) -> Answer:
    return Answer(f"{text}\n".encode(), status=status)


def _rendered(answer: Answer, *, with_body: bool = True) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if answer.status == HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        f"{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (answer.body if with_body else b"")
