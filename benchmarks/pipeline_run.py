"""examples/pipeline at work: a nats-server with its streams on disk, `meshkit run`, and what is saved by now.

For Linux: it reads /proc.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.stage import ROOT
from meshkit.transport.server import EmbeddedServer

EXAMPLE = ROOT / "examples" / "pipeline"
TARGETS = {"core": EXAMPLE, "durable": EXAMPLE / "durable.py"}
CHUNK = 100  # objects that a mapper gets at a time
SAVERS = 2
# Seconds.
_LOOK = 0.02
_SETTLE = 60.0
_DRAIN = 30.0
_HTTP = 5.0
_CLOSED = 2.0
# Looking takes no more than this share of a processor: SQLite counts rows by reading them all.
_SHARE = 0.05


class Stuck(RuntimeError):
    """Nothing more is saved; the text says how far it came, and who is there."""


class Size(NamedTuple):
    """How much is to be done, and by how many.

    Attributes:
        objects: How many.
        mappers: Processes.
        service_time: Seconds that a mapper waits for each chunk, in place of the work; 0 for the work.
        patience: Seconds without anything saved after which a run is stuck.
    """

    objects: int
    mappers: int
    service_time: float = 0.0
    patience: float = 90.0


class Consumer(NamedTuple):
    """A consumer of a stream.

    Attributes:
        left: Messages that wait to be delivered, or to be acknowledged.
        delivered: How many were, each as often as it was.
    """

    left: int
    delivered: int


class Result(NamedTuple):
    """What is saved: how many rows, how many of the objects are missing, and the checksum of it all."""

    rows: int
    missing: int
    checksum: str


class Run:
    """One run, from an empty database. It is a context manager, and no process of it outlives the block.

    What it has on the disk goes too, unless it is stuck or to be kept.

    Args:
        variant: `core` or `durable`.
        size: How much.

    Attributes:
        size: The same.
        folder: Where everything is: database, record, streams and logs.
        is_kept: Whether it stays.
        server: The nats-server.
        log: What `meshkit run` and its services say.
        began: When they were started, by `time.monotonic()`.
    """

    def __init__(self, variant: str, size: Size) -> None:
        self.size = size
        self.folder = folder = Path(tempfile.mkdtemp(prefix="meshkit-pipeline-"))
        self.is_kept = False
        self.log = folder / "meshkit.log"
        self.server = EmbeddedServer(store=folder / "jetstream", monitor=0)
        self._variant = variant
        self.data = folder / "data"
        self._chunks = -(-size.objects // CHUNK)

    def __enter__(self) -> Self:
        self.server.start()
        self.began = time.monotonic()
        self._launcher = self._launch()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._launcher.poll() is None:
            workers = self.workers()
            self._launcher.kill()
            self._launcher.wait()
            for pid in workers:  # which would drain, however long that takes
                kill(pid)
        shutil.copy(self.server.log, self.folder)
        self.server.stop()
        if kind is not Stuck and not self.is_kept:
            shutil.rmtree(self.folder)

    @property
    def launcher(self) -> int:
        """The process id of `meshkit run`."""
        return self._launcher.pid

    def workers(self) -> dict[int, str]:
        """The services' processes, with their names."""
        return {
            pid: arguments[-1]
            for pid, parent, arguments in _processes()
            if parent == self.launcher and "meshkit.launcher.worker" in arguments
        }

    def saved(self) -> int:
        """How many objects are, by now."""
        file = self.data / "cities.sqlite"
        if not file.exists():
            return 0
        try:
            with closing(sqlite3.connect(file)) as db:
                return db.execute("SELECT count(*) FROM cities").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return 0
            raise

    def has_begun(self) -> bool:
        """Whether the fetcher has sent anything."""
        if self._variant == "core":
            return "Sent data #" in self.log.read_text(encoding="utf-8")
        return any(one["state"]["messages"] for one in self._streams())

    def wait(self) -> Iterator[int]:
        """How many are saved, again and again, until all are.

        Raises:
            Stuck: No more came for a while, or `meshkit run` has ended.
        """
        last, since = -1, time.monotonic()
        while last < self.size.objects:
            cost, now = time.thread_time(), time.monotonic()
            if (saved := self.saved()) != last:
                last, since = saved, now
            cost = time.thread_time() - cost
            yield saved
            if self._launcher.poll() is not None:
                raise Stuck(f"meshkit run ended with exit code {self._launcher.returncode}; {self.state()}")
            if now - since > self.size.patience:
                raise Stuck(f"nothing more is saved for {self.size.patience:g} s; {self.state()}")
            time.sleep(max(_LOOK, cost / _SHARE))

    def state(self) -> str:
        """How far it is, who is there, what waits in streams, and what was said last."""
        names = [name.partition("#")[0] for name in self.workers().values()]
        there = [f"{names.count(name)} {name}" for name in sorted(set(names))]
        there += ["nats-server"] * self.server.is_running
        left = [f"{one.left} for {name}" for name, one in self.consumers().items() if one.left]
        return (
            f"{self.saved():,} of {self.size.objects:,} objects are saved; "
            f"running: {', '.join(there) or 'nobody'}; "
            f"waiting in streams: {', '.join(left) or 'nothing'}; the end of {self.log}:\n{self._said()}"
        )

    def crash(self) -> None:
        """Kill all of it at once; what comes back finds what was on the disk."""
        workers = self.workers()
        self._launcher.kill()
        for pid in workers:
            kill(pid)
        if self.server.is_running:
            self.server.kill()
        self._launcher.wait()
        self.server.restart()
        self._launcher = self._launch()

    def settle(self) -> list[str]:
        """Wait until the example knows that everything is saved; gives what is wrong."""
        give_up = time.monotonic() + _SETTLE
        while not self._knows():
            if time.monotonic() > give_up:
                return [f"{_SETTLE:g} s after everything was saved not all know of it: {self.state()}"]
            time.sleep(_LOOK)
        stored = {one["name"]: one["state"]["messages"] for one in self._streams()}
        dead = stored.pop("MESH_DEAD", 0)
        wrong = [f"dead letters: {dead}"] if dead else []
        # Of each chunk one to a mapper, one to a saver, and that it is saved.
        if stored and (messages := sum(stored.values())) != 3 * self._chunks:
            wrong.append(f"the streams hold {messages} messages, and not 3 for each of {self._chunks} chunks")
        return wrong

    def _knows(self) -> bool:
        if any(one.left for one in self.consumers().values()):
            return False
        return f"All {self._chunks} chunks are saved" in self.log.read_text(encoding="utf-8")

    def again(self) -> int:
        """How many times a chunk was given to a mapper that another had been given before."""
        if self._variant == "core":
            return len(re.findall(r"Sent data #\d+", self.log.read_text(encoding="utf-8"))) - self._chunks
        return max(one.delivered for name, one in self.consumers().items() if "mapper" in name) - self._chunks

    def stop(self) -> list[str]:
        """Have `meshkit run` end as on SIGTERM; gives what is wrong with how it does."""
        workers = self.workers()
        self._launcher.send_signal(signal.SIGTERM)
        try:
            code = self._launcher.wait(_DRAIN)
        except subprocess.TimeoutExpired:
            return [f"meshkit run has not ended {_DRAIN:g} s after SIGTERM:\n{self._said()}"]
        wrong = [f"meshkit run ended with exit code {code}:\n{self._said()}"] if code else []
        if left := [name for pid, name in workers.items() if Path(f"/proc/{pid}").exists()]:
            wrong.append(f"outlive meshkit run: {', '.join(left)}")
        give_up = time.monotonic() + _CLOSED
        while count := self._ask("/connz")["num_connections"]:
            if time.monotonic() > give_up:
                return [*wrong, f"connections to nats-server that outlive meshkit run: {count}"]
            time.sleep(_LOOK)
        return wrong

    def result(self) -> Result:
        """What the example's own check finds in the database."""
        command = [sys.executable, EXAMPLE / "check.py"]
        check = subprocess.run(  # noqa: S603 # ours
            command, env=self._environment(), capture_output=True, text=True, check=False
        )
        said = re.search(r"(\d+) objects saved, (\d+) missing.*\nchecksum (\w+)", check.stdout)
        if said is None:
            raise RuntimeError(f"{EXAMPLE / 'check.py'} says nothing of use: {check.stdout}{check.stderr}")
        return Result(int(said[1]), int(said[2]), said[3])

    def consumers(self) -> dict[str, Consumer]:
        """The consumers of streams, by name; none while the server is away."""
        return {
            one["name"]: Consumer(
                one["num_pending"] + one["num_ack_pending"], one["delivered"]["consumer_seq"]
            )
            for stream in self._streams()
            for one in stream.get("consumer_detail", ())
        }

    def _streams(self) -> list[dict[str, Any]]:
        accounts = self._ask("/jsz?consumers=1").get("account_details", [])
        return [stream for account in accounts for stream in account.get("stream_detail", [])]

    def _ask(self, path: str) -> dict[str, Any]:
        if not self.server.is_running:
            return {}
        with urllib.request.urlopen(self.server.monitor_url + path, timeout=_HTTP) as answer:  # noqa: S310 # ours
            return json.load(answer)

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "meshkit", "run", TARGETS[self._variant]]
        command += ["--workers", f"mapper={self.size.mappers}", "--workers", f"saver={SAVERS}"]
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 # ours
                command,
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for us: we end it
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        return kept | {
            "NATS_URL": self.server.url,
            "PIPELINE_OBJECTS": str(self.size.objects),
            "PIPELINE_DATA": str(self.data),
            "PIPELINE_SERVICE_TIME": str(self.size.service_time),
        }

    def _said(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def kill(pid: int) -> None:
    """As a crash does; unless it has just ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, int, list[str]]]:
    """Every process: its id, its parent's, and its command line, which is empty if it has ended."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has gone meanwhile
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            yield int(entry.name), parent, arguments
