"""`meshkit dead`: what could not be handled is seen, published again or dropped."""

import asyncio
import base64
import contextlib
import json
import os
import pty
import signal
import sys

import msgspec
import pytest
from support import until

from meshkit import Reject, Service, StreamConfig
from meshkit.durable.jetstream import JetStream
from meshkit.transport.server import EmbeddedServer

NOBODY = "nats://127.0.0.1:1"


class Order(msgspec.Struct):
    id: int
    note: str = ""


@pytest.fixture
def nats_server():
    """One of its own: its dead letters are counted."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def billing(mesh):
    """A service that handles no order with an odd number until its bug is fixed."""
    orders = StreamConfig("ORDERS", ["orders.>"])
    service = Service("billing")
    service.has_bug = True
    service.handled = []
    service.rejected = 0

    @service.consume("orders.created", stream=orders, max_deliver=2, retry_delay="1ms")
    async def bill(order: Order) -> None:
        if order.note == "reject" and service.rejected < 30:
            service.rejected += 1
            raise Reject
        if order.id % 2 and service.has_bug:
            raise ValueError(f"cannot bill\x1b[31m {order.note or order.id}")
        service.handled.append(order.id)

    @service.consume("orders.created", stream=orders, name="ship")
    async def ship(order: Order) -> None:
        service.handled.append(f"shipped {order.id}")

    async with mesh.serve(service):
        yield service


@pytest.fixture
async def js(mesh):
    return JetStream(mesh.transport)


async def dead(js, number):
    """Wait until there are so many dead letters, so far."""

    async def is_so():
        info = await js.stream("MESH_DEAD")
        return info is not None and info.state.last_seq >= number

    async with asyncio.timeout(5):
        while not await is_so():
            await asyncio.sleep(0.02)


async def publish(mesh, *orders):
    for order in orders:
        await mesh.publish(
            "orders.created", order, durable=True, id=f"o{order.id}", headers={"X-From": "desk"}
        )


def rows(out):
    heading, *lines = [line.split("\t") for line in out.splitlines()]
    return [dict(zip(heading, line, strict=True)) for line in lines]


async def test_a_poisoned_message_stops_nobody_and_is_replayed_after_the_fix(command, mesh, billing, js):
    await publish(mesh, Order(1), Order(2), Order(4))
    await dead(js, 1)
    await until(lambda: {2, 4, "shipped 1", "shipped 2", "shipped 4"} <= set(billing.handled))

    code, out, err = await command("dead", "ls")
    assert (code, err) == (0, "")
    [row] = rows(out)
    assert (row["number"], row["attempts"], row["stream"]) == ("1", "2", "ORDERS")
    assert (row["consumer"], row["subject"]) == ("billing-bill", "orders.created")
    assert row["error"] == "ValueError: cannot bill [31m 1"

    billing.has_bug = False
    billing.handled.clear()
    assert await command("dead", "replay", "1") == (0, "1 dead letter replayed\n", "")
    await until(lambda: billing.handled == [1])
    code, out, err = await command("dead", "ls")
    assert (code, out, err) == (0, "", "There is no dead letter.\n")
    await asyncio.sleep(0.1)
    assert billing.handled == [1]  # who could handle it the first time does not get it again


async def test_show(command, mesh, billing, js):
    await publish(mesh, Order(1, "ä"))
    await dead(js, 1)
    shown, as_json, raw = [await command("dead", "show", "1", *how) for how in ((), ("--json",), ("--raw",))]
    facts, payload = shown[1].split("\n\n")
    facts = dict(line.split("\t") for line in facts.splitlines())
    assert facts["dead letter"] == "1"
    assert facts["error"] == "ValueError: cannot bill [31m ä"
    assert (facts["attempts"], facts["id"], facts["header X-From"]) == ("2", "o1", "desk")
    assert facts["instance"].startswith("billing/")
    assert facts["stream"] == "ORDERS, number 1"
    assert payload == '{"id":1,"note":"ä"}\n'
    told = json.loads(as_json[1])
    assert (told["number"], told["headers"]) == (1, {"X-From": "desk"})
    assert told["text"] == raw[1] == '{"id":1,"note":"ä"}'
    assert base64.b64decode(told["payload"]).decode() == raw[1]


async def test_the_newest_of_some(command, mesh, billing, js):
    await publish(mesh, *(Order(number) for number in range(1, 19, 2)))
    await dead(js, 9)
    await js.delete("MESH_DEAD", 8)  # numbers have gaps
    await mesh.publish("orders.created", b"{", durable=True)  # to both
    await dead(js, 11)
    newest = await command("dead", "ls", "--limit", "3", "--consumer", "billing-bill")
    of_ship = await command("dead", "ls", "--json", "--consumer", "ship")
    of_other = await command("dead", "ls", "--stream", "OTHER")
    found = rows(newest[1])
    assert [row["consumer"] for row in found] == ["billing-bill"] * 3
    assert [int(row["number"]) for row in found][:2] == [7, 9]
    assert newest[2] == "meshkit: 6 older ones are left out; --limit shows more\n"
    [told] = json.loads(of_ship[1])
    assert (told["consumer"], told["attempts"], told["bytes"]) == ("ship", 1, 1)
    assert of_ship[2] == ""
    assert of_other == (0, "", "There is no dead letter of stream OTHER.\n")
    for action, *choice in (("ls",), ("replay", "--all", "--yes"), ("drop", "--all", "--yes")):
        done = await command("dead", action, *choice, "--stream", "ORDERS", "--consumer", "nope")
        assert done == (0, "", "There is no dead letter of consumer nope of stream ORDERS.\n")


async def test_drop(command, mesh, billing, js):
    await publish(mesh, *(Order(number) for number in range(1, 9, 2)))
    await dead(js, 4)
    # Nothing is done if one of the numbers is none.
    assert await command("dead", "drop", "1", "99") == (1, "", "meshkit: there is no dead letter 99\n")
    assert await command("dead", "drop", "1", "3", "1") == (0, "2 dead letters dropped\n", "")
    assert [row["number"] for row in rows((await command("dead", "ls"))[1])] == ["2", "4"]
    code, out, _ = await command("dead", "drop", "--all", "--yes")
    assert (code, out) == (0, "2 dead letters dropped\n")


async def test_all_are_those_that_there_are_at_the_beginning(command, mesh, billing, js):
    await publish(mesh, *(Order(number, "reject") for number in range(6)))
    await dead(js, 6)
    # Each becomes one again at once, while others are still to be replayed.
    code, out, _ = await command("dead", "replay", "--all", "--yes")
    assert (code, out) == (0, "6 dead letters replayed\n")
    await dead(js, 12)
    assert (await js.stream("MESH_DEAD")).state.messages == 6


async def test_what_others_wrote_there_is_not_published_just_anywhere(command, mesh, billing, js):
    victim = StreamConfig("VICTIM", ["victim"])
    await mesh.declare(victim)
    for subject in ("$JS.API.STREAM.DELETE.VICTIM", "a b", "victim.*", ""):
        headers = {"Mesh-Dead-Subject": subject} if subject else {}
        await mesh.transport.publish(
            "_MESH.dead.X.Y", b"\x1b[31m\xff", b"".join(f"\r\n{k}: {v}".encode() for k, v in headers.items())
        )
    await dead(js, 4)
    shown = await command("dead", "show", "1")
    one, rest = [await command("dead", "replay", number) for number in ("1", "2")]
    assert shown[1].endswith("\n\\u001b[31m\ufffd\n")
    assert one[:2] == rest[:2] == (1, "")
    assert one[2] == (
        "meshkit: dead letter 1 stays one: it cannot be published where it says: "
        "subject '$JS.API.STREAM.DELETE.VICTIM': $JS belongs to NATS or meshkit; choose another\n"
    )
    assert "contains white space" in rest[2]
    assert await js.stream("VICTIM") is not None
    assert (await js.stream("MESH_DEAD")).state.messages == 4


async def test_a_stream_that_is_gone(command, mesh, billing, js):
    await publish(mesh, Order(1))
    await dead(js, 1)
    await js.ask("STREAM.DELETE.ORDERS", msgspec.Raw)
    code, out, err = await command("dead", "replay", "1")
    assert (code, out) == (1, "")
    assert err.startswith("meshkit: dead letter 1 stays one: no stream keeps 'orders.created'")
    assert (await js.stream("MESH_DEAD")).state.messages == 1


async def test_on_a_narrow_terminal(on_terminal, mesh, billing, js):
    await publish(mesh, Order(1, "for as long as this text is, which is longer than the terminal"), Order(3))
    await dead(js, 2)
    listed, shown = await asyncio.gather(on_terminal("dead", "ls"), on_terminal("dead", "show", "1"))
    lines = listed.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 60 for line in lines), lines
    assert "billing-bill  orders.created  2 attempts, " in lines[0]
    assert lines[1].startswith("   ValueError: cannot bill [31m for") or lines[3].startswith("   ValueError")
    assert any(line.endswith("…") for line in lines)
    assert '\n  "id": ' in shown
    assert all(len(line) <= 60 for line in shown.splitlines()[:3])


# Who runs tests in the background has them, and what they start, ignore SIGINT.
WITH_SIGINT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from meshkit.cli import main
main()
"""


async def interrupted(process):
    """Press Ctrl-C; in the moment before it reads Python does not see that, and one presses again."""
    while process.returncode is None:
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 3)


async def test_it_asks_before_all_are_dropped(nats_server, mesh, billing, js, tmp_path):
    await publish(mesh, Order(1), Order(3))
    await dead(js, 2)
    for answer, code, left in ((b"n\n", 1, 2), (b"", 130, 2), (b"y\n", 0, 0)):
        terminal, end = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WITH_SIGINT, "dead", "drop", "--all"),
            stdin=end,
            stdout=end,
            stderr=end,
            cwd=tmp_path,
            env={**os.environ, "NATS_URL": nats_server.url, "TERM": "xterm"},
        )
        shown = b""
        while b"Drop 2 dead letters? [y/N]" not in shown:
            shown += await asyncio.to_thread(os.read, terminal, 4096)
        if answer:
            os.write(terminal, answer)
        else:
            await interrupted(process)
        async with asyncio.timeout(20):
            assert await process.wait() == code
        os.write(end, b".")
        assert (b"Aborted!" in os.read(terminal, 4096)) == (code == 1)
        os.close(end)
        os.close(terminal)
        assert (await js.stream("MESH_DEAD")).state.messages == left


MISTAKES = [
    (["show", "7"], 1, "meshkit: there is no dead letter 7"),
    *(
        ([*action, number], 2, f"Error: Invalid value for {of}: a number from 1 is wanted.")
        for action, of in (
            (["show"], "'NUMBER'"),
            (["drop"], "'[NUMBER]...'"),
            (["ls", "--limit"], "'--limit'"),
        )
        for number in ("0", "abc", "9" * 19)
    ),
    (["ls", "--consumer", "a.>"], 2, "Error: Invalid value for '--consumer': consumer name 'a.>' may hold"),
    (["replay"], 2, "Error: give the NUMBER of each dead letter, or --all"),
    (["replay", "7", "--all", "--yes"], 2, "Error: give the NUMBER of each dead letter, or --all"),
    (["drop", "7", "--stream", "A"], 2, "Error: --stream and --consumer go with --all"),
    (["drop", "--all"], 2, "Error: nobody is here to be asked about --all; say --yes"),
    (["ls", "--nats", NOBODY], 69, f"meshkit: cannot connect to NATS at {NOBODY}: nothing listens there"),
]


async def test_mistakes(command):
    for arguments, code, sentence in MISTAKES:
        ended, out, err = await command("dead", *arguments)
        assert (ended, out) == (code, ""), arguments
        assert err.splitlines()[-1].startswith(sentence), arguments
