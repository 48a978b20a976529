"""Log lines: which call they belong to, as text and as JSON."""

import asyncio
import io
import json
import logging
import logging.config
import logging.handlers
import queue
import re
import subprocess
import sys
import textwrap
import threading

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from meshkit import Context, InternalError, Service
from meshkit.telemetry.logs import ContextFilter, JsonFormatter, TextFormatter
from meshkit.telemetry.traces.tracing import Tracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}


@pytest.fixture
def log():
    """A logger; `log.to(formatter)` has it write, `log.lines()` are the lines."""
    # None that pytest finds: between its processes it cannot pass on text that is no Unicode.
    log = logging.Logger("hotel", logging.INFO)  # noqa: LOG001
    written = io.StringIO()

    def to(formatter, *filters):
        handler = logging.StreamHandler(written)
        handler.setFormatter(formatter)
        for each in filters:
            handler.addFilter(each)
        log.addHandler(handler)
        return log

    log.to = to
    log.lines = lambda: written.getvalue().removesuffix("\n").split("\n") if written.getvalue() else []
    return log


def hotel(log):
    service = Service("rooms")

    @service.endpoint("rooms.{room}.price")
    async def price(room: int) -> None:
        log.info("asked")

    @service.endpoint("rooms.{room}.by_hand")
    def by_hand(room: int) -> None:
        log.info("asked")

    @service.endpoint("rooms.{room}.traced")
    async def traced(room: int) -> list[str]:
        log.info("before")
        with trace.get_tracer("test", tracer_provider=TracerProvider()).start_as_current_span(
            "of its own"
        ) as span:
            log.info("within")
        return [f"{span.get_span_context().span_id:016x}", f"{trace.get_current_span().span_id:016x}"]

    return service


# Which call


@pytest.mark.parametrize("endpoint", ["price", "by_hand"])
async def test_json_line_of_a_handler_says_which_call_it_belongs_to(mesh, log, endpoint):
    log.to(JsonFormatter())
    async with mesh.serve(hotel(log)) as instance:
        await mesh.call(f"rooms.12.{endpoint}", headers=TRACED)
        [line] = map(json.loads, log.lines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "logger": "hotel",
        "message": "asked",
        "service": "rooms",
        "instance": instance.name,
        "subject": f"rooms.12.{endpoint}",
        "trace_id": TRACE,
        "span_id": SPAN,
    }


@pytest.mark.parametrize("endpoint", ["price", "by_hand"])
async def test_text_line_ends_with_the_call_it_belongs_to(mesh, log, endpoint):
    log.to(TextFormatter("%(levelname)s %(name)s: %(message)s"))
    log.info("before")
    async with mesh.serve(hotel(log)) as instance:
        await mesh.call(f"rooms.12.{endpoint}", headers=TRACED)
        await mesh.call(f"rooms.12.{endpoint}")
    where = f"{instance.name} rooms.12.{endpoint}"
    assert log.lines() == [
        "INFO hotel: before",
        f"INFO hotel: asked [{where} trace={TRACE} span={SPAN}]",
        f"INFO hotel: asked [{where}]",
    ]


async def test_where_spans_are_made_the_line_has_the_one_that_goes_on(mesh, log):
    mesh.telemetry.tracer = Tracer(TracerProvider(), slow=1)
    log.to(JsonFormatter())
    async with mesh.serve(hotel(log)):
        within, around = await mesh.call("rooms.12.traced", headers=TRACED)
        await mesh.call("rooms.12.by_hand", headers=TRACED)
    first, second, in_thread = map(json.loads, log.lines())
    assert (first["span_id"], second["span_id"]) == (around, within)
    assert {line["trace_id"] for line in (first, second, in_thread)} == {TRACE}
    assert in_thread["span_id"] not in {SPAN, around}


def test_without_a_request_the_span_of_the_program_is_in_the_line(log):
    log.to(JsonFormatter(service="client"))
    with trace.get_tracer("test", tracer_provider=TracerProvider()).start_as_current_span("x") as span:
        log.info("calling")
    [line] = map(json.loads, log.lines())
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert line["service"] == "client"
    assert "subject" not in line


async def test_a_trace_that_is_none_is_left_out(mesh, log):
    log.to(JsonFormatter())
    wrong = [f"00-{'0' * 32}-{SPAN}-00", f"00-{TRACE[1:]}-{SPAN}-00", "00"]
    async with mesh.serve(hotel(log)):
        for each in wrong:
            await mesh.call("rooms.12.price", headers={"traceparent": each})
    assert not any("trace_id" in json.loads(line) for line in log.lines())
    assert len(log.lines()) == len(wrong)


async def test_what_a_request_carries_is_not_in_the_lines_of_its_failure(mesh, log, monkeypatch):
    log.to(JsonFormatter())
    monkeypatch.setattr("meshkit.layers.rescue.log", log)
    service = Service("rooms")

    @service.endpoint()
    async def book(card: str, ctx: Context) -> None:
        raise RuntimeError("no room")

    async with mesh.serve(service):
        with pytest.raises(InternalError):
            await mesh.call("rooms.book", "4111-1111", headers={"Authorization": "hunter2"})
    [line] = log.lines()
    assert "no room" in line
    assert "4111" not in line
    assert "hunter2" not in line


# One line


def test_text_of_a_record_is_one_line_and_cannot_drive_the_terminal(log):
    log.to(TextFormatter("%(message)s"))
    log.info("Ann\r\n12:00:00 rooms#1 ERROR forged\x1b[2J\t%s\udc80", "é")
    assert log.lines() == ["Ann\\r\\n12:00:00 rooms#1 ERROR forged\\x1b[2J\té\\udc80"]


def test_traceback_in_text_is_indented(log):
    log.to(TextFormatter("%(levelname)s %(message)s"))
    try:
        raise RuntimeError("a\nERROR forged\x1b[2J")
    except RuntimeError:
        log.exception("failed")
    log.info("stack", stack_info=True)
    first, *lines = log.lines()
    assert first == "ERROR failed"
    assert lines[0] == "    Traceback (most recent call last):"
    assert "    ERROR forged\\x1b[2J" in lines
    assert [line for line in lines if not line.startswith("    ")] == ["INFO stack"]


def test_json_of_a_record_is_one_line_whatever_it_holds(log):
    log.to(JsonFormatter())
    around = []
    around.append(around)
    try:
        raise RuntimeError("a\nb")
    except RuntimeError:
        log.exception("c\nd\u2028\udc80", extra={"around": around, "number": 7})
    log.info("%s", "é", extra={"who": {1, 2}, "what": object(), "how": float("nan"), "of": {(1, 2): 10**30}})
    first, second = map(json.loads, log.lines())
    assert first["message"] == "c\nd\u2028\\udc80"
    assert (first["around"], first["number"]) == ("[[...]]", 7)
    assert first["exception"].startswith("Traceback (most recent call last):\n")
    assert first["exception"].endswith("\nRuntimeError: a\nb")
    assert second["message"] == "é"
    assert (second["who"], second["how"], second["of"]) == ([1, 2], None, {"(1, 2)": 10**30})
    assert second["what"].startswith("<object object at")


async def test_extra_goes_before_the_context_and_not_before_what_a_record_is(mesh, log):
    log.to(JsonFormatter(worker="rooms#1", service="inn"))
    service = Service("rooms")

    @service.endpoint()
    async def book() -> None:
        log.warning("full", extra={"level": "x", "timestamp": 1, "subject": "mine", "room": 12})

    async with mesh.serve(service):
        await mesh.call("rooms.book")
    [line] = map(json.loads, log.lines())
    assert (line["level"], line["subject"], line["room"]) == ("WARNING", "mine", 12)
    assert (line["worker"], line["service"]) == ("rooms#1", "rooms")
    assert isinstance(line["timestamp"], str)


# In a process of one's own


async def test_filter_gives_any_format_the_fields(mesh, log):
    log.to(logging.Formatter("%(message)s %(subject)s %(trace_id)s %(span_id)s."), ContextFilter())
    async with mesh.serve(hotel(log)):
        await mesh.call("rooms.12.price", headers=TRACED)
        log.info("after")
    assert log.lines() == [f"asked rooms.12.price {TRACE} {SPAN}.", "after   ."]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
async def test_filter_keeps_the_call_for_a_formatter_in_another_thread(mesh, log, formatter):
    written = io.StringIO()
    target = logging.StreamHandler(written)
    target.setFormatter(formatter)
    records = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(ContextFilter())
    log.addHandler(handler)
    async with mesh.serve(hotel(log)):
        await mesh.call("rooms.12.price", headers=TRACED)
    log.info("after")
    for _ in range(2):
        thread = threading.Thread(target=target.handle, args=[records.get()])
        thread.start()
        thread.join()
    first, second = written.getvalue().splitlines()
    assert all(text in first for text in ("rooms.12.price", TRACE, SPAN))
    assert not any(text in second for text in ("subject", "trace", "[", "]"))


def test_dict_config_takes_them(capsys):
    """And nothing of OpenTelemetry is loaded for it."""
    code = """
        import logging, logging.config, sys

        part = "meshkit.telemetry.logs"
        logging.config.dictConfig({
            "version": 1,
            "filters": {"call": {"()": f"{part}.ContextFilter"}},
            "formatters": {
                "json": {"()": f"{part}.JsonFormatter", "service": "desk"},
                "text": {"()": f"{part}.TextFormatter", "fmt": "%(levelname)s %(message)s"},
                "own": {"format": "%(message)s <%(trace_id)s>"},
            },
            "handlers": {
                name: {"class": "logging.StreamHandler", "formatter": name, "filters": ["call"]}
                for name in ("json", "text", "own")
            },
            "root": {"level": "INFO", "handlers": ["json", "text", "own"]},
        })
        logging.getLogger("desk").info("open")
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True, text=True
    )
    in_json, *others = ran.stderr.splitlines()
    assert json.loads(in_json) | {"timestamp": ""} == {
        "timestamp": "",
        "level": "INFO",
        "logger": "desk",
        "message": "open",
        "service": "desk",
    }
    assert others == ["INFO open", "open <>"]


async def test_lines_of_calls_side_by_side_are_not_mixed_up(mesh, log):
    log.to(JsonFormatter())
    async with mesh.serve(hotel(log)):
        await asyncio.gather(
            *(mesh.call(f"rooms.{room}.by_hand", headers=trace_of(room)) for room in range(100))
        )
    found = {line["subject"]: line["trace_id"] for line in map(json.loads, log.lines())}
    assert found == {f"rooms.{room}.by_hand": f"{room + 1:032x}" for room in range(100)}


def trace_of(room):
    return {"traceparent": f"00-{room + 1:032x}-{SPAN}-00"}
