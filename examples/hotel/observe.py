"""The hotel, and beside it what shows how it is: `meshkit metrics` and, if it is installed, Prometheus.

Whatever ends the hotel, Ctrl-C for one, ends all of it.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from meshkit.errors import ConfigError
from meshkit.transport.server import EmbeddedServer

HOTEL = Path(__file__).parent
MESHKIT = [sys.executable, "-m", "meshkit"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run all of it; gives the exit code of the hotel."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as everything:
        folder = Path(everything.enter_context(tempfile.TemporaryDirectory(prefix="hotel-")))
        servers = []
        if "NATS_URL" not in os.environ:
            nats = server()
            everything.callback(nats.stop)
            os.environ["NATS_URL"] = nats.url
            servers = ["--server", nats.monitor_url]
        port = free(9100)
        everything.enter_context(
            beside(folder, "metrics", *MESHKIT, "metrics", "--port", str(port), *servers)
        )
        print(f"Metrics     http://127.0.0.1:{port}/metrics")
        everything.enter_context(prometheus(folder, port))
        print(f"And         export NATS_URL={os.environ['NATS_URL']}; meshkit top\n", flush=True)
        return hotel()


def server() -> EmbeddedServer:
    """A nats-server on the ports where clients and people look, or on others if those are taken."""
    usual = EmbeddedServer(port=4222, monitor=8222)
    try:
        usual.start()
    except ConfigError:
        usual = EmbeddedServer(monitor=0)
        usual.start()
    return usual


def hotel() -> int:
    """The hotel itself; signals reach it through us, who have to tidy up after it."""
    command = [*MESHKIT, "run", str(HOTEL), *sys.argv[1:]]
    processes: list[subprocess.Popen[bytes]] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: [process.send_signal(number) for process in processes])
    with subprocess.Popen(command, process_group=0) as process:  # noqa: S603 - meshkit
        processes.append(process)
        return process.wait()


@contextlib.contextmanager
def beside(folder: Path, name: str, *command: str) -> Iterator[None]:
    """A process that runs as long as the block lasts, in a group of its own: Ctrl-C does not reach it."""
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - ours
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
        try:
            yield
        finally:
            if process.poll() is not None:
                print(f"{name} ended with {process.returncode}:\n{log.read_text()}", file=sys.stderr)
            process.terminate()
            process.wait()


@contextlib.contextmanager
def prometheus(folder: Path, metrics_port: int) -> Iterator[None]:
    """Prometheus with the rules of `meshkit dashboards`, or a word on how to get it."""
    if (found := shutil.which("prometheus")) is None:
        print(
            "Prometheus  is not installed: `apt install prometheus`, `brew install prometheus`, or "
            "https://prometheus.io/download/"
        )
        yield
        return
    files = [*MESHKIT, "dashboards", "--out", str(folder)]
    subprocess.run(files, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - meshkit
    port = free(9090)
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": "mesh", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}
        ],
    }
    # JSON is YAML.
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    command = [
        found,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with beside(folder, "prometheus", *command):
        print(f"Prometheus  http://127.0.0.1:{port}/alerts")
        yield


def free(port: int) -> int:
    """The port, or another one if it is taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for wanted in (port, 0):
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", wanted))
                break
        return sock.getsockname()[1]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"observe: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
