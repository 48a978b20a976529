"""Guests: the load. They arrive, stay and leave, and now and then ask whether the books are in order."""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import frontdesk
import rooms
from messages import Reservation, Stay

from meshkit import Mesh, MeshError, Service, Unavailable

T = TypeVar("T")

ARRIVALS_PER_SECOND = float(os.environ.get("HOTEL_ARRIVALS_PER_SECOND", "2"))
NIGHT_SECONDS = float(os.environ.get("HOTEL_NIGHT_SECONDS", "1"))
AUDIT_SECONDS = 2
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gail", "Hugo", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned")

service = Service("guests", version="1.0.0", description="Guests who arrive, stay and leave")


@service.lifespan
async def come_and_go(mesh: Mesh) -> AsyncIterator[None]:
    """Guests come as long as the service runs."""
    counts = Counter[str]()
    async with asyncio.TaskGroup() as tasks:
        crowd = tasks.create_task(come(mesh, counts))
        yield
        crowd.cancel()
    print(f"guests: {shown(counts)}")


async def come(mesh: Mesh, counts: Counter[str]) -> None:
    """Let guests in, one after the other."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(tell(mesh, counts))
        # Who had a room when this service was last stopped still has it.
        for stay in await insist(lambda: mesh.call(rooms.guests)):
            tasks.create_task(stay_over(mesh, stay, counts))
        await insist(lambda: opened(mesh))
        for name in itertools.cycle(NAMES):
            tasks.create_task(visit(mesh, name, counts))
            await asyncio.sleep(random.expovariate(ARRIVALS_PER_SECOND))


async def opened(mesh: Mesh) -> None:
    """All books are open. An event reaches who listens by then, and nobody later."""
    if (await mesh.call(frontdesk.audit)).persistence is None:
        raise Unavailable("nobody writes down what happens")


async def visit(mesh: Mesh, name: str, counts: Counter[str]) -> None:
    """A guest's visit, if there is a room."""
    try:
        stay = await mesh.call(frontdesk.reserve, Reservation(name, random.randint(1, 4)))
    except MeshError:
        counts["turned away"] += 1
    else:
        await stay_over(mesh, stay, counts)


async def stay_over(mesh: Mesh, stay: Stay, counts: Counter[str]) -> None:
    """From check-in to check-out, unless the guest does not come."""
    if not stay.arrived and random.random() < 0.1:
        counts["did not come"] += 1
        return
    try:
        await insist(lambda: mesh.call(frontdesk.checkin.at(number=stay.number)))
        counts["arrived"] += 1
        await asyncio.sleep(stay.nights * NIGHT_SECONDS)
        invoice = await insist(lambda: mesh.call(frontdesk.bill.at(number=stay.number)))
        await insist(lambda: mesh.call(frontdesk.checkout.at(number=stay.number), invoice.amount))
        counts["left"] += 1
    except MeshError as error:
        print(f"guests: {stay.guest} complains: {error}")


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Try again until the hotel works: nobody leaves without paying because a service is away."""
    while True:
        try:
            return await call()
        except MeshError as error:
            if error.code < 500:  # a refusal: it will not change
                raise
            await asyncio.sleep(1)


async def tell(mesh: Mesh, counts: Counter[str]) -> None:
    """Print how it goes."""
    while True:
        await asyncio.sleep(AUDIT_SECONDS)
        try:
            audit = await mesh.call(frontdesk.audit)
        except MeshError as error:
            print(f"guests: {shown(counts)}; no audit: {error}")
        else:
            print(f"guests: {shown(counts)}; audit: {audit}")


def shown(counts: Counter[str]) -> str:
    """The counts in one line."""
    return ", ".join(f"{counts[what]} {what}" for what in ("arrived", "left", "did not come", "turned away"))
