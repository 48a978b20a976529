import contextlib

import pytest

from meshkit.discovery.protocol import (
    EndpointInfo,
    EndpointStats,
    InfoResponse,
    StatsResponse,
    new_instance_id,
)
from meshkit.discovery.responder import Responder
from meshkit.telemetry.report import Report


@pytest.fixture
def transport(mesh):
    return mesh.transport


@pytest.fixture
def answering(transport):
    """A responder for an instance with one endpoint: `async with answering("rooms") as info: ...`"""

    @contextlib.asynccontextmanager
    async def answer(name, *, version="1.0.0", metadata=None, description="", checks=None, **counted):
        book = {"name": "book", "subject": f"{name}.book", "queue_group": "q"}
        info = InfoResponse(
            name=name,
            id=new_instance_id(),
            version=version,
            metadata=metadata or {},
            description=description,
            endpoints=(EndpointInfo(**book, metadata={"of": version}),),
        )
        stats = StatsResponse(
            name=name,
            id=info.id,
            version=version,
            started="2026-01-02T03:04:05.678Z",
            endpoints=(EndpointStats(**book, **counted),),
        )
        report = Report(name=name, id=info.id)
        responder = Responder(transport, lambda: info, lambda: info, lambda: stats, lambda: report, checks)
        await responder.start()
        await transport.flush()
        yield info
        await responder.stop()

    return answer
