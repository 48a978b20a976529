"""Persistence: keeps everything that is published in the hotel."""

import sqlite3
import time
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from database import database
from messages import EVERYTHING, Cut, Invoice, Payment, Report, Stay

from meshkit import Context, Service

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, at REAL, subject TEXT, payload BLOB);
CREATE INDEX IF NOT EXISTS by_subject ON messages (subject);
"""

service = Service("persistence", version="1.0.0", description="Keeps everything that is published")


@service.lifespan
async def open_database() -> AsyncIterator[sqlite3.Connection]:
    """The database is `ctx.state` in the handlers."""
    with database("persistence", SCHEMA) as db:
        yield db
        print("persistence:", look(db, EVERYTHING).shown("nobody left without paying"))


# Everything that is published, that is, and not the calls: their subjects begin otherwise. For NATS whoever
# listens on a subject may answer there, so a call with a recorder on its subject would not fail at once when
# its service is away, but wait for its deadline.
@service.subscribe("hotel.>", queue="persistence")
def record(payload: bytes, ctx: Context) -> None:
    """Write a message down."""
    with ctx.state as db:
        insert = "INSERT INTO messages (at, subject, payload) VALUES (?, ?, ?)"
        db.execute(insert, (time.time(), ctx.subject, payload))


@service.endpoint(idempotent=True)
def audit(ctx: Context, cut: Cut = EVERYTHING) -> Report:
    """Report the stays whose end was recorded."""
    return look(ctx.state, cut)


def look(db: sqlite3.Connection, cut: Cut) -> Report:
    """Go through the record."""
    charged = {invoice.stay: invoice.amount for invoice in read(db, "hotel.billing.invoice.saved", Invoice)}
    paid = {payment.stay: payment.amount for payment in read(db, "hotel.billing.payment.saved", Payment)}
    over = [stay for stay in read(db, "hotel.rooms.departure.saved", Stay) if stay.number in cut]
    faults = [
        f"stay {stay.number} left after {charged.get(stay.number)} charged and {paid.get(stay.number)} paid"
        for stay in over
        if not stay.nights * stay.price == charged.get(stay.number) == paid.get(stay.number)
    ]
    amount = sum(paid.get(stay.number, 0) for stay in over)
    return Report(len(over), sum(stay.nights for stay in over), amount, faults)


def read(db: sqlite3.Connection, subject: str, kind: type[T]) -> list[T]:
    """The messages on a subject."""
    select = db.execute("SELECT payload FROM messages WHERE subject = ?", (subject,))
    return [msgspec.json.decode(payload, type=kind) for (payload,) in select]
