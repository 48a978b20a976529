"""FastStream on NATS as its documentation has it: pydantic models, `request` for calls.

Its own headers (content type, correlation id) travel and no others; it logs nothing here, which it would do
for each message.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream.nats import NatsBroker
from pydantic import BaseModel

from benchmarks.work import Call, check


class Ask(BaseModel):
    """A request."""

    name: str
    n: int


class Answer(BaseModel):
    """Its reply."""

    greeting: str
    n: int


@asynccontextmanager
async def serve(url: str, *, nap: float = 0, max_workers: int = 1) -> AsyncIterator[None]:
    """The echo."""
    broker = NatsBroker(url, logger=None)

    @broker.subscriber("echo", queue="q", max_workers=max_workers)
    async def echo(ask: Ask) -> Answer:
        if nap:
            await asyncio.sleep(nap)
        return Answer(greeting=f"hello {ask.name}", n=ask.n + 1)

    async with broker:
        await broker.start()
        yield


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Call]:
    """Its caller."""
    async with NatsBroker(url, logger=None) as broker:

        async def call(n: int) -> None:
            reply = await broker.request(Ask(name="world", n=n), "echo", timeout=5)
            check(Answer.model_validate_json(reply.body).n, n)

        yield call
