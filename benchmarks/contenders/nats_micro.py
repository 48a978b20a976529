"""A service of nats-py's own `nats.micro`, called as any subject is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import nats
import nats.micro

from benchmarks.contenders.nats_py import client as client  # noqa: PLC0414 # the same
from benchmarks.work import Ask, answer

_ask, _encode = msgspec.json.Decoder(Ask), msgspec.json.Encoder().encode


@asynccontextmanager
async def serve(url: str) -> AsyncIterator[None]:
    """The echo."""
    connected = await nats.connect(url)
    service = await nats.micro.add_service(connected, name="bench", version="1.0.0")

    async def handle(request: nats.micro.Request) -> None:
        await request.respond(_encode(answer(_ask.decode(request.data))))

    await service.add_endpoint(name="echo", handler=handle)
    await connected.flush()
    yield
    await connected.close()
