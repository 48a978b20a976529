"""Items of a stream that wait to be written."""

import asyncio
from collections.abc import AsyncIterator

from support import until

from meshkit import Service, connect


async def test_items_are_sent_when_the_server_reads_again_though_the_handler_has_ended(proxy, nats_server):
    service = Service("log")
    ended = []

    @service.endpoint()
    async def tail() -> AsyncIterator[int]:
        for number in range(60):
            yield number
        ended.append(True)

    async def read():
        return [number async for number in reader.stream(tail)]

    async with (
        connect(nats_server.url) as reader,
        connect(proxy.url) as mesh,
        mesh.serve(service) as instance,
    ):
        await proxy.stall(mesh)
        reading = asyncio.create_task(read())
        await until(lambda: ended and not instance._running)
        assert mesh.transport._client.pending_data_size > 0
        proxy.release()
        assert await reading == list(range(60))
