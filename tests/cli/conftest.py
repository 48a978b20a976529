import asyncio
import contextlib
import os
import pty
import re
import sys
import termios

import pytest
from click.testing import CliRunner

from meshkit.cli.group import group
from meshkit.cli.output import console


@pytest.fixture
def meshkit(nats_server, tmp_path):
    """Runs `meshkit ARGUMENTS` in `tmp_path`; gives exit code, standard output and standard error."""

    async def run(*arguments, stdin=b"", **environment):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshkit", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "NATS_URL": nats_server.url, **environment},
        )
        out, err = await process.communicate(stdin)
        return process.returncode, out.decode(), err.decode()

    return run


@pytest.fixture
def command(nats_server, monkeypatch):
    """The same as `meshkit` within this process, which takes a tenth of the time."""
    monkeypatch.setattr(console, "_force_terminal", False)

    async def run(*arguments):
        runner = CliRunner(env={"NATS_URL": nats_server.url})
        ran = await asyncio.to_thread(runner.invoke, group, arguments)
        return ran.exit_code, ran.stdout, ran.stderr

    return run


@pytest.fixture
def on_terminal(nats_server, tmp_path):
    """Runs `meshkit ARGUMENTS` in `tmp_path` on a terminal of 60 columns; gives what it shows."""

    async def run(*arguments):
        terminal, end = pty.openpty()
        termios.tcsetwinsize(end, (24, 60))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshkit", *arguments),
            stdin=end,
            stdout=end,
            stderr=end,
            cwd=tmp_path,
            env={**os.environ, "NATS_URL": nats_server.url, "TERM": "xterm", "COLUMNS": "60"},
        )
        os.close(end)
        shown = await asyncio.to_thread(read_all, terminal)
        await process.wait()
        return re.sub(r"\x1b\[[0-9;]*m|\r", "", shown.decode())

    return run


def read_all(terminal):
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    return shown
