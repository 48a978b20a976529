"""`meshkit graph`."""

import asyncio
import contextlib
import json
import re

import pytest

from meshkit import Context, InternalError, Service


@pytest.fixture
async def hotel(mesh):
    """Four services, two of which call each other, and guests that are none."""
    desk, rooms, bills, echo = (Service(name) for name in ("desk", "rooms", "bills", "echo"))

    @rooms.endpoint("rooms.book")
    async def take(room: int, ctx: Context) -> int:
        if room == 13:
            raise InternalError
        if room == 7:
            await ctx.mesh.call("desk.tell", returns=int)
        return room

    @bills.endpoint("bills.write")
    async def write(room: int, ctx: Context) -> int:
        return await ctx.mesh.call("rooms.book", room, returns=int)

    @desk.endpoint("desk.tell")
    async def tell() -> int:
        return 1

    @desk.endpoint("desk.book")
    async def book(room: int, ctx: Context) -> int:
        await ctx.mesh.call("rooms.book", room)
        return await ctx.mesh.call("bills.write", room, returns=int)

    @echo.endpoint("echo.echo")
    async def back() -> None: ...

    async def come():
        while True:
            for room in (1, 1, 1, 1, 1, 1, 1, 7, 13):
                with contextlib.suppress(InternalError):
                    await mesh.call("desk.book", room)
            await asyncio.sleep(0.02)

    async with contextlib.AsyncExitStack() as stack:
        for service in (desk, rooms, bills, echo):
            await stack.enter_async_context(mesh.serve(service))
        guests = asyncio.create_task(come())
        await asyncio.sleep(0.1)
        yield
        guests.cancel()
        await asyncio.wait([guests])


async def test_edges_with_rates_and_success(meshkit, hotel):
    code, out, err = await meshkit("graph", "--interval", "1")
    assert (code, err) == (0, "")
    heading, *rows = [line.split("\t") for line in out.splitlines()]
    assert heading == ["caller", "callee", "endpoint", "rate", "success", "p95 ms", "breaker"]
    rates = {tuple(row[:3]): (float(row[3]), row[4]) for row in rows}
    assert set(rates) == {
        ("(clients)", "desk", "book"),
        ("bills", "rooms", "take"),
        ("desk", "bills", "write"),
        ("desk", "rooms", "take"),
        ("rooms", "desk", "tell"),
    }
    # Of nine bookings one fails at its first call.
    booked, success = rates["(clients)", "desk", "book"]
    assert booked > 5
    assert float(success) == pytest.approx(8 / 9, abs=0.05)
    assert rates["desk", "rooms", "take"][0] == pytest.approx(booked, rel=0.15)
    assert rates["desk", "bills", "write"][0] == pytest.approx(booked * 8 / 9, rel=0.15)


async def test_json(meshkit, hotel):
    code, out, _ = await meshkit("graph", "--interval", "0.5", "--json")
    graph = json.loads(out)
    assert code == 0
    assert graph["services"] == ["bills", "desk", "echo", "rooms"]
    assert {edge["subject"] for edge in graph["edges"]} == {
        "desk.book",
        "desk.tell",
        "bills.write",
        "rooms.book",
    }


async def test_a_tree_in_which_circles_end(on_terminal, hotel):
    shown = await on_terminal("graph", "--interval", "0.5")
    lines = [re.sub(r"[\d.,]+/s|[\d.]+%", "#", line).rstrip() for line in shown.splitlines()]
    assert lines == [
        "(clients)",
        "└── desk  # #  book",
        "    ├── bills  # #  write",
        "    │   └── rooms  # #  take",
        "    │       └── desk  # #  tell  (see above)",
        "    └── rooms  # #  take  (see above)",
        "echo",
    ]


async def test_graphviz(meshkit, hotel):
    _, out, _ = await meshkit("graph", "--interval", "0.5", "--format", "dot")
    lines = out.splitlines()
    assert (lines[0], lines[-1]) == ("digraph mesh {", "}")
    assert '  "echo"' in lines
    assert re.search(r'^  "desk" -> "bills" \[label="[\d.]+/s \d[\d.]*%"\]$', out, re.MULTILINE)
    assert re.search(r'^  "\(clients\)" -> "desk" \[label="[^"]+"\]$', out, re.MULTILINE)


async def test_mermaid(meshkit, hotel):
    _, out, _ = await meshkit("graph", "--interval", "0.5", "--format", "mermaid")
    assert out.startswith("flowchart LR\n")
    nodes = dict(re.findall(r'^  (n\d+)\["([^"]+)"\]$', out, re.MULTILINE))
    arrows = re.findall(r'^  (n\d+) -->\|"[\d.]+/s \d[\d.]*%"\| (n\d+)$', out, re.MULTILINE)
    assert {(nodes[caller], nodes[callee]) for caller, callee in arrows} == {
        ("(clients)", "desk"),
        ("bills", "rooms"),
        ("desk", "bills"),
        ("desk", "rooms"),
        ("rooms", "desk"),
    }


async def test_an_empty_mesh(meshkit):
    nobody = "No service answers. `meshkit run` starts those of a folder.\n"
    assert await meshkit("graph", "--interval", "0.5") == (0, "", nobody)
    assert await meshkit("graph", "--interval", "0.5", "--json") == (0, '{"services":[],"edges":[]}\n', "")


@pytest.mark.parametrize(
    "arguments", [["--json", "--format", "dot"], ["--interval", "nan"], ["--interval", "inf"]]
)
async def test_what_makes_no_sense(meshkit, arguments):
    code, out, err = await meshkit("graph", *arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


@pytest.fixture
async def report(mesh):
    """Answers for instances that say what they want."""

    async def begin(*reports, subject="_MESH.stats", times=99):
        asked = []

        def answer(message):
            asked.append(message)
            for each in reports if len(asked) <= times else ():
                mesh.transport.tell(message.reply, json.dumps(each).encode())

        await mesh.transport.subscribe(subject, answer)
        await mesh.transport.flush()

    return begin


async def test_a_long_chain_ends_and_goes_on_elsewhere(on_terminal, report):
    await report(
        *(
            {"name": f"s{n}", "id": "1", "served": [{"name": "x", "subject": f"x{n}"}]}
            | {"called": [{"target": f"x{n + 1}"}]}
            for n in range(2000)
        )
    )
    shown = await on_terminal("graph", "--interval", "0.5")
    assert "Traceback" not in shown
    assert "…" in shown
    assert all(re.search(rf"\bs{n}\b", shown) for n in range(2000))
    assert all(len(line) <= 60 for line in shown.splitlines())


async def test_who_does_not_answer_again_is_in_it_and_is_named(meshkit, report):
    await report(
        {"name": "rooms", "id": "R1", "served": [{"name": "book", "subject": "rooms.book"}]}, times=1
    )
    await report({"name": "desk", "id": "D1", "called": [{"target": "rooms.book"}]})
    code, out, err = await meshkit("graph", "--interval", "0.5")
    assert (code, out.splitlines()[1:]) == (0, ["desk\trooms\tbook\t0.0\t\t\tclosed"])
    assert err == "meshkit: not all is known, 1 of 2 instances did not answer again: rooms/R1\n"


@pytest.mark.parametrize("command", ["graph", "top"])
@pytest.mark.parametrize("number", [10**400, -1, 2**63], ids=["huge", "negative", "64 bits"])
async def test_numbers_that_cannot_be_are_left_out(meshkit, report, command, number):
    good = {"name": "rooms", "id": "R1", "served": [{"name": "book", "subject": "rooms.book"}]}
    counts = {"counts": [number] * 22, "sum": 0}
    wrong = [
        {"requests": number},
        {"in_flight": number},
        {"outcomes": {"ok": counts}},
        {"queued": {"counts": [0] * 22, "sum": -1}},
    ]
    await report(
        good,
        *(good | {"id": f"W{n}", "served": [good["served"][0] | each]} for n, each in enumerate(wrong)),
        good | {"id": "W9", "called": [{"target": "x", "attempts": {"ok": number}}]},
        good | {"id": "W8", "served": good["served"] * 10_001},
    )
    stats = {"type": "io.nats.micro.v1.stats_response", "name": "old", "id": "1", "version": "1.0.0"}
    stats["started"] = "2026-01-01T00:00:00Z"
    endpoint = {"name": "add", "subject": "add", "num_requests": number}
    await report(stats | {"endpoints": [endpoint]}, subject="$SRV.STATS")
    code, out, err = await meshkit(command, "--interval", "0.5", "--json")
    assert code == 0
    assert "Traceback" not in err
    assert err.count("7 answers are left out, such as: ") == 2
    assert "rooms" in out
    assert "old" not in out


async def test_no_server(meshkit):
    code, out, err = await meshkit("graph", "--nats", "nats://127.0.0.1:1")
    assert (code, out) == (69, "")
    assert err.startswith("meshkit: cannot connect to NATS")


async def test_names_that_others_chose_stay_in_their_quotes(meshkit, mesh):
    """An instance that says what it wants of itself."""
    name = 'a" -> "b\\ <b>#\x1b[31m'
    report = {"name": name, "id": "1", "served": [{"name": "x", "subject": "x"}]}
    await mesh.transport.subscribe(
        "_MESH.stats", lambda message: mesh.transport.tell(message.reply, json.dumps(report).encode())
    )
    _, dot, _ = await meshkit("graph", "--interval", "0.5", "--format", "dot")
    assert dot.splitlines()[3] == '  "a\\" -> \\"b\\\\ <b># [31m"'
    _, mermaid, _ = await meshkit("graph", "--interval", "0.5", "--format", "mermaid")
    assert mermaid.splitlines()[1] == '  n0["a#quot; -#gt; #quot;b\\ #lt;b#gt;#35; [31m"]'
