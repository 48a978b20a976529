"""The hotel and what watches it, as `make demo OBSERVE=1` starts it: on a terminal, ended by Ctrl-C."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import termios
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CTRL_C = b"\x03"


class Terminal:
    """A terminal, and a command that runs on it."""

    def __init__(self, folder, *command, **environment):
        self.shown = ""
        self._here, there = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=there,
            stdout=there,
            stderr=there,
            env={**{name: value for name, value in os.environ.items() if name != "NATS_URL"}, **environment},
            # Ctrl-C reaches those whose terminal it is.
            preexec_fn=_own_terminal,  # noqa: PLW1509 - system calls only
        )
        os.close(there)

    async def read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while part := await asyncio.to_thread(os.read, self._here, 4096):
                self.shown += part.decode(errors="replace")

    def write(self, keys):
        os.write(self._here, keys)


def _own_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.asynccontextmanager
async def terminal(*arguments, **environment):
    runs = Terminal(*arguments, **environment)
    reading = asyncio.create_task(runs.read())
    try:
        yield runs
    finally:
        if runs.process.poll() is None:
            runs.process.terminate()
        try:
            await asyncio.to_thread(runs.process.wait, 60)
        except subprocess.TimeoutExpired:
            runs.process.kill()
            raise
        await reading


async def until(runs, condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not (found := condition(runs.shown)):
            assert runs.process.poll() is None, runs.shown
            await asyncio.sleep(0.1)
    return found


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def still_run(folder):
    """Processes whose command line names a folder."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]


@pytest.fixture
def hotel(tmp_path):
    """A copy of it; one at a time, since each takes the usual ports, if they are free."""
    ignored = shutil.ignore_patterns("*.sqlite*", "__pycache__")
    with (Path(tempfile.gettempdir()) / "meshkit-observe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield shutil.copytree(ROOT / "examples" / "hotel", tmp_path / "hotel", ignore=ignored)


async def test_prometheus_sees_the_hotel_and_all_of_it_ends_with_ctrl_c(hotel):
    async with terminal(hotel, sys.executable, "observe.py", HOTEL_NIGHT_SECONDS="0.1") as runs:
        url = (await until(runs, lambda shown: re.search(r"(http://\S+)/alerts", shown)))[1]
        await until(runs, lambda shown: re.search(r"audit: \d+ stays over .* ok", shown))

        async def services():
            query = "api/v1/query?query=group+by+(service_name)+(meshkit_instance_start_time_seconds)"
            found = json.loads(await asyncio.to_thread(get, f"{url}/{query}"))["data"]["result"]
            return sorted(each["metric"]["service_name"] for each in found)

        async with asyncio.timeout(30):
            while len(await services()) < 7:
                await asyncio.sleep(0.2)
        assert "MeshServiceErrors" in await asyncio.to_thread(get, f"{url}/api/v1/rules")
        servers = json.loads(
            await asyncio.to_thread(get, f"{url}/api/v1/query?query=gnatsd_varz_connections")
        )
        assert len(servers["data"]["result"]) == 1

        runs.write(CTRL_C)
        assert await asyncio.to_thread(runs.process.wait, 60) == 0
    assert re.search(r"rooms: \d+ stays over.*: ok", runs.shown)
    assert "Traceback" not in runs.shown
    assert still_run(hotel) == []
    for ended in (url, re.search(r"(http://\S+)/metrics", runs.shown)[1]):
        with pytest.raises(OSError, match="refused"):
            get(ended)


async def test_without_prometheus_it_says_how_to_get_it_and_goes_on(hotel, tmp_path):
    only = tmp_path / "bin"
    only.mkdir()
    (only / "sh").symlink_to(shutil.which("sh"))
    async with terminal(hotel, sys.executable, "observe.py", PATH=str(only)) as runs:
        await until(runs, lambda shown: "Prometheus  is not installed: `apt install prometheus`" in shown)
        port = (await until(runs, lambda shown: re.search(r":(\d+)/metrics", shown)))[1]
        await until(runs, lambda shown: "ready" in shown)
        assert "meshkit_instance_start_time_seconds" in await asyncio.to_thread(
            get, f"http://127.0.0.1:{port}/metrics"
        )
        runs.write(CTRL_C)
        assert await asyncio.to_thread(runs.process.wait, 60) == 0
    assert "Traceback" not in runs.shown
