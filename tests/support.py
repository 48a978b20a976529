"""What several test modules need."""

import asyncio

from meshkit import Context, Service


async def until(condition, seconds=5.0):
    """Wait for something real: a process, a server, a message on its way."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def until_by(clock, condition, seconds=5.0):
    """The same where a test's clock stands still: it moves on by a hundredth of a second at a time."""
    for _ in range(round(seconds * 100)):
        if condition():
            return
        await clock.advance(0.01)
    raise TimeoutError


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
