"""Mappers: they do the heavy work, as many of them as there are."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from geography import World, mapped_chunk, world
from messages import MAPPER_DATA, MAPPER_STATUS, SAVER_DATA, Chunk, Ready

from meshkit import Context, Disconnected, Mesh, Service

service = Service("mapper", version="1.0.0", description="Finds out what is around each city")

# A queue group deals at random: who is busy gets a chunk as likely as who is not. So all keep some in hand.
IN_HAND = 3
ANNOUNCE = 1.0  # seconds after which who has nothing to do says so again


@dataclass
class State:
    """What a mapper knows, and how many chunks it has in hand."""

    world: World
    chunks: int = 0
    work: asyncio.Lock = field(default_factory=asyncio.Lock)


@service.lifespan
async def announce(mesh: Mesh) -> AsyncIterator[State]:
    """Say that there is nothing to do, again and again: the fetcher may not have been there to hear it."""
    state = State(world())
    async with asyncio.TaskGroup() as tasks:
        announcing = tasks.create_task(keep_announcing(mesh, state))
        yield state
        announcing.cancel()


async def keep_announcing(mesh: Mesh, state: State) -> None:
    """Begin when the service has subscribed."""
    while True:
        await asyncio.sleep(ANNOUNCE)
        if not state.chunks:
            with suppress(Disconnected):  # NATS is away, and by the time that it is back this is said again
                await mesh.publish(MAPPER_STATUS, Ready(1))


@service.subscribe(MAPPER_DATA, queue="mappers", concurrency=1000)
async def process(chunk: Chunk, ctx: Context) -> None:
    """Process a chunk, one at a time, send it on, and ask for more."""
    state: State = ctx.state
    state.chunks += 1
    try:
        async with state.work:
            processed = await mapped_chunk(chunk, state.world)
        await ctx.mesh.publish(SAVER_DATA, processed)
    finally:
        state.chunks -= 1
    if state.chunks < IN_HAND:
        await ctx.mesh.publish(MAPPER_STATUS, Ready(IN_HAND - state.chunks))
