import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

PATIENCE = 20.0  # seconds for anything that is waited for


class Launcher:
    """A running `meshkit run`, and what it has printed."""

    def __init__(self, folder, *args, **env):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "meshkit", "run", *args],
            cwd=folder,
            env=environment() | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self.lines = []
        self._read = 0
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self):
        with self._process.stdout:
            for line in self._process.stdout:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()

    def wait_for(self, *patterns):
        """Wait until every pattern is in a line printed since the last wait; returns the matches."""
        with self._news:
            found = self._news.wait_for(lambda: self._search(patterns), PATIENCE)
        assert found, f"no {patterns} in:\n{self}"
        self._read = max(index for index, _ in found) + 1
        return [match for _, match in found]

    def _search(self, patterns):
        found = []
        for pattern in patterns:
            for index, line in enumerate(self.lines[self._read :], self._read):
                if match := re.search(pattern, line):
                    found.append((index, match))
                    break
            else:
                return None
        return found

    def __str__(self):
        return "\n".join(self.lines)

    @property
    def url(self):
        return re.search(r"^nats-server .* (nats://\S+)$", str(self), re.MULTILINE)[1]

    def workers(self, name="[^ ]+"):
        """The process ids of the workers of that name."""
        return processes(self.pid, rf"meshkit\.launcher\.worker {name}\b")

    def nats_server(self):
        [pid] = processes(self.pid, r"nats-server .*--port")
        return pid

    def signal(self, number):
        os.kill(self.pid, number)

    def ended(self):
        """Wait for the end; the exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def wait_until_gone(self, *pids):
        """Wait until processes have ended."""
        give_up = time.monotonic() + PATIENCE
        while alive := [pid for pid in pids if is_alive(pid)]:
            assert time.monotonic() < give_up, f"still there: {alive}\n{self}"
            time.sleep(0.01)

    def close(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.send_signal(signal.SIGINT)
        self.ended()


def environment():
    """The environment without what would change how meshkit runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESHKIT_"))}
    # Files that change within a second must not be taken from the bytecode cache.
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


def processes(parent, pattern):
    """The ids of a process's children whose command line matches."""
    listed = subprocess.run(
        ["ps", "-Aww", "-o", "pid=,ppid=,args="], capture_output=True, check=True, text=True
    ).stdout.splitlines()
    split = [line.split(maxsplit=2) for line in listed]
    return [int(pid) for pid, ppid, args in split if int(ppid) == parent and re.search(pattern, args)]


def is_alive(pid):
    state = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, check=False, text=True
    )
    return state.stdout.strip() not in {"", "Z"}  # where nobody reaps orphans, they stay as zombies


@pytest.fixture(scope="module")
def launch():
    """Starts `meshkit run` in a folder with arguments and environment variables."""
    launched = []

    def start(folder, *args, **env):
        launched.append(Launcher(folder, *args, **env))
        return launched[-1]

    yield start
    for each in launched:
        each.close()


@contextlib.contextmanager
def run_on_terminal(folder, columns, *args):
    """`meshkit run` on a terminal of that width; gives what says what it shows, without colours."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "meshkit", "run", *args]
    env = environment() | {"TERM": "xterm-256color"}
    env.pop("COLUMNS", None)  # which would go before the terminal's own
    run = subprocess.Popen(command, cwd=folder, env=env, stdout=side, stderr=side)
    os.close(side)
    seen = []

    def read():
        with contextlib.suppress(OSError):  # the process has ended
            while chunk := os.read(terminal, 65536):
                seen.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lambda: re.sub(r"\x1b\[[0-9;]*m|\r", "", b"".join(seen).decode(errors="ignore"))
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(20)
        reader.join()
        os.close(terminal)


@pytest.fixture
def on_terminal():
    """Runs `meshkit run` on a terminal, in a folder, so many columns wide, with arguments."""
    return run_on_terminal
