"""What a type checker knows of calls: checked by `make check`, not run."""

from typing import Any, assert_type

import msgspec

from meshkit import Context, Mesh, Service


class Booking(msgspec.Struct):
    """A message."""

    room: int


class Receipt(msgspec.Struct):
    """A reply."""

    total: float


service = Service("rooms")


@service.endpoint()
async def book(booking: Booking) -> Receipt:
    """An async endpoint."""
    return Receipt(booking.room)


@service.group("hotel").endpoint("{room}.price")
def price(room: int, ctx: Context) -> float:
    """A def endpoint."""
    return float(room) if ctx.caller else 0.0


async def check(mesh: Mesh, ctx: Context) -> None:
    """Each line is what a user relies on."""
    assert_type(await mesh.call(book, Booking(1)), Receipt)
    assert_type(await mesh.call(price.at(room=1)), float)
    assert_type(await mesh.call("rooms.book", Booking(1), returns=Receipt), Receipt)
    assert_type(await mesh.call("rooms.book", Booking(1)), Any)
    assert_type(await book(Booking(1)), Receipt)
    assert_type(price(1, ctx), float)
    assert_type(ctx.run(mesh.call(book, Booking(1))), Receipt)
