"""Processes, and what they cost in processor time and memory. For Linux: it reads /proc."""

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import trustme

from meshkit.transport.server import EmbeddedServer

ROOT = Path(__file__).parent.parent
# Seconds.
_READY = 60
_ANSWER = 300
_END = 10


class Child:
    """A process driven by JSON lines over its standard streams.

    Args:
        command: What to run; it has to say "ready".
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed by stop
        self._process = subprocess.Popen(  # noqa: S603 # ours
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self.pid = self._process.pid
        try:
            self._hear(_READY)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Have it carry out a command; gives the result.

        Raises:
            RuntimeError: It failed there; the text is its traceback.
        """
        assert self._process.stdin is not None
        line = json.dumps({"command": command, "arguments": arguments}) + "\n"
        with suppress(BrokenPipeError):  # it has ended; what follows says so
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        told = self._hear(_ANSWER)
        if "error" in told:
            raise RuntimeError(told["error"])
        return told["result"]

    def stop(self) -> None:
        """Let it end; kill it if it does not."""
        assert self._process.stdin is not None
        with self._errors, self._process:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _hear(self, seconds: float) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline() if select.select([stdout], [], [], seconds)[0] else b""
        if not line:
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace")
            raise RuntimeError(f"{self._process.args} says nothing. Its standard error:\n{errors[-4000:]}")
        return json.loads(line)


class Process(Child):
    """A role in a Python process of its own.

    Args:
        module: Where the role is.
        role: Its name, as `role.py` has it.
        python: The interpreter, of an environment that has what the module imports.
        loop: asyncio or uvloop.
        settings: What the role takes.
    """

    def __init__(
        self,
        module: str,
        role: str,
        *,
        python: Path | str = sys.executable,
        loop: str = "asyncio",
        **settings: Any,
    ) -> None:
        super().__init__([python, "-m", "benchmarks.role", module, role, loop, json.dumps(settings)])


class Memory(NamedTuple):
    """What a process holds, in MiB.

    Attributes:
        rss: All that is in memory.
        pss: The same, with what it shares with others divided among them.
        private: What it alone has written to, and what one more of it would cost.
    """

    rss: float
    pss: float
    private: float


def memory(pid: int) -> Memory:
    """What a process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kib = {line.split()[0]: int(line.split()[1]) for line in lines}
    return Memory(*(kib[name] / 1024 for name in ("Rss:", "Pss:", "Private_Dirty:")))


def processor_time(pid: int) -> float:
    """Seconds of processor time that all threads of a process have used, by its POSIX clock."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def spending(watched: Mapping[str, Iterable[int]]) -> Iterator[dict[str, float]]:
    """Seconds of processor time that processes spend in the block, by the names of their groups."""
    before = {who: sum(map(processor_time, pids)) for who, pids in watched.items()}
    spent: dict[str, float] = {}
    yield spent
    spent |= {who: sum(map(processor_time, pids)) - before[who] for who, pids in watched.items()}


class Certificates(NamedTuple):
    """Files for mutual TLS on 127.0.0.1: the authority, and one certificate for both sides."""

    ca: str
    cert: str
    key: str


@contextmanager
def certificates() -> Iterator[Certificates]:
    """Make them."""
    with tempfile.TemporaryDirectory(prefix="meshkit-bench-") as directory:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        made = Certificates(*(f"{directory}/{name}.pem" for name in Certificates._fields))
        authority.cert_pem.write_to_path(made.ca)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(made.cert, append=True)
        issued.private_key_pem.write_to_path(made.key)
        yield made


class Nats(NamedTuple):
    """A nats-server: where, its process, and the files for mutual TLS if it asks for that."""

    url: str
    pid: int
    tls: dict[str, str] | None


@contextmanager
def nats_server(*, tls: bool = False) -> Iterator[Nats]:
    """A nats-server of one's own, plain or with mutual TLS."""
    if not tls:
        with EmbeddedServer() as server:
            yield Nats(server.url, server.pid, None)
        return
    with certificates() as files:
        config = Path(files.ca).with_name("nats.conf")
        settings = f'ca_file: "{files.ca}", cert_file: "{files.cert}", key_file: "{files.key}", verify: true'
        config.write_text(f"tls {{ {settings} }}", encoding="utf-8")
        with EmbeddedServer(config=config) as server:
            yield Nats(server.url.replace("nats://", "tls://"), server.pid, files._asdict())
