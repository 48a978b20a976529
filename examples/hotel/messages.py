"""What the hotel's services tell each other.

A service is called on subjects that begin with its name: `rooms.book`, `frontdesk.7.checkin`. What it did, it
publishes under `hotel.<service>.<thing>.<what>`, where <what> is saved, deleted, info, warn or error.
"""

import sys
from typing import Annotated

from msgspec import Meta, Struct

Nights = Annotated[int, Meta(ge=1, le=30)]


class Reservation(Struct):
    """What a guest asks the front desk for: any room."""

    guest: str
    nights: Nights = 1


class Booking(Struct):
    """What the front desk asks the rooms for: this room."""

    room: int
    guest: str
    nights: Nights = 1


class Stay(Struct):
    """A guest's stay, from the booking to the departure; prices in euros, times in seconds since 1970."""

    number: int
    room: int
    guest: str
    nights: int
    price: int
    booked: float
    arrived: float | None = None
    departed: float | None = None


class Invoice(Struct):
    """What a stay costs, in euros."""

    stay: int
    guest: str
    nights: int
    amount: int


class Payment(Struct):
    """What a guest pays for a stay, in euros."""

    stay: int
    amount: int


class Cut(Struct):
    """Which stays were over at one moment: those up to the last one, without the open ones.

    With it, services that are asked one after the other, while the hotel goes on, speak of the same stays.
    """

    last: int = sys.maxsize
    open: list[int] = []

    def __contains__(self, stay: int) -> bool:
        return stay <= self.last and stay not in self.open


EVERYTHING = Cut()


class Report(Struct):
    """What a service knows of the stays that are over, and what should not be so."""

    stays: int
    nights: int
    amount: int
    faults: list[str]

    def shown(self, rule: str) -> str:
        """It in one line, and whether the rule was kept."""
        verdict = f"NOT OK: {', '.join(self.faults)}" if self.faults else "ok"
        return f"{self.stays} stays over, {self.nights} nights, {self.amount} euros; {rule}: {verdict}"


class House(Struct):
    """What the rooms know of the stays that are over, and which ones those are."""

    report: Report
    cut: Cut


class Audit(Struct):
    """What three services know of the same stays; persistence may be away."""

    ok: bool
    rooms: Report
    billing: Report
    persistence: Report | None

    def __str__(self) -> str:
        recorded = self.persistence.stays if self.persistence else "none"
        verdict = "ok" if self.ok else f"NOT OK: {self!r}"
        return f"{self.rooms.stays} stays over ({recorded} recorded), {self.rooms.amount} euros: {verdict}"
