"""Compliance: watches every save and every delete for what must never happen."""

from collections.abc import AsyncIterator
from typing import Any

from messages import Payment, Stay
from msgspec import Struct, convert

from meshkit import Context, Service


class Register(Struct):
    """What was saved and deleted since the service started."""

    saves: int = 0
    deletes: int = 0
    paid: set[int] = set()
    deleted: set[int] = set()
    faults: list[str] = []


service = Service("compliance", version="1.0.0", description="Watches every save and delete")


@service.lifespan
async def keep_register() -> AsyncIterator[Register]:
    """The register is `ctx.state` in the handlers."""
    register = Register()
    yield register
    verdict = f"NOT OK: {', '.join(register.faults)}" if register.faults else "ok"
    print(
        f"compliance: {register.saves} saves, {register.deletes} deletes; nothing paid was deleted: {verdict}"
    )


@service.subscribe("hotel.{origin}.{thing}.saved")
async def saved(what: dict[str, Any], origin: str, thing: str, ctx: Context) -> None:
    """Something was created or changed. What is paid for must not have been deleted."""
    register: Register = ctx.state
    register.saves += 1
    if (origin, thing) == ("billing", "payment"):
        stay = convert(what, Payment).stay
        register.paid.add(stay)
        if stay in register.deleted:
            await accuse(ctx, f"stay {stay} was paid for after its booking was deleted")


@service.subscribe("hotel.{origin}.{thing}.deleted")
async def deleted(what: dict[str, Any], origin: str, thing: str, ctx: Context) -> None:
    """Something is gone. That must be a booking, and one that nobody paid for."""
    register: Register = ctx.state
    register.deletes += 1
    if (origin, thing) != ("rooms", "booking"):
        await accuse(ctx, f"{origin} deleted its {thing} {what}")
        return
    stay = convert(what, Stay).number
    register.deleted.add(stay)
    if stay in register.paid:
        await accuse(ctx, f"the booking of stay {stay} was deleted after it was paid for")


async def accuse(ctx: Context, fault: str) -> None:
    """Publish what must never happen."""
    ctx.state.faults.append(fault)
    await ctx.mesh.publish("hotel.compliance.rule.error", fault)
