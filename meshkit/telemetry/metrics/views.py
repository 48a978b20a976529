"""What a process shows of itself on its metrics port."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec

from meshkit.instance import Instance
from meshkit.telemetry.metrics.families import families
from meshkit.telemetry.metrics.listener import JSON, Answer, Pages
from meshkit.telemetry.metrics.page import CONTENT_TYPE, page
from meshkit.telemetry.telemetry import Telemetry


def pages(telemetry: Telemetry) -> Pages:
    """The pages of a connection: `/metrics`, `/livez` and `/readyz`."""
    return {
        "/metrics": partial(_metrics, telemetry),
        "/livez": _live,
        "/readyz": partial(_ready, telemetry),
    }


async def _metrics(telemetry: Telemetry) -> Answer:
    return Answer(page(families(telemetry.reports())).encode(), CONTENT_TYPE)


async def _live() -> Answer:
    # That the event loop comes to answer is what is asked.
    return Answer(b"ok\n")


async def _ready(telemetry: Telemetry) -> Answer:
    """Whether calls should come here: connected, all instances up, none draining, all their checks well.

    Of a client, which has never served, that it is connected; who has served and serves no more is not ready.
    """
    instances = await asyncio.gather(*(_instance(each) for each in telemetry.instances.values()))
    is_ready = (
        telemetry.is_connected
        and bool(instances) == telemetry.serves
        and all(
            each["phase"] == "ready" and all(outcome == "ok" for outcome in each["checks"].values())
            for each in instances
        )
    )
    state = {"ready": is_ready, "connected": telemetry.is_connected, "instances": instances}
    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(msgspec.json.encode(state) + b"\n", JSON, status)


async def _instance(instance: Instance) -> dict[str, Any]:
    checks = await instance.health() if instance.phase == "ready" else {}
    return {
        "service": instance.service.name,
        "id": instance.id,
        "phase": instance.phase,
        "checks": checks,
    }
