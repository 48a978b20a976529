import asyncio
import importlib
import inspect
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest

from meshkit import InternalError, NoResponders, NotFound, ServiceError, Unavailable

HOTEL = Path(__file__).parents[2] / "examples" / "hotel"
MODULES = [path.stem for path in HOTEL.glob("*.py")]
ROOMS = 3


@pytest.fixture
def hotel(tmp_path, monkeypatch):
    monkeypatch.setenv("HOTEL_DATA", str(tmp_path))
    monkeypatch.setenv("HOTEL_ROOMS", str(ROOMS))
    monkeypatch.syspath_prepend(HOTEL)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield SimpleNamespace(data=tmp_path, **{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


@asynccontextmanager
async def open_(mesh, *modules):
    async with AsyncExitStack() as stack:
        for module in modules:
            await stack.enter_async_context(mesh.serve(module.service))
        yield


@pytest.fixture
async def desk(mesh, hotel):
    """The hotel without guests; calls to the front desk."""
    names = ("rooms", "billing", "persistence", "compliance", "logbook", "frontdesk")
    async with open_(mesh, *(getattr(hotel, name) for name in names)):
        yield Desk(mesh, hotel)


class Desk:
    def __init__(self, mesh, hotel):
        self.mesh = mesh
        self.hotel = hotel

    async def reserve(self, guest="Ann", nights=2):
        return await self.mesh.call(
            self.hotel.frontdesk.reserve, self.hotel.messages.Reservation(guest, nights)
        )

    async def checkin(self, number):
        return await self.mesh.call(self.hotel.frontdesk.checkin.at(number=number))

    async def bill(self, number):
        return await self.mesh.call(self.hotel.frontdesk.bill.at(number=number))

    async def checkout(self, number, amount):
        return await self.mesh.call(self.hotel.frontdesk.checkout.at(number=number), amount)

    async def audit(self):
        return await self.mesh.call(self.hotel.frontdesk.audit)

    async def is_recorded(self, stays):
        """Whether persistence, which hears of things a little later, knows of so many stays."""
        return (await self.audit()).persistence.stays == stays

    async def has_seen(self, stays):
        """Whether so many stays are over."""
        return (await self.audit()).rooms.stays >= stays

    async def has_arrived(self):
        stay = await self.reserve()
        return await self.checkin(stay.number)

    async def has_left(self):
        stay = await self.has_arrived()
        invoice = await self.bill(stay.number)
        return await self.checkout(stay.number, invoice.amount)


async def until(condition):
    """Look again and again, for ten seconds at most."""
    with anyio.fail_after(10):
        while not (await found if inspect.isawaitable(found := condition()) else found):
            await anyio.sleep(0.01)


async def test_from_the_reservation_to_the_departure(desk):
    booked = await desk.reserve("Ann", nights=3)
    assert (booked.guest, booked.nights, booked.arrived) == ("Ann", 3, None)
    assert (await desk.checkin(booked.number)).arrived
    invoice = await desk.bill(booked.number)
    assert invoice.amount == 3 * booked.price
    assert (await desk.checkout(booked.number, invoice.amount)).departed

    await until(lambda: desk.is_recorded(1))
    audit = await desk.audit()
    assert audit.ok
    assert audit.rooms == audit.billing == audit.persistence
    assert (audit.rooms.stays, audit.rooms.nights, audit.rooms.amount) == (1, 3, invoice.amount)


async def test_a_room_that_is_taken_is_refused(desk):
    booking = desk.hotel.messages.Booking(1, "Ann")
    await desk.mesh.call(desk.hotel.rooms.book, booking)
    with pytest.raises(ServiceError, match="room 1 is taken") as refusal:
        await desk.mesh.call(desk.hotel.rooms.book, booking)
    assert refusal.value.code == 409


async def test_as_many_guests_as_rooms_who_come_at_once_get_a_room_each_and_the_next_none(desk, monkeypatch):
    monkeypatch.setattr(desk.hotel.rooms, "ROOMS", range(1, 11))
    stays = await asyncio.gather(*(desk.reserve() for _ in range(10)))
    assert sorted(stay.room for stay in stays) == list(range(1, 11))
    with pytest.raises(ServiceError, match="the hotel is full") as refusal:
        await desk.reserve()
    assert refusal.value.code == 409


async def test_what_the_rules_refuse(desk):
    hotel = desk.hotel

    async def refused(code, call):
        with pytest.raises(ServiceError) as refusal:
            await call
        assert refusal.value.code == code

    await refused(404, desk.mesh.call(hotel.rooms.price.at(room=ROOMS + 1)))
    await refused(404, desk.mesh.call(hotel.rooms.book, hotel.messages.Booking(ROOMS + 1, "Ann")))
    await refused(400, desk.reserve(nights=0))
    await refused(404, desk.checkin(99))
    await refused(404, desk.bill(99))
    stay = await desk.reserve()
    await refused(409, desk.bill(stay.number))
    await refused(409, desk.mesh.call(hotel.rooms.depart.at(number=stay.number)))
    await desk.checkin(stay.number)
    await refused(404, desk.checkout(stay.number, 0))  # there is no invoice yet
    invoice = await desk.bill(stay.number)
    await refused(402, desk.checkout(stay.number, invoice.amount - 1))
    await desk.checkout(stay.number, invoice.amount)
    await refused(409, desk.checkin(stay.number))
    audit = await desk.audit()
    assert audit.ok
    assert audit.rooms.stays == 1


async def test_asking_twice_changes_nothing(desk):
    stay = await desk.has_left()
    assert await desk.bill(stay.number) == await desk.bill(stay.number)
    assert await desk.checkout(stay.number, stay.nights * stay.price) == stay
    audit = await desk.audit()
    assert (audit.ok, audit.billing.amount) == (True, stay.nights * stay.price)


async def test_without_billing_nobody_leaves_and_nobody_is_charged(mesh, hotel):
    desk = Desk(mesh, hotel)
    async with open_(mesh, hotel.rooms, hotel.frontdesk):
        async with open_(mesh, hotel.billing):
            stay = await desk.has_arrived()
            invoice = await desk.bill(stay.number)
        with pytest.raises(Unavailable):
            await desk.checkout(stay.number, invoice.amount)
        async with open_(mesh, hotel.billing):
            assert (await desk.audit()).billing.amount == 0
            assert (await desk.checkout(stay.number, invoice.amount)).departed
            assert (await desk.audit()).billing.amount == invoice.amount


async def test_who_has_paid_when_the_rooms_fail_pays_nothing_twice(mesh, hotel):
    desk = Desk(mesh, hotel)
    async with open_(mesh, hotel.billing, hotel.frontdesk):
        async with open_(mesh, hotel.rooms):
            stay = await desk.has_arrived()
            invoice = await desk.bill(stay.number)
        with pytest.raises(Unavailable):
            await desk.checkout(stay.number, invoice.amount)
        async with open_(mesh, hotel.rooms):
            audit = await desk.audit()  # paid, but not yet over: not counted on either side
            assert (audit.ok, audit.rooms.stays, audit.billing.stays) == (True, 0, 0)
            await desk.checkout(stay.number, invoice.amount)
            audit = await desk.audit()
            assert (audit.ok, audit.rooms.stays, audit.billing.amount) == (True, 1, invoice.amount)


async def test_who_does_not_come_loses_the_room(desk, monkeypatch):
    booking = desk.hotel.messages.Booking(1, "Ann")
    late = await desk.mesh.call(desk.hotel.rooms.book, booking)
    monkeypatch.setattr(desk.hotel.rooms, "HOLD_SECONDS", 0)
    assert await desk.mesh.call(desk.hotel.rooms.free) == [1, 2, 3]
    other = await desk.mesh.call(desk.hotel.rooms.book, booking)
    assert other.room == late.room
    with pytest.raises(NotFound):
        await desk.checkin(late.number)
    await desk.checkin(other.number)
    assert await desk.mesh.call(desk.hotel.rooms.free) == [2, 3]


async def test_the_state_survives_the_service(mesh, hotel):
    desk = Desk(mesh, hotel)
    async with open_(mesh, hotel.frontdesk):
        async with open_(mesh, hotel.rooms):
            stay = await desk.has_arrived()
        async with open_(mesh, hotel.rooms):
            assert await mesh.call(hotel.rooms.guests) == [stay]


async def test_a_call_to_a_service_that_is_away_fails_at_once_although_everything_is_recorded(mesh, hotel):
    async with open_(mesh, hotel.persistence):
        with pytest.raises(NoResponders):
            await mesh.call(hotel.rooms.free)


async def test_the_audit_does_without_persistence(mesh, hotel):
    async with open_(mesh, hotel.rooms, hotel.billing, hotel.frontdesk):
        audit = await Desk(mesh, hotel).audit()
    assert audit.ok
    assert audit.persistence is None


@pytest.mark.parametrize(
    ("database", "tampering"),
    [
        ("rooms", "UPDATE stays SET nights = nights + 1"),
        ("rooms", "DELETE FROM stays WHERE number = 1"),
        ("rooms", "UPDATE stays SET booked = 0"),
        ("billing", "UPDATE payments SET amount = amount - 1"),
        ("billing", "UPDATE invoices SET amount = amount + 1"),
        ("billing", "DELETE FROM payments"),
        ("persistence", "DELETE FROM messages WHERE subject = 'hotel.billing.payment.saved'"),
    ],
)
async def test_the_audit_notices_what_is_wrong(desk, database, tampering):
    stays = [await desk.has_left() for _ in range(ROOMS + 1)]  # one room at least has had two guests
    await until(lambda: desk.is_recorded(len(stays)))
    assert (await desk.audit()).ok
    with closing(sqlite3.connect(desk.hotel.data / f"{database}.sqlite")) as db, db:
        db.execute(tampering)
    audit = await desk.audit()
    assert not audit.ok
    assert "NOT OK" in str(audit)


async def test_each_service_says_at_its_end_whether_its_books_are_in_order(mesh, hotel, capsys):
    desk = Desk(mesh, hotel)
    recorders = (hotel.persistence, hotel.compliance)
    async with open_(mesh, *recorders, hotel.rooms, hotel.billing, hotel.frontdesk):
        stay = await desk.has_left()
        await until(lambda: desk.is_recorded(1))
    books = f"1 stays over, 2 nights, {2 * stay.price} euros"
    assert sorted(capsys.readouterr().out.splitlines()) == [
        f"billing: {books}; every payment as invoiced: ok",
        "compliance: 5 saves, 0 deletes; nothing paid was deleted: ok",
        f"persistence: {books}; nobody left without paying: ok",
        f"rooms: {books}; no room given to two guests: ok",
    ]


INVOICE_DELETED = ("hotel.billing.invoice.deleted", {"stay": 1})
PAYMENT_SAVED = ("hotel.billing.payment.saved", {"stay": 1, "amount": 80})
BOOKING_DELETED = (
    "hotel.rooms.booking.deleted",
    {"number": 1, "room": 1, "guest": "Ann", "nights": 1, "price": 80, "booked": 0.0},
)


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([INVOICE_DELETED], "billing deleted its invoice {'stay': 1}"),
        ([BOOKING_DELETED, PAYMENT_SAVED], "stay 1 was paid for after its booking was deleted"),
        ([PAYMENT_SAVED, BOOKING_DELETED], "the booking of stay 1 was deleted after it was paid for"),
    ],
)
async def test_compliance_finds_what_must_never_happen(mesh, hotel, capsys, caplog, events, fault):
    async with open_(mesh, hotel.logbook, hotel.compliance):
        for event in events:
            await mesh.publish(*event)
        await until(lambda: ("hotel.compliance", logging.ERROR, f"rule: {fault}") in caplog.record_tuples)
    assert capsys.readouterr().out.endswith(f"NOT OK: {fault}\n")


async def test_the_logbook_writes_what_the_services_say(desk, caplog):
    caplog.set_level(logging.INFO, logger="hotel")
    stay = await desk.has_left()
    with pytest.raises(NotFound):
        await desk.checkin(99)

    await until(lambda: len(caplog.records) == 3)
    assert [(record.levelname, record.name, record.message) for record in caplog.records] == [
        ("INFO", "hotel.frontdesk", f"checkin: Ann has room {stay.room} for 2 x {stay.price} euros"),
        (
            "INFO",
            "hotel.frontdesk",
            f"checkout: Ann has left room {stay.room} and paid {2 * stay.price} euros",
        ),
        ("WARNING", "hotel.frontdesk", "checkin: there is no stay 99"),
    ]


async def test_a_hotel_that_is_broken_on_purpose_fails_for_one_room_and_keeps_its_books(desk, monkeypatch):
    monkeypatch.setattr(desk.hotel.billing, "time", SimpleNamespace(sleep=lambda _: None))
    one, other = await desk.has_arrived(), await desk.has_arrived()
    monkeypatch.setattr(desk.hotel.billing, "JAMMED", str(one.room))
    with pytest.raises(InternalError):
        await desk.mesh.call(desk.hotel.billing.invoice, one)
    invoice = await desk.bill(other.number)
    assert (await desk.checkout(other.number, invoice.amount)).departed
    assert (await desk.audit()).ok


async def test_guests_come_and_go(mesh, hotel, monkeypatch, capsys):
    monkeypatch.setattr(hotel.guests, "ARRIVALS_PER_SECOND", 100)
    monkeypatch.setattr(hotel.guests, "NIGHT_SECONDS", 0.01)
    monkeypatch.setattr(hotel.guests, "AUDIT_SECONDS", 0.1)
    monkeypatch.setattr(hotel.rooms, "ROOMS", range(1, 31))  # those who do not come leave enough of them
    desk = Desk(mesh, hotel)
    async with open_(mesh, hotel.persistence, hotel.rooms, hotel.billing, hotel.frontdesk):
        async with open_(mesh, hotel.guests):
            await until(lambda: desk.has_seen(30))
        audit = await desk.audit()
        assert audit.ok, audit
    output = capsys.readouterr().out
    assert re.search(
        r"^guests: \d+ arrived, \d+ left, \d+ did not come, \d+ turned away$", output, re.MULTILINE
    )
    assert "complains" not in output
    assert "NOT OK" not in output


async def test_who_had_a_room_when_the_guests_stopped_leaves_when_they_are_back(mesh, hotel, monkeypatch):
    monkeypatch.setattr(hotel.guests, "ARRIVALS_PER_SECOND", 0.001)
    monkeypatch.setattr(hotel.guests, "NIGHT_SECONDS", 0.01)
    desk = Desk(mesh, hotel)
    async with open_(mesh, hotel.rooms, hotel.billing, hotel.frontdesk):
        stay = await desk.has_arrived()
        async with open_(mesh, hotel.guests):
            await until(lambda: desk.has_seen(1))
        assert stay not in await mesh.call(hotel.rooms.guests)


async def test_the_whole_hotel_runs_and_its_books_are_in_order_when_it_stops(tmp_path):
    shutil.copytree(HOTEL, tmp_path / "hotel", ignore=shutil.ignore_patterns("*.sqlite*", "__pycache__"))
    settings = tmp_path / "hotel" / "meshkit.toml"
    quick = {'PER_SECOND = "2"': 'PER_SECOND = "30"', 'NIGHT_SECONDS = "1"': 'NIGHT_SECONDS = "0.1"'}
    text = settings.read_text()
    for usual, fast in quick.items():
        assert usual in text
        text = text.replace(usual, fast)
    settings.write_text(text)
    command = [sys.executable, "-m", "meshkit", "run", "hotel"]
    env = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
    output = ""
    async with await anyio.open_process(command, cwd=tmp_path, env=env, stderr=subprocess.STDOUT) as process:
        try:
            with anyio.fail_after(60):
                while not any(int(stays) >= 20 for stays in re.findall(r"audit: (\d+) stays over", output)):
                    output += (await process.stdout.receive()).decode()
                process.send_signal(signal.SIGTERM)
                async for chunk in process.stdout:
                    output += chunk.decode()
                await process.wait()
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, output
    assert "NOT OK" not in output
    assert "Traceback" not in output
    for verdict in ("given to two guests", "as invoiced", "without paying", "paid was deleted"):
        assert f"{verdict}: ok" in output
