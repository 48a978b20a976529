"""`meshkit streams`: what is in streams, how far consumers are, and what starting services would change."""

import asyncio
import json
import os
import pty
import re
import sys
import termios

import msgspec
import pytest

from meshkit import Service, StreamConfig
from meshkit.durable.jetstream import JetStream
from meshkit.durable.overview import overview
from meshkit.transport.server import EmbeddedServer


@pytest.fixture
def nats_server():
    """One of its own: its streams are listed."""
    with EmbeddedServer() as server:
        yield server


async def left(mesh, wanted):
    """Wait until the server knows that so much is left to do, by consumer."""
    js = JetStream(mesh.transport)
    async with asyncio.timeout(5):
        while True:
            found = {each.name: each.left for one in await overview(js) for each in one.consumers}
            if wanted.items() <= found.items():
                return
            await asyncio.sleep(0.02)


@pytest.fixture
async def billing(mesh):
    """A service that handles some messages of each kind at once, and others when its gate opens."""
    orders = StreamConfig("ORDERS", ["orders.>"], max_age="7d", max_bytes=1_000_000)
    work = StreamConfig("WORK", ["work"], retention="workqueue", storage="memory")
    service = Service("billing", streams=[StreamConfig("EMPTY", ["empty"])])
    service.gate = asyncio.Event()

    async def handle(number):
        if number > 3:
            await service.gate.wait()

    @service.consume("orders.created", stream=orders, concurrency=1)
    async def bill(number: int) -> None:
        await handle(number)

    @service.consume("orders.{customer}.changed", stream=orders, ordered_by="customer", partitions=3)
    async def follow(customer: str, number: int) -> None:
        await handle(number)

    @service.consume("work", stream=work, deduplicate="1h")
    async def do(number: int) -> None:
        await handle(number)

    async with mesh.serve(service):
        async with mesh.publisher() as publisher:
            for number in range(1, 6):
                await publisher.publish("orders.created", number)
                await publisher.publish("work", number)
                for customer in ("ann", "bob"):
                    await publisher.publish(f"orders.{customer}.changed", number)
        await left(mesh, {"billing-bill": 2, "billing-follow": 4, "billing-do": 2})
        yield service
        service.gate.set()


def rows(out):
    heading, *lines = [line.split("\t") for line in out.splitlines()]
    return {
        (row["stream"], row["consumer"]): row
        for row in (dict(zip(heading, one, strict=True)) for one in lines)
    }


async def test_streams_and_how_far_their_consumers_are(command, billing):
    code, out, err = await command("streams")
    assert (code, err) == (0, "")
    found = rows(out)
    assert list(found) == [
        ("EMPTY", ""),
        ("ORDERS", "billing-bill"),
        ("ORDERS", "billing-follow"),
        ("WORK", "billing-do"),
    ]
    bill, follow, do = (
        found["ORDERS", "billing-bill"],
        found["ORDERS", "billing-follow"],
        found["WORK", "billing-do"],
    )
    assert (bill["messages"], bill["limits"]) == ("15", "7d, 1.0 MB")
    assert (bill["matching"], bill["done"]) == ("5", "3")
    assert (bill["subjects"], bill["consumer subjects"]) == ("orders.>", "orders.created")
    assert follow["consumer subjects"] == "orders.*.changed"
    assert int(bill["lag"]) + int(bill["unacknowledged"]) == 2
    # The partitions of a consumer are one, of the stream whose messages they handle.
    assert (follow["partitions"], follow["matching"], follow["done"]) == ("3", "10", "6")
    assert int(follow["unacknowledged"]) + int(follow["lag"]) == 4
    assert follow["redelivered"] == "0"
    # What was handled is in the stream no more: how much that was is not known.
    assert (do["messages"], do["limits"], do["matching"], do["done"]) == ("2", "workqueue, memory", "", "")
    assert (found["EMPTY", ""]["messages"], found["EMPTY", ""]["last"]) == ("0", "")


async def test_one_stream_and_those_that_are_made_for_others(command, billing):
    code, out, _ = await command("streams", "ORDERS", "--json")
    [orders] = json.loads(out)
    assert (code, orders["subjects"], orders["max_age"], orders["max_messages"]) == (
        0,
        ["orders.>"],
        604800,
        None,
    )
    assert [(each["name"], each["subjects"], each["done"]) for each in orders["consumers"]] == [
        ("billing-bill", ["orders.created"], 3),
        ("billing-follow", ["orders.*.changed"], 6),
    ]
    everything = rows((await command("streams", "--all"))[1])
    assert {stream for stream, _ in everything} == {
        *("EMPTY", "ORDERS", "WORK"),
        *("MESH_DEAD", "MESH_DONE-WORK-billing-do", "ORDERS-billing-follow"),
    }
    assert ("ORDERS-billing-follow", "billing-follow-2") in everything
    alone = rows((await command("streams", "MESH_DEAD"))[1])
    assert list(alone) == [("MESH_DEAD", "")]
    assert await command("streams", "NOPE") == (
        *(1, ""),
        "meshkit: there is no stream 'NOPE', only EMPTY, ORDERS, WORK\n",
    )


async def test_on_a_narrow_terminal(on_terminal, billing):
    lines = (await on_terminal("streams")).splitlines()
    assert all(len(line) <= 60 for line in lines), lines
    assert lines[0].split() == ["consumer", "done", "lag", "unacked"]
    [bill] = [line.split() for line in lines if "billing-bill" in line]
    assert bill[1].startswith("━")
    assert bill[2] == "60%"
    assert any(line.startswith("  billing-follow (3)  ") for line in lines)
    assert "… 3 more that others need; --all shows them" in lines


async def test_a_stream_in_one_line_says_what_there_is_room_for(on_terminal, mesh):
    await mesh.declare(StreamConfig("A", ["a"], max_age="7d"))
    long = StreamConfig("LONG", ["a-subject-that-is-long.>"], max_age="7d", max_messages=100_000)
    await mesh.declare(long)
    await mesh.declare(StreamConfig("X" * 70, ["x"]))
    await mesh.publish("a", 1, durable=True)
    await mesh.publish("a-subject-that-is-long.b", 1, durable=True)
    first, second, third = (await on_terminal("streams")).splitlines()
    assert re.fullmatch(r"A  1 message · \d+ bytes · last \w+ ago · at most 7d · a", first)
    assert re.fullmatch(r"LONG  1 message · last \w+ ago · at most 7d, 100,000 messages", second)
    assert third == "X" * 59 + "…"


async def test_watched_in_a_pipe(nats_server, mesh, billing, tmp_path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "streams", "WORK", "--watch", "--interval", "0.5", "--json"),
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "NATS_URL": nats_server.url},
    )
    [before] = json.loads(await process.stdout.readline())
    billing.gate.set()
    [after] = json.loads(await process.stdout.readline())
    process.kill()
    await process.communicate()
    [before], [after] = before["consumers"], after["consumers"]
    assert (before["unacknowledged"], before["rate"], before["seconds_left"]) == (2, None, None)
    assert (after["unacknowledged"], after["seconds_left"]) == (0, 0)
    assert 1 < after["rate"] <= 4.5


async def test_watched_on_a_terminal(nats_server, mesh, billing, tmp_path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (12, 80))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "streams", "--watch", "--interval", "0.5"),
        stdin=end,
        stdout=end,
        stderr=end,
        cwd=tmp_path,
        env={**os.environ, "NATS_URL": nats_server.url, "TERM": "xterm", "COLUMNS": "80", "LINES": "12"},
    )
    shown = b""
    async with asyncio.timeout(10):
        while b"rate/s" not in shown:
            shown += await asyncio.to_thread(os.read, terminal, 65536)
    os.write(terminal, b"q")
    os.close(end)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    os.close(terminal)
    assert b"q quit" in shown
    assert "━" in shown.decode(errors="replace")


PLANNED = """
from meshkit import Service, StreamConfig
print("printed by who is looked at")
service = Service("{name}")
@service.consume("{subject}", stream={stream})
async def take(number: int) -> None: ...
"""


@pytest.fixture
def planned(tmp_path):
    """Writes a service that consumes a stream to a file; gives its path."""

    def write(name, subject, stream):
        file = tmp_path / f"{name}.py"
        file.write_text(PLANNED.format(name=name, subject=subject, stream=stream))
        return str(file)

    return write


async def test_what_starting_services_would_change(command, mesh, planned):
    one = planned("one", "news.a", "'NEWS'")
    two = planned("two", "news.b", "'NEWS'")
    code, out, err = await command("streams", "plan", one, two)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "+ stream NEWS: news.a, news.b, file",  # of both together
        "+ consumer one-take of NEWS: news.a",
        "+ consumer two-take of NEWS: news.b",
        "+ stream MESH_DEAD: _MESH.dead.>, file",
    ]
    # Nothing of it was done.
    code, out, err = await command("streams", "--all")
    assert (code, out, err) == (0, "", "There is no stream.\n")

    await mesh.declare(StreamConfig("NEWS", ["news.*"], max_age="7d"))
    await mesh.publish("news.a", 1, durable=True)
    wider = planned("one", "news.a", "StreamConfig('NEWS', ['news.*'], max_age='14d')")
    code, out, _ = await command("streams", "plan", wider)
    assert (code, out.splitlines()[0]) == (0, "~ stream NEWS: max_age 7d → 14d")
    narrower = planned("one", "news.a", "StreamConfig('NEWS', ['news.*'], max_age='1d')")
    code, out, _ = await command("streams", "plan", narrower, "--json")
    told = json.loads(out)
    assert code == 1
    assert told["changes"] == [
        "+ consumer one-take of NEWS: news.a",
        "+ stream MESH_DEAD: _MESH.dead.>, file",
    ]
    assert told["refusals"][0].startswith("stream NEWS: max_age from 7d to 1d would drop messages; ")


async def test_a_plan_with_nothing_in_it_and_targets_that_are_wrong(command, planned, tmp_path):
    idle = tmp_path / "idle.py"
    idle.write_text("from meshkit import Service\nservice = Service('idle')\n")
    assert await command("streams", "plan", str(idle)) == (0, "", "Nothing has to be made or changed.\n")
    code, out, err = await command("streams", "plan", "nope.py")
    assert (code, out) == (78, "")
    assert err.startswith("meshkit: nope.py: there is no file ")
    twice = [
        planned(name, "a.b", f"StreamConfig('A', ['a.>'], max_messages={number})")
        for number, name in enumerate(("one", "two"), 1)
    ]
    code, _, err = await command("streams", "plan", *twice)
    assert (code, err) == (
        78,
        "meshkit: stream 'A' is declared twice, and differently; declare it once\n",
    )


async def test_what_others_call_their_things_drives_no_terminal(on_terminal, mesh):
    js = JetStream(mesh.transport)
    await js.ask("STREAM.CREATE.ÄÖ\x1b]0;x", msgspec.Raw, {"name": "ÄÖ\x1b]0;x", "subjects": ["a"]})
    shown = await on_terminal("streams")
    assert "ÄÖ ]0;x  0 messages" in shown
    assert "\x1b]0" not in shown


async def test_a_server_without_jetstream(tmp_path, monkeypatch, command, nats_server):
    config = tmp_path / "nats.conf"
    config.write_text("")
    with EmbeddedServer(config=config) as without:
        code, out, err = await command("streams", "--nats", without.url)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"meshkit: NATS at \S+ has no JetStream; start it with --jetstream\n", err)
