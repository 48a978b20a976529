"""The rooms: what they cost, and who has them. No room is ever given to two guests."""

import os
import sqlite3
import time
from collections.abc import AsyncIterator
from itertools import pairwise

from database import database
from messages import Booking, Cut, House, Report, Stay

from meshkit import Context, NotFound, Service, ServiceError

ROOMS = range(1, int(os.environ.get("HOTEL_ROOMS", "8")) + 1)
HOLD_SECONDS = 5  # how long a booked room waits for its guest
SCHEMA = """
CREATE TABLE IF NOT EXISTS stays (
    number INTEGER PRIMARY KEY AUTOINCREMENT, room INTEGER, guest TEXT, nights INTEGER, price INTEGER,
    booked REAL, arrived REAL, departed REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_guest_a_room ON stays (room) WHERE departed IS NULL;
"""

# One call at a time: they share the connection to the database.
service = Service(
    "rooms", version="1.0.0", description="What rooms cost, and who has them", timeout=2, concurrency=1
)
one_stay = service.group("rooms.stays.{number}")


@service.lifespan
async def open_database() -> AsyncIterator[sqlite3.Connection]:
    """The database is `ctx.state` in the endpoints."""
    with database("rooms", SCHEMA) as db:
        yield db
        print("rooms:", look(db).report.shown("no room given to two guests"))


@service.health
def reads(db: sqlite3.Connection) -> None:
    """Healthy is who can read."""
    db.execute("SELECT number FROM stays LIMIT 1")


@service.endpoint("rooms.{room}.price", idempotent=True)
def price(room: int) -> int:
    """What a night costs."""
    if room not in ROOMS:
        raise NotFound(f"there is no room {room}")
    return 80 + 15 * (room % 4)


@service.endpoint(idempotent=True)
def free(ctx: Context) -> list[int]:
    """Which rooms nobody has."""
    overdue = time.time() - HOLD_SECONDS
    taken = {stay.room for stay in guests(ctx) if stay.arrived or stay.booked > overdue}
    return [room for room in ROOMS if room not in taken]


@service.endpoint(idempotent=True)
def guests(ctx: Context) -> list[Stay]:
    """Who has a room."""
    return [Stay(*row) for row in ctx.state.execute("SELECT * FROM stays WHERE departed IS NULL")]


@service.endpoint()
def book(booking: Booking, ctx: Context) -> Stay:
    """Give a room to a guest."""
    now = time.time()
    delete = "DELETE FROM stays WHERE room = ? AND arrived IS NULL AND booked <= ? RETURNING *"
    change(ctx, "booking.deleted", delete, booking.room, now - HOLD_SECONDS)
    insert = "INSERT OR IGNORE INTO stays VALUES (NULL, ?, ?, ?, ?, ?, NULL, NULL) RETURNING *"
    values = (booking.room, booking.guest, booking.nights, price(booking.room), now)
    stay = change(ctx, "booking.saved", insert, *values)
    if stay is None:
        raise ServiceError(409, f"room {booking.room} is taken")
    return stay


@one_stay.endpoint(idempotent=True)
def show(number: int, ctx: Context) -> Stay:
    """Look at a stay."""
    row = ctx.state.execute("SELECT * FROM stays WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise NotFound(f"there is no stay {number}")
    return Stay(*row)


@one_stay.endpoint(idempotent=True)
def arrive(number: int, ctx: Context) -> Stay:
    """The guest comes."""
    update = "UPDATE stays SET arrived = ? WHERE number = ? AND arrived IS NULL RETURNING *"
    stay = change(ctx, "arrival.saved", update, time.time(), number) or show(number, ctx)
    if stay.departed:
        raise ServiceError(409, f"the guest of stay {number} has left")
    return stay


@one_stay.endpoint(idempotent=True)
def depart(number: int, ctx: Context) -> Stay:
    """The guest leaves."""
    update = "UPDATE stays SET departed = ? WHERE number = ? AND arrived AND departed IS NULL RETURNING *"
    stay = change(ctx, "departure.saved", update, time.time(), number) or show(number, ctx)
    if not stay.arrived:
        raise ServiceError(409, f"the guest of stay {number} has not checked in")
    return stay


@service.endpoint(idempotent=True)
def audit(ctx: Context) -> House:
    """Report the stays that are over."""
    return look(ctx.state)


def change(ctx: Context, event: str, statement: str, *values: object) -> Stay | None:
    """Change a stay and publish it; None if none fits the statement."""
    with ctx.state as db:
        row = db.execute(statement, values).fetchone()
    if row is None:
        return None
    stay = Stay(*row)
    ctx.run(ctx.mesh.publish(f"hotel.rooms.{event}", stay))
    return stay


def look(db: sqlite3.Connection) -> House:
    """Go through all stays there ever were."""
    stays = [Stay(*row) for row in db.execute("SELECT * FROM stays ORDER BY room, booked")]
    over = [stay for stay in stays if stay.departed]
    faults = [
        f"stays {first.number} and {second.number} had room {first.room} together"
        for first, second in pairwise(stays)
        if first.room == second.room and not (first.departed and first.departed <= second.booked)
    ]
    amount = sum(stay.nights * stay.price for stay in over)
    report = Report(len(over), sum(stay.nights for stay in over), amount, faults)
    open_stays = [stay.number for stay in stays if not stay.departed]
    return House(report, Cut(max((stay.number for stay in stays), default=0), open_stays))
