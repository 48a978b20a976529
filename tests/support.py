"""What several test modules need."""

import asyncio


async def until(condition, seconds=5.0):
    """Wait for something real: a process, a server, a message on its way."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
