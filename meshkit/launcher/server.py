"""The NATS server of `meshkit run`: one that is there, or an embedded one that is kept alive."""

import contextlib
import socket
from collections.abc import AsyncGenerator

import anyio

from meshkit.connecting import reach
from meshkit.errors import ConfigError
from meshkit.launcher.beside import beside
from meshkit.launcher.supervisor import delays
from meshkit.launcher.view import Notice, Server, View
from meshkit.transport.server import EmbeddedServer

DEFAULT_PORT = 4222
_CHECK = 0.2  # seconds between two looks at whether the embedded server is alive


@contextlib.asynccontextmanager
async def server(url: str | None, view: View, monitor_port: int | None = None) -> AsyncGenerator[Server]:
    """Have a server for the time of the block.

    Args:
        url: The one to use; None for an embedded one.
        view: Is told what happens to an embedded one.
        monitor_port: Where an embedded one tells of itself over HTTP; 0 for a free port, None for nowhere.

    Raises:
        Disconnected: It cannot be reached.
        ConfigError: There is no nats-server to embed, or a port for it is taken.
    """
    if url is not None:
        if monitor_port is not None:
            raise ConfigError(f"--monitor-port is for an embedded nats-server, and {url} is to be used")
        async with reach(url, name="meshkit run") as transport:
            reached = Server(url, transport.server_url, transport.server_version, embedded=False)
        yield reached
        return
    embedded = _start(monitor_port)
    try:
        async with beside(_keep, embedded, view):
            yield Server(
                embedded.url,
                embedded.url,
                embedded.version,
                embedded=True,
                monitor=embedded.monitor_url,
            )
    finally:
        embedded.stop()


def _start(monitor: int | None) -> EmbeddedServer:
    """Start a server where clients look by default if nothing is there, else on a free port."""
    with contextlib.suppress(ConfigError):  # somebody else was faster to take the port
        return _started(EmbeddedServer(port=_port(), monitor=monitor))
    return _started(EmbeddedServer(monitor=monitor))


def _port() -> int | None:
    # Asking is surer than trying: what listens on all addresses may not be in the way.
    try:
        with socket.create_connection(("127.0.0.1", DEFAULT_PORT), timeout=1.0):
            return None
    except OSError:
        return DEFAULT_PORT


def _started(server: EmbeddedServer) -> EmbeddedServer:
    server.start()
    return server


async def _keep(embedded: EmbeddedServer, view: View) -> None:
    """Start the server again, on the same port and with the same store, whenever it dies."""
    while True:
        while embedded.is_running:  # noqa: ASYNC110 - a process's death sets no event
            await anyio.sleep(_CHECK)
        view.notice(Notice("nats-server", "died, starts again", trouble=True))
        for delay in delays():
            try:
                embedded.restart()
                break
            except ConfigError as error:
                view.notice(Notice("nats-server", f"{error}; tries again in {delay:.1f} s", trouble=True))
                await anyio.sleep(delay)
        view.notice(Notice("nats-server", f"runs again at {embedded.url}"))
