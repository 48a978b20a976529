"""Bare nats-py: a queue subscription whose callback answers, and `request`.

The callback of a subscription handles one message at a time: that is nats-py's way. With `tasks` each gets a
task, as its users do who need them side by side.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.work import Answer, Ask, Call, answer, check, check_bytes, headers

_ask, _answer, _encode = (
    msgspec.json.Decoder(Ask),
    msgspec.json.Decoder(Answer),
    msgspec.json.Encoder().encode,
)


async def connection(url: str, tls: dict[str, str] | None = None) -> Client:
    """A connection as its users make it."""
    options: dict[str, Any] = {}
    if tls is not None:
        options["tls"] = ssl.create_default_context(cafile=tls["ca"])
        options["tls"].load_cert_chain(tls["cert"], tls["key"])
    return await nats.connect(url, **options)


@asynccontextmanager
async def serve(
    url: str,
    *,
    with_headers: bool = False,
    tasks: bool = False,
    payload: int = 0,
    nap: float = 0,
    tls: dict[str, str] | None = None,
) -> AsyncIterator[None]:
    """The echo."""
    client = await connection(url, tls)

    async def handle(msg: Msg) -> None:
        if nap:
            await asyncio.sleep(nap)
        if payload:
            data, n = msg.data, 0
        else:
            ask = _ask.decode(msg.data)
            data, n = _encode(answer(ask)), ask.n
        await client.publish(msg.reply, data, headers=headers(n) if with_headers else None)

    running: set[asyncio.Task[None]] = set()

    async def spawn(msg: Msg) -> None:
        task = asyncio.create_task(handle(msg))
        running.add(task)
        task.add_done_callback(running.discard)

    await client.subscribe("echo", queue="q", cb=spawn if tasks else handle)
    await client.flush()
    yield
    await client.close()


@asynccontextmanager
async def client(
    url: str, *, with_headers: bool = False, payload: int = 0, tls: dict[str, str] | None = None
) -> AsyncIterator[Call]:
    """Its caller."""
    connected = await connection(url, tls)
    content = bytes(payload)

    async def call(n: int) -> None:
        sent = headers(n) if with_headers else None
        reply = await connected.request("echo", _encode(Ask("world", n)), timeout=5, headers=sent)
        check(_answer.decode(reply.data).n, n)

    async def call_bytes(n: int) -> None:
        sent = headers(n) if with_headers else None
        reply = await connected.request("echo", content, timeout=5, headers=sent)
        check_bytes(reply.data, content)

    yield call_bytes if payload else call
    await connected.close()
