"""How long starting takes: `python -m benchmarks.start`. Exits with 1 if a bound is exceeded.

Medians of separate processes, the import beside that of a bare interpreter and of nats-py.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from meshkit import Service, connect
from meshkit.transport.server import EmbeddedServer

ROUNDS = 15
# Milliseconds.
IMPORT_BOUND = 150
SERVER_BOUND = 500


def milliseconds(work: Callable[[], object]) -> float:
    """Milliseconds that something takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def process(code: str, bytecode: str) -> float:
    """Milliseconds that an interpreter takes for some code, with compiled modules in a folder of ours."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    return milliseconds(lambda: subprocess.run(command, check=True, env=environment))  # noqa: S603 # ours


def imports() -> float:
    """Print what imports take; gives what `import meshkit` adds to a bare interpreter."""
    codes = {"a bare interpreter": "pass", "import nats": "import nats", "import meshkit": "import meshkit"}
    taken: dict[str, list[float]] = {what: [] for what in codes}
    with tempfile.TemporaryDirectory() as bytecode:
        for code in codes.values():
            process(code, bytecode)
        for _ in range(ROUNDS):
            for what, code in codes.items():
                taken[what].append(process(code, bytecode))
    for what, values in taken.items():
        print(f"{what:<44}{statistics.median(values):7.1f} ms")
    added = statistics.median(taken["import meshkit"]) - statistics.median(taken["a bare interpreter"])
    print(f"{'  import meshkit adds':<44}{added:7.1f} ms  (bound {IMPORT_BOUND})")
    return added


def server() -> float:
    """Print what the embedded server takes until clients can connect."""
    taken: list[float] = []
    for _ in range(ROUNDS):
        one = EmbeddedServer()
        taken.append(milliseconds(one.start))
        one.stop()
    ready = statistics.median(taken)
    print(f"{'embedded nats-server, until it is ready':<44}{ready:7.1f} ms  (bound {SERVER_BOUND})")
    return ready


async def first_call() -> None:
    """Print what connecting, serving and the first call take."""
    service = Service("start")

    @service.endpoint()
    async def hello() -> str:
        return "hello"

    taken: dict[str, list[float]] = {"connect": [], "serve": [], "first call": []}
    with EmbeddedServer() as running:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            async with connect(running.url) as mesh:
                connected = time.perf_counter()
                async with mesh.serve(service):
                    served = time.perf_counter()
                    await mesh.call(hello)
                    called = time.perf_counter()
            for what, seconds in zip(
                taken, (connected - started, served - connected, called - served), strict=True
            ):
                taken[what].append(seconds * 1000)
    for what, values in taken.items():
        print(f"{what:<44}{statistics.median(values):7.1f} ms")


def main() -> None:
    """Measure and judge."""
    added, ready = imports(), server()
    asyncio.run(first_call())
    if added > IMPORT_BOUND or ready > SERVER_BOUND:
        sys.exit("a bound is exceeded")


if __name__ == "__main__":
    main()
