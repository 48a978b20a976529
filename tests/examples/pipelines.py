"""What the tests of `examples/pipeline` share: its modules, a running `meshkit run`, and a PostgreSQL."""

import asyncio
import contextlib
import importlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline"
OBJECTS = 700
NAMES = (
    "messages",
    "cities",
    "geography",
    "database",
    "record",
    "fetcher",
    "mapper",
    "saver",
    "durable",
    "check",
)


@contextlib.contextmanager
def modules(monkeypatch, **environment):
    """Its modules, imported in this environment."""
    for name in ("DATABASE_URL", "PIPELINE_DATA", "PIPELINE_SERVICE_TIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(PIPELINE)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)  # other examples have some of that name
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        for name in NAMES:
            sys.modules.pop(name, None)


class Run:
    """A running `meshkit run`, and what it has printed."""

    def __init__(self, process):
        self.process = process
        self.printed = ""

    async def read(self):
        async for line in self.process.stdout:
            self.printed += line.decode()

    async def until(self, pattern, seconds=120):
        """Wait until it has printed this; the match."""
        async with asyncio.timeout(seconds):
            while not (found := re.search(pattern, self.printed, re.MULTILINE)):
                assert self.process.returncode is None, self.printed
                await asyncio.sleep(0.02)
        return found

    def kill(self, name):
        """Kill a process at once: one whose command line has this in it."""
        listed = subprocess.run(
            ["ps", "-Aww", "-o", "pid=,ppid=,args="], capture_output=True, check=True, text=True
        )
        [found, *_] = re.findall(rf"^ *(\d+) +{self.process.pid} .*{name}", listed.stdout, re.MULTILINE)
        os.kill(int(found), signal.SIGKILL)


@contextlib.asynccontextmanager
async def running(*arguments, **environment):
    """`meshkit run ARGUMENTS`, which ends by Ctrl-C."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "MESHKIT_"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "meshkit", "run", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=kept | environment,
    )
    run = Run(process)
    reading = asyncio.create_task(run.read())
    try:
        yield run
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 40) == 0, run.printed
    except TimeoutError:
        raise AssertionError(run.printed) from None
    finally:
        if process.returncode is None:
            process.kill()
        await reading


@contextlib.contextmanager
def postgresql():
    """A PostgreSQL in a folder of its own; gives its URL. It refuses to be root's."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    assert binaries, "PostgreSQL is not installed; .ci/postgresql does it"
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # a socket's path may have a hundred characters
    user = []
    if os.getuid() == 0:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    data = folder / "data"
    initdb = [binaries[-1] / "initdb", "--pgdata", data, "--username=meshkit", "--auth=trust", "--no-sync"]
    subprocess.run([*user, *initdb], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen(
        [*user, binaries[-1] / "postgres", "-D", data, *settings], cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        yield f"postgresql://meshkit@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)
        shutil.rmtree(folder)
