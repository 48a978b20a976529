"""What a type checker knows of calls: checked by `make check`, not run."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_type

import msgspec

from meshkit import Context, Mesh, Service
from meshkit.stream import Stream


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


@service.endpoint()
async def watch(since: int) -> AsyncIterator[Receipt]:
    """A stream."""
    yield Receipt(since)


@service.group("hotel").endpoint("{room}.guests")
async def guests(room: int) -> AsyncGenerator[str, None]:
    """A stream, annotated as what it is."""
    yield f"guest of {room}"


async def read(mesh: Mesh) -> None:
    """The same of streams."""
    assert_type(mesh.stream(watch, 1), Stream[Receipt])
    async for receipt in mesh.stream(watch, 1, timeout="10m", message_timeout=5):
        assert_type(receipt, Receipt)
    async with mesh.stream("rooms.watch", 1, returns=Receipt) as receipts:
        assert_type(await anext(receipts), Receipt)
    assert_type(mesh.stream(guests.at(room=1)), Stream[str])
    assert_type(mesh.stream("rooms.watch"), Stream[Any])
    assert_type(watch(1), AsyncIterator[Receipt])
    mesh.stream(book, Booking(1))  # pyright: ignore[reportArgumentType, reportCallIssue] # it yields nothing


async def check(mesh: Mesh, ctx: Context) -> None:
    """Each line is what a user relies on."""
    assert_type(await mesh.call(book, Booking(1)), Receipt)
    assert_type(await mesh.call(price.at(room=1)), float)
    assert_type(await mesh.call("rooms.book", Booking(1), returns=Receipt), Receipt)
    assert_type(await mesh.call("rooms.book", Booking(1)), Any)
    assert_type(await book(Booking(1)), Receipt)
    assert_type(price(1, ctx), float)
    assert_type(ctx.run(mesh.call(book, Booking(1))), Receipt)
