"""`meshkit top`, on a real terminal and in a pipe."""

import asyncio
import contextlib
import itertools
import json
import os
import pty
import re
import shlex
import signal
import sys
import termios

import nats
import nats.micro
import pyte
import pytest

from meshkit import Context, InternalError, Mesh, NotFound, Service, StreamConfig, Unavailable, connect
from meshkit.cli.top_pages import Row, ordered
from meshkit.durable.jetstream import JetStream
from meshkit.telemetry.live.rates import Rates
from meshkit.transport.server import EmbeddedServer

UP, DOWN, ENTER, BACK, ESCAPE = b"\x1b[A", b"\x1b[B", b"\r", b"\x7f", b"\x1b"
# What a program says to a terminal to leave its second screen, and to show the cursor.
LEFT = (b"\x1b[?1049l", b"\x1b[?25h")


# As a shell would: the terminal is the process's own, and its Ctrl-C reaches it.
ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
async def hotel(mesh):
    """Services that are called all the time: one fails, one listens, one only calls."""
    names = ("desk", "rooms", "zbank", "logbook", "guests")
    desk, rooms, bank, logbook, guests = (Service(name) for name in names)

    times = itertools.count(1)

    @rooms.endpoint("rooms.{room}.book")
    async def book(room: int) -> int:
        if room == 13:
            raise NotFound
        return room

    @rooms.endpoint("rooms.clean")
    async def clean() -> None:
        await asyncio.sleep(0.02)
        if not next(times) % 6:
            raise InternalError("out of soap")

    @desk.endpoint("desk.ask")
    async def ask(room: int, ctx: Context) -> int:
        return await ctx.mesh.call(book.at(room=room))

    @bank.endpoint("zbank.tell")
    async def tell() -> None:
        raise Unavailable("out of order")

    @desk.endpoint("desk.pay")
    async def pay(ctx: Context) -> None:
        with contextlib.suppress(Unavailable):
            await ctx.mesh.call(tell)

    @logbook.subscribe("hotel.{thing}.saved")
    async def saved(thing: str) -> None: ...

    async def come():
        while True:
            for room in (1, 2, 3, 13):
                with contextlib.suppress(NotFound):
                    await mesh.call(ask, room)
            await mesh.call(pay)
            with contextlib.suppress(InternalError):
                await mesh.call(clean)
            await mesh.publish("hotel.booking.saved")
            await asyncio.sleep(0.01)

    async with contextlib.AsyncExitStack() as stack:
        for service in (desk, rooms, rooms, bank, logbook, guests):
            await stack.enter_async_context(mesh.serve(service))
        running = asyncio.create_task(come())
        yield
        running.cancel()
        await asyncio.wait([running])


class Terminal:
    """`meshkit top` on a terminal, what it shows, and somebody at its keys."""

    def __init__(self, columns, lines):
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (lines, columns))
        self.before = termios.tcgetattr(self.theirs)
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.written = b""

    async def start(self, url, *arguments, folder):
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ON_TERMINAL, "-m", "meshkit", "top", "--interval", "0.5", *arguments),
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            cwd=folder,
            env={
                name: value
                for name, value in os.environ.items()
                if name not in {"COLUMNS", "LINES", "NO_COLOR"}
            }
            | {"NATS_URL": url, "TERM": "xterm-256color"},
        )
        asyncio.get_running_loop().add_reader(self.ours, self.read)

    def read(self):
        part = os.read(self.ours, 65536)
        self.written += part
        self.stream.feed(part)

    @property
    def lines(self):
        return [line.rstrip() for line in self.screen.display]

    @property
    def selected(self):
        """The row that is shown reversed."""
        lines = [line for y, line in enumerate(self.screen.display) if self.screen.buffer[y][0].reverse]
        return lines[0].split()[0] if lines else None

    def column(self, heading):
        """The first table's column, by its heading: a value for each row, by its label."""
        at = next((y for y, line in enumerate(self.lines) if y and heading in line), None)
        if at is None:
            return {}
        end = self.lines[at].index(heading) + len(heading)
        rows = {}
        for line in self.lines[at + 2 :]:
            if not line:
                break
            rows[re.split("  +", line)[0]] = line[:end].split("  ")[-1].strip()
        return rows

    async def until(self, condition):
        try:
            async with asyncio.timeout(20):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail("\n".join(self.lines))

    async def shows(self, *texts):
        await self.until(lambda: all(any(text in line for line in self.lines) for text in texts))

    async def press(self, *keys):
        for key in keys:
            os.write(self.ours, key)
            await asyncio.sleep(0.15)  # longer than an escape key waits for what may follow it

    def resize(self, columns, lines):
        termios.tcsetwinsize(self.theirs, (lines, columns))
        self.screen.resize(lines, columns)
        self.screen.reset()

    async def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self.ours)
        for end in (self.ours, self.theirs):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
async def top(nats_server, tmp_path):
    terminals = []

    async def start(columns=80, lines=24, *arguments, url=nats_server.url):
        terminal = Terminal(columns, lines)
        terminals.append(terminal)
        await terminal.start(url, *arguments, folder=tmp_path)
        return terminal

    yield start
    for terminal in terminals:
        await terminal.close()


def is_known(terminal):
    return any("%" in line for line in terminal.lines)


def numbers(column):
    return [float(value.rstrip("%")) for value in column.values() if value]


def is_sorted(values):
    return values == sorted(values) and len(values) > 2


# On a terminal


async def test_services_with_rates_that_go_on(top, hotel):
    shown = await top(120)
    await shown.shows(
        "meshkit top  services: 5, instances: 6", "rate/s", "success", "p50 ms", "p99 ms", "in flight"
    )
    await shown.until(lambda: is_known(shown))
    await shown.until(lambda: shown.column("inst").get("rooms") == "2")
    assert list(shown.column("inst")) == ["desk", "guests", "logbook (events)", "rooms", "zbank"]
    rates = shown.column("rate/s")
    assert float(rates["desk"]) > 5
    assert float(rates["logbook (events)"]) > 1
    assert "guests" in rates
    # To four bookings, one of which is answered with NotFound, comes a sixth of a fault.
    assert 90 < float(shown.column("success")["rooms"].rstrip("%")) < 99.9
    before = len(shown.written)
    await shown.until(lambda: len(shown.written) > before + 100)


@pytest.fixture
async def pipeline(mesh):
    """Two instances of a service that is behind with one consumer, and cannot handle what another gets."""
    streams = [
        StreamConfig(name, [f"{name.lower()}.>"], storage="memory") for name in ("TOPSLOW", "TOPWRONG")
    ]
    await mesh.declare(*streams)
    billing, gate = Service("billing"), asyncio.Event()

    @billing.consume("topslow.booked", stream=streams[0], concurrency=1)
    async def bill() -> None:
        await gate.wait()

    @billing.consume("topwrong.booked", stream=streams[1], max_deliver=2, retry_delay="10ms")
    async def book(ctx: Context) -> None:
        raise Unavailable("out of order")

    @billing.lifespan
    async def work(mesh: Mesh):
        mesh.job("cities", total=3000, done=990, failed=10)
        mesh.job("over", total=3000, done=3000)
        yield

    async def order():
        while True:
            await mesh.publish("topwrong.booked", durable=True)
            await asyncio.sleep(0.02)

    for _ in range(1500):
        await mesh.publish("topslow.booked")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(mesh.serve(billing))
        running = asyncio.create_task(order())
        yield
        running.cancel()
        await asyncio.wait([running])
        gate.set()
    for stream in streams:
        await JetStream(mesh.transport).ask(f"STREAM.DELETE.{stream.name}", dict)


async def test_consumers_with_their_lag_and_dead_letters(top, pipeline):
    shown = await top(80, 30)
    await shown.shows("billing (events)")
    # Two instances have done a third each.
    await shown.until(lambda: any(re.match("cities +[━╸╺]+ +66% ", line) for line in shown.lines))
    await shown.until(lambda: shown.column("lag").get("billing (events)", "").startswith("1,49"))
    assert not any("over" in line for line in shown.lines)
    await shown.press(ENTER)
    slow, wrong = "topslow.booked (billing-bill)", "topwrong.booked (billing-book)"
    await shown.shows("meshkit top  billing", "consumers ▲")
    await shown.until(lambda: shown.column("again/s").get(wrong, "") > "1")
    # Of all instances together, each of which says the same of the lag.
    assert shown.column("lag")[slow].startswith("1,49")
    await shown.until(lambda: int(shown.column("dead")[wrong]) > 1)
    await shown.press(b"l")
    await shown.shows("lag▼")
    await shown.until(lambda: list(shown.column("lag▼")) == [slow, wrong])
    await shown.press(b"n", UP, DOWN, ENTER)
    await shown.shows(f"meshkit top  billing / {wrong}", "stream ▲", "TOPWRONG", "outcomes ▲", "Unavailable")


async def test_consumers_and_jobs_for_scripts(meshkit, on_terminal, pipeline):
    _, out, _ = await meshkit("top", "--interval", "0.5")
    heading, *lines = [line.split("\t") for line in out.splitlines()]
    slow, wrong = [dict(zip(heading, line, strict=True)) for line in lines]
    assert [(one["kind"], one["consumer"]) for one in (slow, wrong)] == [
        ("messages", "billing-bill"),
        ("messages", "billing-book"),
    ]
    assert 1490 < int(slow["lag"]) < 1500
    assert float(wrong["redelivered"]) > 1
    _, out, _ = await meshkit("top", "--interval", "0.5", "--json")
    [billing] = json.loads(out)
    slow_too, wrong_too = billing["endpoints"]
    assert slow_too["stream"] == "TOPSLOW"
    assert 1490 < slow_too["lag"] < 1500
    assert wrong_too["dead"] > int(wrong["dead letters"])
    assert [job["done"] for job in billing["jobs"]] == [990, 3000] * 2
    shown = await on_terminal("top", "--interval", "0.5", "--once")
    assert re.search("billing .consumers.  +rate/s +lag +dead", shown)


async def test_keys_sort(top, hotel):
    shown = await top(120)
    await shown.until(lambda: is_known(shown))
    await shown.press(b"r")
    await shown.shows("rate/s▼")
    await shown.until(lambda: is_sorted(numbers(shown.column("rate/s▼"))[::-1]))
    assert list(shown.column("rate/s▼"))[-1] == "guests"
    await shown.press(b"r")
    await shown.shows("rate/s▲")
    await shown.press(b"s")
    await shown.shows("success▲")
    await shown.until(lambda: is_sorted(numbers(shown.column("success▲"))))
    assert numbers(shown.column("success▲"))[0] < 100
    for key, heading in (
        (b"1", "p50 ms▼"),
        (b"2", "p95 ms▼"),
        (b"3", "p99 ms▼"),
        (b"f", "in flight▼"),
        (b"n", "services ▲"),
    ):
        await shown.press(key)
        await shown.shows(heading)


async def test_down_into_a_service_its_endpoint_and_who_calls_it_and_back(top, hotel):
    shown = await top(100, 40)
    await shown.until(lambda: is_known(shown))
    await shown.until(lambda: shown.selected == "desk")
    await shown.press(DOWN, DOWN, DOWN, DOWN, DOWN)
    await shown.until(lambda: shown.selected == "zbank")
    await shown.press(UP, UP)
    await shown.until(lambda: shown.selected == "logbook")
    await shown.press(DOWN, ENTER)
    await shown.shows("meshkit top  rooms", "endpoints ▲", "instances ▲")
    await shown.until(lambda: shown.selected == "rooms.*.book")
    await shown.press(ENTER)
    await shown.shows("meshkit top  rooms / rooms.*.book", "outcomes ▲", "callers ▲")
    await shown.until(lambda: list(shown.column("outcomes ▲")) == ["NotFound", "ok"])
    assert any(line.startswith("desk ") for line in shown.lines)
    await shown.press(ESCAPE)
    await shown.shows("meshkit top  rooms  ")
    await shown.press(DOWN, DOWN, ENTER)  # an instance
    await shown.until(
        lambda: shown.lines[0].startswith("meshkit top  rooms / ") and shown.selected == "rooms.*.book"
    )
    await shown.press(BACK, BACK)
    await shown.shows("services: 5")
    await shown.until(lambda: shown.selected == "rooms")
    await shown.press(BACK)
    assert shown.lines[0].startswith("meshkit top  services: 5")


async def test_a_key_in_pieces(top, hotel):
    shown = await top()
    await shown.until(lambda: is_known(shown))
    os.write(shown.ours, b"\x1b")
    await asyncio.sleep(0.01)
    os.write(shown.ours, b"[B")
    await shown.until(lambda: shown.selected == "guests")


async def test_what_a_service_calls_and_its_breakers(top, hotel):
    shown = await top(110, 40)
    await shown.until(lambda: any("desk" in line and "open" in line for line in shown.lines))
    await shown.press(ENTER)
    await shown.shows("calls ▲", "zbank.tell")
    await shown.until(lambda: any("zbank.tell" in line and "open" in line for line in shown.lines))


async def test_help(top, hotel):
    shown = await top(60)
    await shown.until(lambda: is_known(shown))
    await shown.press(b"?")
    await shown.shows("sort by name", "The same key again sorts the other way round.")
    assert not any("…" in line for line in shown.lines)
    await shown.press(b"?")
    await shown.shows("? help")


async def test_narrow_terminals_leave_out_what_matters_least(top, hotel):
    shown = await top(120)
    await shown.until(lambda: is_known(shown))
    for columns, there, gone in (
        (80, ("rate/s", "success", "p50 ms", "p95 ms", "breaker"), ("retries/s", "refused/s", "inst")),
        (60, ("rate/s", "success", "p95 ms"), ("retries/s", "p99 ms", "in flight")),
        (40, ("rate/s", "success"), ("p50 ms",)),
    ):
        shown.resize(columns, 24)
        await shown.shows(*there)
        heading = next(line for line in shown.lines if "rate/s" in line)
        assert not any(column in heading for column in gone), heading
        assert any(line.startswith("logbook (events)") for line in shown.lines)
        assert not any("…" in line for line in shown.lines[1:10])


async def test_more_rows_than_lines(top, mesh):
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            service = Service(f"s{number:02}")
            await stack.enter_async_context(mesh.serve(service))
        shown = await top(60, 12)
        await shown.shows("services: 20", "s00", "s04", "… 15 more")
        assert shown.lines[-1].startswith("↑↓") or shown.lines[-2].startswith("↑↓")
        await shown.press(*[DOWN] * 15)
        await shown.until(lambda: shown.selected == "s15")
        await shown.press(*[DOWN] * 10)
        await shown.until(lambda: shown.selected == "s19")


@pytest.mark.parametrize("size", [(80, 8), (20, 5), (10, 3)])
async def test_a_tiny_terminal_shows_the_row_that_is_selected(top, mesh, size):
    async with contextlib.AsyncExitStack() as stack:
        for number in range(9):
            await stack.enter_async_context(mesh.serve(Service(f"s{number}")))
        shown = await top(*size)
        await shown.until(lambda: shown.selected == "s0")
        await shown.press(*[DOWN] * 8)
        await shown.until(lambda: shown.selected == "s8")


async def test_sections_that_do_not_fit_take_no_room(top, hotel):
    shown = await top(100, 11)
    await shown.until(lambda: is_known(shown))
    await shown.press(DOWN, DOWN, DOWN, ENTER)
    await shown.until(lambda: shown.lines[0].startswith("meshkit top  rooms ") and is_known(shown))
    await shown.until(lambda: shown.selected == "rooms.*.book")
    assert any(line.startswith("rooms.clean") for line in shown.lines)
    await shown.press(DOWN, DOWN, DOWN)
    await shown.shows("instances ▲")
    assert shown.selected is not None


async def test_who_goes_is_no_longer_shown(top, mesh):
    rooms, desk = Service("rooms"), Service("desk")
    async with mesh.serve(desk):
        async with mesh.serve(rooms):
            shown = await top()
            await shown.shows("services: 2, instances: 2")
            await shown.press(DOWN, ENTER)
            await shown.shows("meshkit top  rooms")
        await shown.shows("It is not there any more.")
        await shown.press(BACK)
        await shown.shows("services: 1, instances: 1", "desk")
        await shown.until(lambda: shown.selected == "desk")


async def test_an_empty_mesh_and_one_that_fills(top, mesh):
    shown = await top()
    await shown.shows("No service answers. `meshkit run` starts those of a folder.")
    async with mesh.serve(Service("rooms")):
        await shown.shows("rooms")


async def test_a_server_that_goes_away_and_comes_back(top):
    with EmbeddedServer() as server:
        async with connect(server.url) as mesh, mesh.serve(Service("rooms")):
            shown = await top(url=server.url)
            await shown.shows("services: 1")
            server.stop()
            await shown.shows("NATS")
            assert any(line.startswith("rooms") for line in shown.lines)
            server.start()
            await shown.until(
                lambda: (
                    any(line.startswith("rooms") for line in shown.lines)
                    and not any("NATS" in line for line in shown.lines)
                )
            )


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda shown: os.write(shown.ours, b"q"), 0),
        (lambda shown: os.write(shown.ours, b"\x03"), 0),
        (lambda shown: shown.process.send_signal(signal.SIGTERM), 143),
        (lambda shown: shown.process.send_signal(signal.SIGHUP), 129),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP"],
)
async def test_the_terminal_is_as_it_was(top, mesh, end, code):
    shown = await top()
    if end:
        await shown.shows("services:")
    assert termios.tcgetattr(shown.theirs) != shown.before
    os.write(shown.ours, b"\x1a\x1c")  # Ctrl-Z and Ctrl-\
    await shown.press(DOWN)
    end(shown)
    async with asyncio.timeout(20):
        assert await shown.process.wait() == code
    assert termios.tcgetattr(shown.theirs) == shown.before
    await shown.until(lambda: all(code in shown.written for code in LEFT))
    assert b"Traceback" not in shown.written


async def test_a_mistake_of_ours_leaves_the_terminal_as_it_was(top, mesh, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import meshkit.telemetry.live.changes as changes\n"
        "async def read(transport):\n"
        "    raise ZeroDivisionError('by us')\n"
        "changes.read = read\n"
    )
    shown = Terminal(80, 24)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            await shown.start(mesh.transport.server_url, folder=tmp_path)
        async with asyncio.timeout(20):
            assert await shown.process.wait() == 1
        await shown.until(lambda: b"ZeroDivisionError: by us" in shown.written)
        assert termios.tcgetattr(shown.theirs) == shown.before
        assert all(code in shown.written for code in LEFT)
    finally:
        await shown.close()


async def test_who_may_not_ask_is_told_so(top, tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ "
        '{ user: a, password: s, permissions: { publish: { deny: ["$SRV.>", "_MESH.>"] } } } ] }'
    )
    with EmbeddedServer(config=config) as server:
        shown = await top(url=server.url.replace("nats://", "nats://a:s@"))
        async with asyncio.timeout(20):
            assert await shown.process.wait() == 1
        await shown.shows("meshkit: this connection's user may not publish to '$SRV.STATS'")
    assert termios.tcgetattr(shown.theirs) == shown.before


# In a pipe


async def test_in_a_pipe(meshkit, hotel):
    code, out, err = await meshkit("top", "--interval", "0.5")
    heading, *lines = [line.split("\t") for line in out.splitlines()]
    rows = {line[1] or line[0]: dict(zip(heading, line, strict=True)) for line in lines}
    assert (code, err) == (0, "")
    assert list(rows) == [
        *("desk.ask", "desk.pay", "guests", "hotel.*.saved"),
        *("rooms.*.book", "rooms.clean", "zbank.tell"),
    ]
    assert float(rows["rooms.*.book"]["rate"]) > 4
    assert float(rows["rooms.*.book"]["success"]) == 1
    assert float(rows["rooms.clean"]["success"]) < 1
    assert 20 <= float(rows["rooms.clean"]["avg ms"]) <= 50
    assert rows["hotel.*.saved"]["kind"] == "events"
    assert rows["rooms.clean"]["instances"] == "2"
    assert rows["guests"]["rate"] == ""


async def test_once_on_a_terminal(on_terminal, hotel):
    shown = await on_terminal("top", "--once", "--interval", "0.5")
    assert re.search(r"^rooms +rate/s", shown, re.MULTILINE)
    assert re.search(r"^rooms\.\*\.book +[\d.]+ +[\d.]+% ", shown, re.MULTILINE)
    assert all(len(line) <= 60 for line in shown.splitlines())


async def test_without_standard_input_it_looks_once(nats_server):
    shown = Terminal(80, 24)
    asyncio.get_running_loop().add_reader(shown.ours, shown.read)
    shown.process = await asyncio.create_subprocess_shell(
        f"{shlex.quote(sys.executable)} -m meshkit top --interval 0.5 <&-",
        stdout=shown.theirs,
        stderr=shown.theirs,
        env={**os.environ, "NATS_URL": nats_server.url, "TERM": "xterm"},
    )
    try:
        assert await shown.process.wait() == 0
        await shown.shows("No service answers. `meshkit run` starts those of a folder.")
    finally:
        await shown.close()


@pytest.mark.parametrize("interval", ["nan", "inf", "3601", "0.1"])
async def test_an_interval_that_makes_no_sense(meshkit, interval):
    code, out, err = await meshkit("top", "--interval", interval)
    assert (code, out) == (2, "")
    assert "Error: " in err


async def test_json(meshkit, hotel):
    code, out, _ = await meshkit("top", "--json", "--interval", "1")
    services = {one["service"]: one for one in json.loads(out)}
    assert (code, list(services)) == (0, ["desk", "guests", "logbook", "rooms", "zbank"])
    rooms = services["rooms"]
    assert len(rooms["instances"]) == 2
    assert rooms["rate"] == pytest.approx(sum(one["rate"] for one in rooms["instances"]))
    assert [one["subject"] for one in rooms["endpoints"]] == ["rooms.*.book", "rooms.clean"]
    assert set(rooms["endpoints"][0]["outcomes"]) == {"ok", "NotFound"}
    assert 0.01 < rooms["endpoints"][1]["p50"] < 0.05
    assert {one["target"] for one in services["desk"]["calls"]} == {"rooms.*.book", "zbank.tell"}
    assert list(services["desk"]["circuits"]) == ["zbank.tell"]
    assert services["logbook"]["endpoints"][0]["is_event"]


async def test_services_of_other_clients(meshkit, on_terminal, nats_server):
    client = await nats.connect(nats_server.url)
    service = await nats.micro.add_service(client, name="old", version="1.0.0")

    async def come():
        while True:
            await client.request("old.add")
            await asyncio.sleep(0.01)

    try:
        await service.add_endpoint(
            name="add", subject="old.add", handler=lambda request: request.respond(b"3")
        )
        running = asyncio.create_task(come())
        _, out, _ = await meshkit("top", "--interval", "0.5", "--json")
        running.cancel()
        await asyncio.wait([running])
    finally:
        await service.stop()
        await client.close()
    (old,) = json.loads(out)
    (add,) = old["endpoints"]
    assert add["rate"] > 5
    assert add["success"] == 1
    assert 0 < add["average"] < 1
    assert add["p50"] is None


async def test_an_empty_mesh_in_a_pipe(meshkit):
    nobody = "No service answers. `meshkit run` starts those of a folder.\n"
    assert await meshkit("top", "--interval", "0.5") == (0, "", nobody)
    assert await meshkit("top", "--interval", "0.5", "--json") == (0, "[]\n", "")


async def test_no_server(meshkit):
    code, out, err = await meshkit("top", "--nats", "nats://127.0.0.1:1")
    assert (code, out) == (69, "")
    assert err.startswith("meshkit: cannot connect to NATS")


# Order


def test_what_is_not_known_comes_last_whichever_way_round():
    rows = [Row(str(rate), str(rate), Rates(rate=rate)) for rate in (1.0, None, 3.0)]
    assert [row.rates.rate for row in ordered(rows, "rate", turned=False)] == [3.0, 1.0, None]
    assert [row.rates.rate for row in ordered(rows, "rate", turned=True)] == [1.0, 3.0, None]
    assert [row.key for row in ordered(rows, "name", turned=True)] == ["None", "3.0", "1.0"]
