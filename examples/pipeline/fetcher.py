"""The fetcher: gives chunks to mappers that are ready, until all are saved. There is one of it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import NamedTuple

from cities import CHUNKS, OBJECTS, first_cities, part
from messages import MAPPER_DATA, MAPPER_STATUS, PROCESSED_DATA, Chunk, City, Ready, Saved
from record import Record, record

from meshkit import Context, Job, Mesh, Service

service = Service(
    "fetcher", version="1.0.0", description="Sends the data, chunk by chunk, until all of it is saved"
)
log = logging.getLogger("pipeline")


class State(NamedTuple):
    """What the fetcher knows: the data, what of it is not saved, and how far that is, for `meshkit jobs`."""

    cities: list[City]
    record: Record
    job: Job


@service.lifespan
async def begin(mesh: Mesh) -> AsyncIterator[State]:
    """Go on where the record ends."""
    with record() as unsaved:
        log.info("%d of %d chunks are to be saved", len(unsaved), CHUNKS)
        state = State(first_cities(), unsaved, mesh.job("chunks", CHUNKS, done=CHUNKS - len(unsaved)))
        count(state)
        yield state


@service.subscribe(MAPPER_STATUS)
async def send(ready: Ready, ctx: Context) -> None:
    """Send a mapper, whichever the queue group picks, as many chunks as one can take."""
    state: State = ctx.state
    for _ in range(ready.chunks):
        number = state.record.take(asyncio.get_running_loop().time())
        if number is None:
            return
        count(state)
        log.info("Ready to send #%d", number)
        await ctx.mesh.publish(MAPPER_DATA, Chunk(number, part(state.cities, number)))
        log.info("Sent data #%d, %d remaining", number, len(state.record))


@service.subscribe(PROCESSED_DATA)
async def cross_off(saved: Saved, ctx: Context) -> None:
    """A chunk is saved. One that was sent twice is so twice, and the second time is no news."""
    if await ctx.state.record.cross_off(saved.number):
        count(ctx.state)


def count(state: State) -> None:
    """Tell how far it is."""
    state.job.sent = CHUNKS - state.record.unsent
    state.job.done = CHUNKS - len(state.record)
    if not state.record:
        log.info("All %d chunks are saved: %d objects", CHUNKS, OBJECTS)
