"""HTTP with aiohttp on both sides, JSON by msgspec, the three headers there; no access log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiohttp import ClientSession, ClientTimeout, web

from benchmarks.work import Answer, Ask, Call, answer, check, headers

_ask, _answer = msgspec.json.Decoder(Ask), msgspec.json.Decoder(Answer)
_encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def serve(port: int, *, nap: float = 0) -> AsyncIterator[None]:
    """The echo."""

    async def echo(request: web.Request) -> web.Response:
        ask = _ask.decode(await request.read())
        if nap:
            await asyncio.sleep(nap)
        return web.Response(body=_encode(answer(ask)), content_type="application/json")

    application = web.Application()
    application.router.add_post("/echo", echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield
    await runner.cleanup()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Call]:
    """Its caller."""
    url = f"http://127.0.0.1:{port}/echo"
    async with ClientSession(timeout=ClientTimeout(total=5)) as session:

        async def call(n: int) -> None:
            async with session.post(url, data=_encode(Ask("world", n)), headers=headers(n)) as reply:
                check(_answer.decode(await reply.read()).n, n)

        yield call
