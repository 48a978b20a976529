"""Billing: one invoice a stay, and one payment an invoice, however often they are asked for."""

import os
import sqlite3
import time
from collections.abc import AsyncIterator

from database import database
from messages import EVERYTHING, Cut, Invoice, Payment, Report, Stay

from meshkit import Context, NotFound, Service, ServiceError

SCHEMA = """
CREATE TABLE IF NOT EXISTS invoices (stay INTEGER PRIMARY KEY, guest TEXT, nights INTEGER, amount INTEGER);
CREATE TABLE IF NOT EXISTS payments (stay INTEGER PRIMARY KEY REFERENCES invoices, amount INTEGER);
"""

# The room whose invoices cannot be printed: how that is found is in docs/observability.md.
JAMMED = os.environ.get("HOTEL_BROKEN", "")

# One call at a time: they share the connection to the database.
service = Service("billing", version="1.0.0", description="Invoices and payments", timeout=2, concurrency=1)


@service.lifespan
async def open_database() -> AsyncIterator[sqlite3.Connection]:
    """The database is `ctx.state` in the endpoints."""
    with database("billing", SCHEMA) as db:
        yield db
        print("billing:", look(db, EVERYTHING).shown("every payment as invoiced"))


@service.health
def reads(db: sqlite3.Connection) -> None:
    """Healthy is who can read."""
    db.execute("SELECT stay FROM invoices LIMIT 1")


@service.endpoint(idempotent=True)
def invoice(stay: Stay, ctx: Context) -> Invoice:
    """Charge a stay, once."""
    if str(stay.room) == JAMMED:
        time.sleep(1)
        raise RuntimeError("the printer is jammed")
    new = Invoice(stay.number, stay.guest, stay.nights, stay.nights * stay.price)
    with ctx.state as db:
        insert = "INSERT OR IGNORE INTO invoices VALUES (?, ?, ?, ?)"
        is_new = db.execute(insert, (new.stay, new.guest, new.nights, new.amount)).rowcount
    if is_new:
        ctx.run(ctx.mesh.publish("hotel.billing.invoice.saved", new))
    return find(ctx.state, stay.number)


@service.endpoint(idempotent=True)
def pay(payment: Payment, ctx: Context) -> Invoice:
    """Pay what the invoice says, once."""
    due = find(ctx.state, payment.stay)
    if payment.amount != due.amount:
        raise ServiceError(402, f"stay {due.stay} costs {due.amount} euros, not {payment.amount}")
    with ctx.state as db:
        insert = "INSERT OR IGNORE INTO payments VALUES (?, ?)"
        is_new = db.execute(insert, (payment.stay, payment.amount)).rowcount
    if is_new:
        ctx.run(ctx.mesh.publish("hotel.billing.payment.saved", payment))
    return due


@service.endpoint(idempotent=True)
def audit(ctx: Context, cut: Cut = EVERYTHING) -> Report:
    """Report the stays that are paid."""
    return look(ctx.state, cut)


def find(db: sqlite3.Connection, stay: int) -> Invoice:
    """The invoice of a stay."""
    row = db.execute("SELECT * FROM invoices WHERE stay = ?", (stay,)).fetchone()
    if row is None:
        raise NotFound(f"there is no invoice for stay {stay}")
    return Invoice(*row)


def look(db: sqlite3.Connection, cut: Cut) -> Report:
    """Go through all payments there ever were."""
    join = "SELECT stay, nights, invoices.amount, payments.amount FROM payments JOIN invoices USING (stay)"
    rows = [row for row in db.execute(join) if row[0] in cut]
    faults = [f"stay {stay}: {due} charged, {paid} paid" for stay, _, due, paid in rows if due != paid]
    return Report(len(rows), sum(nights for _, nights, *_ in rows), sum(paid for *_, paid in rows), faults)
