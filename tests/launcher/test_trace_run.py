"""Traces of services that run as processes of their own: to the terminal, and to who receives OTLP."""

import asyncio
import re
import signal
import time

import pytest
from otlp import receiver
from spans import received, shape
from support import until

from meshkit import CallPolicy, ServiceError, connect

SHOP = r"""
import asyncio
from meshkit import CallPolicy, Context, Service, ServiceError
from opentelemetry import trace

orders, stock, mail = Service("orders"), Service("stock"), Service("mail")

@orders.endpoint()
async def place(item: str, ctx: Context) -> str:
    with trace.get_tracer("shop").start_as_current_span("write"):
        often = CallPolicy(idempotent=True, retry_delay=0.001, breaker=False)
        left = await ctx.mesh.call("stock.reserve", item, policy=often)
    await ctx.mesh.publish("orders.placed", left)
    return "placed"

@stock.endpoint(idempotent=True)
async def reserve(item: str, ctx: Context) -> int:
    if item == "bike":
        raise ServiceError(409, "no bikes left")
    if item == "safe" and "Mesh-Attempt" not in ctx.headers:
        raise ServiceError(503, "the store is locked")
    trace.get_current_span().add_event("row written")
    return 3

@orders.endpoint()
async def many(count: int, ctx: Context) -> None:
    for _ in range(count):
        await ctx.mesh.call("stock.reserve", "lamp")

@orders.endpoint()
async def lose() -> None:
    with trace.get_tracer("shop").start_as_current_span("half \udcff"):
        raise FileNotFoundError("\udcff")

@mail.subscribe("orders.placed")
async def confirm(left: int) -> None:
    await asyncio.sleep(0)
"""
THROUGH = [
    "CLIENT orders.place",
    "  CLIENT orders.place attempt",
    "    SERVER orders.place",
    "      INTERNAL write",
    "        CLIENT stock.reserve",
    "          CLIENT stock.reserve attempt",
    "            SERVER stock.reserve",
    "      PRODUCER send orders.placed",
    "        CONSUMER process orders.placed",
]


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


async def order(url, item):
    async with connect(url) as mesh:
        return await mesh.call("orders.place", item, returns=str)


async def test_a_call_shows_as_a_tree(launch, shop):
    run = launch(shop, "shop.py", "--trace", "--workers", "2")
    run.wait_for(*(f"{name}#{n} ready" for name in ("orders", "stock", "mail") for n in (1, 2)))
    await order(run.url, "safe")
    run.wait_for("process orders.placed")
    number = r"\d+(\.\d\d)? ms"
    about = rf"(orders|stock|mail)#[12]\t\+{number}\t{number}"
    start = next(n for n, line in enumerate(run.lines) if line.startswith("trace "))
    expected = [
        rf"trace [0-9a-f]{{32}}\t{number}\t10 spans",
        rf"  orders\.place\t{about}",
        rf"    write\t{about}",
        rf"      call stock\.reserve\t{about}",
        rf"        attempt 1\t{about}",
        rf"          stock\.reserve\t{about}\t503: the store is locked",
        rf"        attempt 2\t{about}",
        rf"          stock\.reserve\t{about}\t\+{number} row written",
        rf"    send orders\.placed\t{about}",
        rf"      process orders\.placed\t{about}",
    ]
    for line, pattern in zip(run.lines[start:], expected, strict=False):
        assert re.fullmatch(pattern, line), line


async def test_spans_arrive_although_the_workers_end_at_once(launch, shop):
    with receiver() as there:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": there.url, "OTEL_TRACES_SAMPLER": "always_on"}
        run = launch(shop, "shop.py", **env)
        run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
        await order(run.url, "lamp")
        run.signal(signal.SIGTERM)
        assert run.ended() == 0
        spans = received(there.of("traces"))
    assert shape(spans) == [line[4:] for line in THROUGH[2:]]
    assert len({span.trace for span in spans}) == 1
    whose = {(span.resource["service.name"], span.name) for span in spans if span.kind != "CLIENT"}
    assert {("orders", "write"), ("stock", "stock.reserve"), ("mail", "process orders.placed")} <= whose
    assert "trace" not in str(run)


async def test_traces_are_seen_here_and_exported_too(launch, shop):
    with receiver() as there:
        run = launch(shop, "shop.py", "--trace", OTEL_EXPORTER_OTLP_ENDPOINT=there.url)
        run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
        with pytest.raises(ServiceError):
            await order(run.url, "bike")
        run.wait_for("call stock.reserve.*409: no bikes left")
        run.signal(signal.SIGTERM)
        run.ended()
        assert "stock.reserve" in {span.name for span in received(there.of("traces"))}


async def test_a_receiver_that_is_away_keeps_no_drain_waiting_and_fills_no_log(launch, shop, unused_port):
    away = f"http://127.0.0.1:{unused_port}"
    run = launch(shop, "shop.py", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=away, OTEL_TRACES_SAMPLER="always_on")
    run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
    for _ in range(20):
        await order(run.url, "lamp")
    started = time.monotonic()
    run.signal(signal.SIGTERM)
    assert run.ended() == 0
    assert time.monotonic() - started < 4
    told = [line for line in run.lines if "opentelemetry" in line or "meshkit.telemetry" in line]
    assert 1 <= len(told) <= 6, told


async def test_a_trace_that_is_long_shows_its_beginning_at_once(launch, shop):
    run = launch(shop, "shop.py", "--trace")
    run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
    async with connect(run.url) as mesh:
        await mesh.call("orders.many", 300)
    started = time.monotonic()
    run.wait_for("901 spans, 200 shown")
    assert time.monotonic() - started < 10
    start = next(n for n, line in enumerate(run.lines) if line.startswith("trace "))
    assert run.lines[start + 1].startswith("  orders.many\t")
    assert run.lines[start + 2].startswith("    call stock.reserve\t")


async def test_half_a_character_in_an_error_loses_no_trace(launch, shop):
    run = launch(shop, "shop.py", "--trace")
    run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
    async with connect(run.url) as mesh:
        with pytest.raises(ServiceError):
            await mesh.call("orders.lose", policy=CallPolicy(retries=0))
    run.wait_for(r"FileNotFoundError: \?", r"half \?")


async def test_who_switches_opentelemetry_off_is_told_why_nothing_shows(launch, shop):
    run = launch(shop, "shop.py", "--trace", OTEL_SDK_DISABLED="true")
    run.wait_for("orders#1 ready", "OTEL_SDK_DISABLED=true: there are no traces to show")


async def test_what_comes_faster_than_it_can_be_read_is_counted(launch, shop):
    with receiver() as there:
        run = launch(shop, "shop.py", "--trace", OTEL_EXPORTER_OTLP_ENDPOINT=there.url)
        run.wait_for("orders#1 ready", "stock#1 ready", "mail#1 ready")
        async with connect(run.url) as mesh:
            for _ in range(5):
                await asyncio.gather(*(mesh.call("orders.place", "lamp") for _ in range(40)))
        await until(lambda: "more traces are not shown" in str(run), 10)
        run.signal(signal.SIGTERM)
        assert run.ended() == 0
        traces = {span.trace for span in received(there.of("traces"))}
    # None is shown twice, none is lost without a word, and the workers make no more spans than needed.
    told = sum(int(number) for number in re.findall(r"trace (\d+) more traces are not shown", str(run)))
    shown = [line for line in run.lines if line.startswith("trace ")]
    assert len(set(shown)) == len(shown)
    assert told + len(shown) == 200
    assert len(shown) <= len(traces) < 60


@pytest.mark.parametrize("columns", [100, 60, 30])
async def test_on_a_terminal_there_are_bars_that_fit(shop, nats_server, on_terminal, columns):
    with on_terminal(shop, columns, "shop.py", "--trace", "--nats", nats_server.url) as text:
        await until(lambda: all(f"{name}#1 ready" in text() for name in ("orders", "stock", "mail")), 20)
        with pytest.raises(ServiceError):
            await order(nats_server.url, "bike")
        await until(lambda: "409: no bikes left" in text(), 10)
    tree = text().partition("\ntrace ")[2].split("\n\n")[0].splitlines()[1:]
    assert all(len(line) <= columns for line in tree), tree
    served, own, call, stock = [line for line in tree if "━" in line]
    if columns > 30:
        assert re.match(r"orders\.place +orders#1 +[\d.]+ ms ━+$", served.rstrip()), served
        assert "└ call stock.reserve" in call
    # What is a part of something begins no earlier.
    begins = [line.index("━") for line in (served, own, call, stock)]
    assert begins == sorted(begins)
