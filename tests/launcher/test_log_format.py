"""`meshkit run --log-format` and `--access-log`: what real processes write."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import meshkit

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
ROOMS = """
    import logging, sys, threading, warnings
    from meshkit import Service

    log = logging.getLogger("hotel")
    service = Service("rooms", access_log=0)

    @service.endpoint("rooms.{room}.price")
    def price(room: int) -> float:
        log.info("asked for\\nroom %d", room, extra={"room": room})
        return 100 / room

    @service.endpoint("rooms.odd")
    def odd() -> None:
        warnings.warn("an odd thing")
        for work in (lambda: int("x"), sys.exit):
            thread = threading.Thread(target=work, name="odd")
            thread.start()
            thread.join()

    @service.endpoint("rooms.quiet")
    def quiet() -> None: ...
"""
TOML = """
    [services.rooms]
    access_log = 0

    [serve."rooms.quiet"]
    access_log = 0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hotel")
    (folder / "rooms.py").write_text(textwrap.dedent(ROOMS))
    (folder / "meshkit.toml").write_text(textwrap.dedent(TOML))
    return folder


def address(launched):
    [found] = launched.wait_for(r"nats-server [^ ]+ \(embedded\) (nats://[\d.:]+)")
    return found[1]


def stop(launched):
    """Drain; what it has written in JSON."""
    launched.signal(2)
    assert launched.ended() == 0
    return [json.loads(line) for line in launched.lines]


async def test_every_line_is_json(launch, folder):
    launched = launch(folder, "--log-format", "json", "--access-log", "100%", "--trace")
    url = address(launched)
    launched.wait_for("rooms#1 ready")
    async with meshkit.connect(url) as mesh:
        await mesh.call("rooms.12.price", headers=TRACED)
        with pytest.raises(meshkit.InternalError):
            await mesh.call("rooms.0.price")
        await mesh.call("rooms.odd")
        await mesh.call("rooms.quiet")
    lines = stop(launched)

    assert all(line.keys() >= {"timestamp", "level", "logger", "message"} for line in lines)
    [asked, _] = [line for line in lines if line["logger"] == "hotel"]
    instance = asked.pop("instance")
    assert instance.startswith("rooms/")
    assert asked.pop("timestamp").endswith("Z")
    span_id = asked.pop("span_id")
    assert asked == {
        "level": "INFO",
        "logger": "hotel",
        "message": "asked for\nroom 12",
        "worker": "rooms#1",
        "service": "rooms",
        "subject": "rooms.12.price",
        "trace_id": TRACE,
        "room": 12,
    }
    [failed] = [line for line in lines if line["level"] == "ERROR" and line["logger"] == "meshkit.service"]
    assert failed["exception"].endswith("\nZeroDivisionError: division by zero")
    [warned] = [line for line in lines if line["logger"] == "py.warnings"]
    assert "an odd thing" in warned["message"]
    [crashed] = [line for line in lines if line["logger"] == "threading"]
    assert (crashed["message"], crashed["instance"]) == ("thread odd ended", instance)
    assert "ValueError" in crashed["exception"]
    # The option is for services as a whole: what is said of an endpoint goes before it.
    accesses = [(line["subject"], line["outcome"]) for line in lines if line["logger"] == "meshkit.access"]
    assert accesses == [("rooms.12.price", "ok"), ("rooms.0.price", "InternalError"), ("rooms.odd", "ok")]
    [traced] = [line for line in lines if "spans" in line and line["trace_id"] == TRACE]
    assert (traced["logger"], traced["spans"][0]["parent"]) == ("meshkit.run", SPAN)
    assert span_id in {span["id"] for span in traced["spans"]}
    [ready] = [line for line in lines if line["message"] == "rooms#1 ready"]
    assert (ready["logger"], ready["level"], ready["worker"]) == ("meshkit.run", "INFO", "rooms#1")


async def test_text_lines_name_the_call_and_are_one_line_each(launch, folder):
    launched = launch(folder, "--access-log", "1")
    url = address(launched)
    launched.wait_for("rooms#1 ready")
    async with meshkit.connect(url) as mesh:
        await mesh.call("rooms.12.price", headers=TRACED)
    launched.wait_for(
        rf"^\d\d:\d\d:\d\d rooms#1 INFO hotel: asked for\\nroom 12 "
        rf"\[rooms/\w+ rooms\.12\.price trace={TRACE} span={SPAN}\]$",
        r"^\d\d:\d\d:\d\d rooms#1 INFO meshkit\.access: rooms\.12\.price ok endpoint=price "
        rf"duration_ms=[\d.]+ queued_ms=0\.0 bytes_in=0 bytes_out=\d+ attempt=1 trace_id={TRACE}$",
    )


def run(folder, *args):
    """Run what fails at once."""
    command = [sys.executable, "-m", "meshkit", "run", *args]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESHKIT_RUN_"))
    }
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, check=False, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "sentence"),
    [
        ("1 / 0", 1, "bug.py cannot be imported: ZeroDivisionError: division by zero"),
        ("import nowhere_at_all", 78, "there is no module 'nowhere_at_all'"),
        ("from meshkit import Service; Service('a b')", 78, "bug.py: service name 'a b'"),
    ],
)
def test_failure_is_json_too(tmp_path, code, exit_code, sentence):
    (tmp_path / "bug.py").write_text(f"import logging\nlogging.getLogger('bug').warning('begins')\n{code}\n")
    ran = run(tmp_path, "bug.py", "--log-format", "json")
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == exit_code
    assert not ran.stdout
    assert (lines[0]["logger"], lines[0]["message"]) == ("bug", "begins")
    assert sentence in lines[-1]["message"]
    assert (lines[-1]["logger"], lines[-1]["level"]) == ("meshkit.run", "ERROR")
    tracebacks = [line["exception"] for line in lines if "exception" in line]
    assert [text.splitlines()[-1] for text in tracebacks] == (
        ["ZeroDivisionError: division by zero"] if exit_code == 1 else []
    )


def test_what_is_no_share_is_told(folder):
    ran = run(folder, "--access-log", "ten")
    assert ran.returncode == 2
    assert "'--access-log': a number from 0 to 1, or text such as 10%, is wanted." in " ".join(
        ran.stderr.split()
    )
