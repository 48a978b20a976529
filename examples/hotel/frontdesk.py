"""The front desk: what guests ask for, put together from rooms and billing.

It keeps nothing, so there can be any number of desks.
"""

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import billing
import persistence
import rooms
from messages import Audit, Booking, Invoice, Payment, Reservation, Stay

from meshkit import Context, MeshError, Service, ServiceError, Unavailable

service = Service("frontdesk", version="1.0.0", description="What guests ask for")
one_stay = service.group("frontdesk.{number}")


@service.endpoint()
async def reserve(wish: Reservation, ctx: Context) -> Stay:
    """Book a room that is free."""
    async with watched(ctx, "reservation"):
        free = await ctx.mesh.call(rooms.free)
        for room in random.sample(free, len(free)):
            try:
                return await ctx.mesh.call(rooms.book, Booking(room, wish.guest, wish.nights))
            except ServiceError as error:
                if error.code != 409:  # another desk was faster: the next room, then
                    raise
        raise ServiceError(409, f"the hotel is full, {wish.guest} has to go elsewhere")


@one_stay.endpoint(idempotent=True)
async def checkin(number: int, ctx: Context) -> Stay:
    """Take the key."""
    async with watched(ctx, "checkin"):
        stay = await ctx.mesh.call(rooms.arrive.at(number=number))
    text = f"{stay.guest} has room {stay.room} for {stay.nights} x {stay.price} euros"
    await ctx.mesh.publish("hotel.frontdesk.checkin.info", text)
    return stay


@one_stay.endpoint(idempotent=True)
async def bill(number: int, ctx: Context) -> Invoice:
    """Ask for the bill."""
    async with watched(ctx, "bill"):
        stay = await ctx.mesh.call(rooms.show.at(number=number))
        if not stay.arrived:
            raise ServiceError(409, f"{stay.guest} has not checked in")
        return await ctx.mesh.call(billing.invoice, stay)


@one_stay.endpoint(idempotent=True)
async def checkout(number: int, amount: int, ctx: Context) -> Stay:
    """Pay the bill and return the key."""
    async with watched(ctx, "checkout"):
        # In this order: if the second call fails, the guest tries again, and pays nothing twice.
        await ctx.mesh.call(billing.pay, Payment(number, amount))
        stay = await ctx.mesh.call(rooms.depart.at(number=number))
    text = f"{stay.guest} has left room {stay.room} and paid {amount} euros"
    await ctx.mesh.publish("hotel.frontdesk.checkout.info", text)
    return stay


@service.endpoint(idempotent=True)
async def audit(ctx: Context) -> Audit:
    """Compare everybody's books."""
    house = await ctx.mesh.call(rooms.audit)
    ledger = await ctx.mesh.call(billing.audit, house.cut)
    try:
        record = await ctx.mesh.call(persistence.audit, house.cut)
    except Unavailable:
        record = None
    # Persistence may know of fewer stays: it lacks what was published while it was away.
    faults = house.report.faults + ledger.faults + (record.faults if record else [])
    ok = house.report == ledger and not faults
    return Audit(ok, house.report, ledger, record)


@asynccontextmanager
async def watched(ctx: Context, what: str) -> AsyncGenerator[None]:
    """Publish why a guest was refused: a warning if the rules say so, an error if something is broken."""
    try:
        yield
    except MeshError as error:
        level, text = ("warn", error.message) if error.code < 500 else ("error", str(error))
        await ctx.mesh.publish(f"hotel.frontdesk.{what}.{level}", text)
        raise
