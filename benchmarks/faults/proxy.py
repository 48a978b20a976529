"""A network that can be made to swallow everything: a proxy between clients and a server."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

_AT_ONCE = 65536


@asynccontextmanager
async def proxy(port: int) -> AsyncGenerator[dict[str, Callable[..., Any]]]:
    """Pass bytes both ways, or hold them, and the connections that are made meanwhile.

    Args:
        port: The server's, on this machine.
    """
    passes = asyncio.Event()
    passes.set()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await passes.wait()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.update((writer, server_writer))
        await asyncio.gather(_pass(reader, server_writer), _pass(server_reader, writer))

    async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_AT_ONCE):
                await passes.wait()
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.transport.abort()

    async def hold() -> None:
        passes.clear()

    async def release() -> None:
        passes.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def url() -> str:
        return f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    try:
        yield {"url": url, "hold": hold, "release": release}
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
