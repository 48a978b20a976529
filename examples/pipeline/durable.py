"""The same on durable endpoints: JetStream keeps what is not done, and knows who is ready.

`meshkit run examples/pipeline/durable.py --workers mapper=10`
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from cities import CHUNKS, OBJECTS, first_cities, part
from database import answers, prepare, save
from geography import World, mapped_chunk, world
from messages import Chunk, MappedChunk, Saved

from meshkit import Context, Job, Mesh, Service, StreamConfig
from meshkit.durable.jetstream import JetStream

# Subjects of its own: on one server, what the other variant sends is not for these streams.
MAPPER_DATA, SAVER_DATA, PROCESSED = "pipeline.mapper_data", "pipeline.saver_data", "pipeline.processed_data"

# Each message has an id, and is stored once, whoever sends it again because somebody was killed.
WORK = StreamConfig("PIPELINE", [MAPPER_DATA, SAVER_DATA], duplicate_window="30d")
DONE = StreamConfig("PIPELINE_DONE", [PROCESSED], duplicate_window="30d")

fetcher = Service("fetcher", version="2.0.0", description="Sends the data, all of it", streams=[WORK])
mapper = Service("mapper", version="2.0.0", description="Finds out what is around each city")
saver = Service("saver", version="2.0.0", description="Saves what is processed", streams=[DONE])
saver.health(answers)
log = logging.getLogger("pipeline")


@fetcher.lifespan
async def send(mesh: Mesh) -> AsyncIterator[Job]:
    """Have everything stored. What was stored before is not stored again, and what is done is counted."""
    async with mesh.publisher() as publisher:
        for number in range(CHUNKS):
            chunk = Chunk(number, part(first_cities(), number))
            await publisher.publish(MAPPER_DATA, chunk, id=f"chunk-{number}")
    log.info("Sent data, all %d chunks of it", CHUNKS)
    done = await JetStream(mesh.transport).stream(DONE.name)
    if done.state.messages == CHUNKS:
        log.info("All %d chunks are saved: %d objects", CHUNKS, OBJECTS)
    yield mesh.job("chunks", CHUNKS, sent=CHUNKS, done=done.state.messages)


@mapper.lifespan
async def look_at_the_world() -> AsyncIterator[World]:
    """Read the larger cities once."""
    yield world()


@mapper.consume(MAPPER_DATA, stream=WORK, concurrency=1, ack_wait="10s", max_deliver=100)
async def process(chunk: Chunk, ctx: Context) -> None:
    """Process a chunk, and have the result stored."""
    processed = await mapped_chunk(chunk, ctx.state)
    await ctx.mesh.publish(SAVER_DATA, processed, durable=True, id=f"processed-{chunk.number}")


@saver.lifespan
async def open_database() -> AsyncIterator[None]:
    """Without it there is no saver: `meshkit run` tries again."""
    prepare()
    yield


@saver.consume(SAVER_DATA, stream=WORK, concurrency=1, ack_wait="10s", max_deliver=100)
async def write(chunk: MappedChunk, ctx: Context) -> None:
    """Save a chunk; when that is certain, have it stored that it is."""
    await asyncio.to_thread(save, chunk)
    await ctx.mesh.publish(PROCESSED, Saved(chunk.number), durable=True, id=f"saved-{chunk.number}")


@fetcher.consume(PROCESSED, stream=DONE)
async def count(saved: Saved, ctx: Context) -> None:
    """Tell how far it is: each chunk is in that stream once, so the numbers of its messages count them."""
    ctx.state.done = max(ctx.state.done, ctx.delivery.sequence)
    log.info("Saved data #%d, %d remaining", saved.number, ctx.state.left)
    if ctx.delivery.sequence == CHUNKS:
        log.info("All %d chunks are saved: %d objects", CHUNKS, OBJECTS)
