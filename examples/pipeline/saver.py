"""Savers: they write into the database what the mappers have made."""

from collections.abc import AsyncIterator

from database import answers, prepare, save
from messages import PROCESSED_DATA, SAVER_DATA, MappedChunk, Saved

from meshkit import Context, Service

service = Service("saver", version="1.0.0", description="Saves what is processed")
service.health(answers)


@service.lifespan
async def open_database() -> AsyncIterator[None]:
    """Without it there is no saver: `meshkit run` tries again."""
    prepare()
    yield


@service.subscribe(SAVER_DATA, queue="savers")
def write(chunk: MappedChunk, ctx: Context) -> None:
    """Save a chunk; when that is certain, acknowledge it."""
    save(chunk)
    ctx.run(ctx.mesh.publish(PROCESSED_DATA, Saved(chunk.number)))
