"""`meshkit tap`."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys

import pytest

from meshkit import Context, NotFound, Redeliver, Service, StreamConfig, connect
from meshkit.transport.server import EmbeddedServer


@pytest.fixture
async def rooms(mesh):
    """A service that is called all the time."""
    service = Service("rooms")

    @service.endpoint("rooms.book")
    async def book(room: int) -> str:
        if room == 13:
            raise NotFound("there is no room 13")
        return "booked"

    @service.subscribe("hotel.{thing}.saved")
    async def saved(thing: str) -> None: ...

    async def come():
        while True:
            for room in (12, 13):
                with contextlib.suppress(NotFound):
                    await mesh.call(
                        "rooms.book", room, headers={"Authorization": "Bearer abc", "X-Tenant": "eu"}
                    )
            await mesh.publish("hotel.booking.saved", {"room": 12})
            await asyncio.sleep(0.02)

    async with mesh.serve(service) as instance:
        guests = asyncio.create_task(come())
        yield instance
        guests.cancel()
        await asyncio.wait([guests])


def rows(out):
    heading, *lines = [line.split("\t") for line in out.splitlines()]
    return [dict(zip(heading, line, strict=True)) for line in lines]


async def test_calls_as_they_happen(meshkit, rooms):
    code, out, err = await meshkit("tap", "rooms.>", "--count", "4")
    assert (code, err) == (0, f"meshkit: rooms/{rooms.id} shows book\n")
    first, *_ = sorted(rows(out), key=lambda row: row["outcome"])
    assert (first["outcome"], first["error"]) == ("NotFound", "there is no room 13")
    assert first["subject"] == "rooms.book"
    assert first["instance"] == f"rooms/{rooms.id}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert 0 < float(first["ms"]) < 1000
    assert not first["headers"] + first["payload"] + first["reply"]


async def test_json_lines_with_headers_and_payloads(meshkit, rooms):
    code, out, _ = await meshkit("tap", "rooms.*", "--count", "5", "--json", "--headers", "--payloads", "4")
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, len(records)) == (0, 5)
    good = next(record for record in records if record["outcome"] == "ok")
    assert good["headers"]["Authorization"] == "***"
    assert good["headers"]["X-Tenant"] == "eu"
    assert (good["payload"], good["reply"], good["sent"]) == ("12", '"boo', 8)


CALL = {
    "type": "call",
    "time": 1e9,
    "service": "odd",
    "instance": "A1",
    "endpoint": "x",
    "subject": "x",
    "outcome": "ok",
    "seconds": 0.5,
}


@pytest.fixture
async def odd(mesh):
    """An instance that tells what it is given."""

    async def begin(*told):
        def tell(message):
            for each in told:
                mesh.transport.tell(message.reply, json.dumps(each).encode())

        await mesh.transport.subscribe("_MESH.tap", tell)
        await mesh.transport.flush()

    return begin


@pytest.mark.parametrize("form", [[], ["--json"]])
async def test_what_cannot_be_true_is_left_out(meshkit, odd, form):
    wrong = [{"time": 1e20}, {"time": -1e13}, {"seconds": -1}, {"seconds": 1e300}, {"sent": -1}]
    wrong += [{"left_out": 10**400}, {"received": 2**64}, {"items": -5}, {"queued": 1e99}]
    await odd({"type": "tapped", "service": "odd", "instance": "A1"}, *(CALL | each for each in wrong), CALL)
    code, out, err = await meshkit("tap", "x", "--count", "1", *form)
    assert code == 0
    assert err.count("a record is left out, it cannot be read") == len(wrong)
    assert len(out.splitlines()) == (1 if form else 2)


async def test_on_a_terminal_json_does_not_drive_it(on_terminal, odd):
    await odd(CALL | {"error": "\x9b31m \u202e red"})
    shown = await on_terminal("tap", "x", "--count", "1", "--json")
    assert '"error":"\\u009b31m \\u202e red"' in shown


async def test_of_all_who_answer_the_last_thousand_are_remembered(meshkit, odd):
    told = [
        {"type": "tapped", "service": "odd", "instance": f"A{each}"} for each in (0, 1, 0, *range(2, 1002))
    ]
    await odd(*told, told[0], told[1], CALL)
    _, _, err = await meshkit("tap", "x", "--count", "1")
    heard = re.findall("odd/(A[0-9]+) ", err)
    assert (len(heard), heard[-2:]) == (1004, ["A0", "A1"])


async def test_only_errors(meshkit, rooms):
    _, out, _ = await meshkit("tap", ">", "--errors", "--count", "3")
    assert [row["outcome"] for row in rows(out)] == ["NotFound"] * 3


async def test_events(meshkit, rooms):
    _, out, err = await meshkit("tap", "hotel.>", "--count", "2", "--payloads", "100")
    assert err == f"meshkit: rooms/{rooms.id} shows saved\n"
    assert [row["payload"] for row in rows(out)] == ['{"room":12}'] * 2


async def test_messages_of_a_stream(meshkit, on_terminal, mesh):
    service = Service("billing")

    @service.consume("tapped.booked", stream=StreamConfig("TAPPED", ["tapped.>"], storage="memory"))
    async def bill(order: int, ctx: Context) -> None:
        if ctx.delivery.attempt < 3:
            raise Redeliver("10ms", "the till is locked")

    async def book():
        while True:
            await mesh.publish("tapped.booked", 17, durable=True)
            await asyncio.sleep(0.02)

    async with mesh.serve(service) as instance:
        orders = asyncio.create_task(book())
        _, out, err = await meshkit(
            "tap", "tapped.>", "--count", "4", "--json", "--payloads", "9", "--rate", "99"
        )
        shown = await on_terminal("tap", "tapped.>", "--count", "9", "--rate", "99", "--errors")
        orders.cancel()
        await asyncio.wait([orders])
    assert err == f"meshkit: billing/{instance.id} shows billing-bill\n"
    records = [json.loads(line) for line in out.splitlines()]
    assert {(one["endpoint"], one["payload"], one["is_event"]) for one in records} == {
        ("billing-bill", "17", True)
    }
    outcomes = {one.get("delivery", 1): one["outcome"] for one in records}
    assert outcomes.items() <= {1: "Redeliver", 2: "Redeliver", 3: "ok"}.items()
    assert re.search(r"Redeliver +[\d.]+ ms  tapped\.booked \(delivery 2\)  → billing/", shown)


async def test_on_a_terminal(on_terminal, rooms):
    shown = await on_terminal(
        "tap", "rooms.>", "--count", "4", "--headers", "--payloads", "4", "--rate", "50"
    )
    assert re.search(
        rf"^\d\d:\d\d:\d\d\.\d{{3}} ok +[\d.]+ ms  rooms\.book  → rooms/{rooms.id[:6]}", shown, re.MULTILINE
    )
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} NotFound +[\d.]+ ms  rooms\.book", shown, re.MULTILINE)
    for line in (
        "error there is no room 13",
        "→ Authorization: ***",
        "→ X-Tenant: eu",
        "→ 12",
        '← "boo… (8 bytes)',
    ):
        assert f"             {line}\n" in shown


async def test_nobody_serves_it(meshkit, mesh, rooms):
    nobody = (
        "meshkit: no instance that runs meshkit handles a subject that 'bills.>' matches; "
        "`meshkit ls` shows who is there, `meshkit info NAME` its subjects\n"
    )
    code, out, err = await meshkit("tap", "bills.>", "--json")
    assert (code, out, err) == (1, "", nobody)


async def test_an_empty_mesh(meshkit):
    code, out, err = await meshkit("tap", "bills.>")
    assert (code, out) == (1, "")
    assert err.startswith("meshkit: no instance that runs meshkit handles a subject that 'bills.>' matches")


@pytest.mark.parametrize(
    "arguments",
    [["a..b"], ["_INBOX.>"], ["x", "--rate", "0"], ["x", "--rate", "nan"], ["x", "--payloads", "99999"]],
)
async def test_what_cannot_be_tapped(meshkit, arguments):
    code, out, err = await meshkit("tap", *arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


async def test_who_may_not_ask_is_told_so(meshkit, tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ "
        '{ user: a, password: s, permissions: { publish: { deny: ["_MESH.tap"] } } } ] }'
    )
    with EmbeddedServer(config=config) as server:
        url = server.url.replace("nats://", "nats://a:s@")
        code, _, err = await meshkit("tap", "x", "--nats", url)
    assert code == 1
    assert err == "meshkit: this connection's user may not publish to '_MESH.tap'\n"


async def test_it_goes_on_after_a_restart_of_instance_and_server(tmp_path):
    service = Service("rooms")

    @service.endpoint("rooms.book")
    async def book() -> None: ...

    with EmbeddedServer(port=None) as server:
        tap = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshkit", "tap", "rooms.>", "--json", "--nats", server.url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ,
        )
        try:
            async with connect(server.url) as mesh:

                async def call_until_told(instance):
                    while True:
                        await mesh.call("rooms.book", timeout=10)
                        with contextlib.suppress(TimeoutError):
                            record = json.loads(await asyncio.wait_for(tap.stdout.readline(), 0.1))
                            if record["instance"] == instance.id:
                                return

                for restarts in (False, True):
                    async with asyncio.timeout(30), mesh.serve(service) as instance:
                        await call_until_told(instance)
                        if restarts:
                            server.stop()
                            server.start()
                            # What was told before it stopped is not what is meant.
                            said = await tap.stderr.readuntil(b"waiting for it\n")
                            await mesh.call("rooms.book", timeout=10)
                            await call_until_told(instance)
        finally:
            tap.send_signal(signal.SIGINT)
            await tap.communicate()
    assert b"meshkit: the connection to NATS broke; waiting for it" in said
    assert tap.returncode == 130
