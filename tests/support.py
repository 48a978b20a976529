"""What several test modules need."""

import asyncio

from meshkit import Context, Service


async def until(condition, seconds=5.0):
    """Wait for something real: a process, a server, a message on its way."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def gated(name="gated", **options):
    """A service whose handler waits for `gate`; `running` counts those that do."""
    service = Service(name, **options)
    service.gate = asyncio.Event()
    service.running = 0

    @service.endpoint()
    async def wait(ctx: Context) -> str:
        service.running += 1
        try:
            await service.gate.wait()
        finally:
            service.running -= 1
        return "done"

    return service
