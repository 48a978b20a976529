"""How long `meshkit metrics` takes: `python -m benchmarks.gather`. Exits with 1 if a scrape takes a second.

50 services of 4 instances, each with a connection of its own, in four processes; every instance has three
endpoints that have answered and failed, and has called another service. All of it shares this machine.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import command
from benchmarks.stage import Process, nats_server
from meshkit import Context, MeshError, NotFound, Service, connect

SERVICES, INSTANCES = 50, 4
MOST = 1.0  # seconds
SCRAPES = 10


def declared(number: int) -> Service:
    """One of the services."""
    service = Service(f"service-{number}")

    @service.endpoint()
    async def fine() -> int:
        return number

    @service.endpoint()
    async def wrong() -> None:
        raise NotFound

    @service.endpoint()
    async def calls_another(ctx: Context) -> int:
        return await ctx.mesh.call(f"service-{(number + 1) % SERVICES}.fine", returns=int)

    return service


@asynccontextmanager
async def serve(url: str) -> AsyncGenerator[dict[str, Any]]:
    """One instance of every service."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(SERVICES):
            mesh = await stack.enter_async_context(connect(url, timeout=30))
            await stack.enter_async_context(mesh.serve(declared(number)))

        async def use() -> None:
            async with connect(url) as mesh:
                for number in range(SERVICES):
                    for endpoint in ("fine", "wrong", "calls_another") * INSTANCES:
                        with contextlib.suppress(MeshError):
                            await mesh.call(f"service-{number}.{endpoint}", timeout=30)

        yield {"use": use}


@contextlib.contextmanager
def metrics(url: str) -> Iterator[str]:
    """`meshkit metrics`; gives the page's URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [sys.executable, "-m", "meshkit", "metrics", "--port", str(port), "--nats", url]
    with subprocess.Popen(started, stdout=subprocess.PIPE) as process:  # noqa: S603 # ours
        assert process.stdout is not None
        process.stdout.readline()  # it says where it is
        try:
            yield f"http://127.0.0.1:{port}/metrics"
        finally:
            process.terminate()


def scrape(url: str) -> tuple[float, str]:
    """The seconds that it takes, and the page."""
    started = time.perf_counter()
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 # ours
        page = answer.read().decode()
    return time.perf_counter() - started, page


def main() -> None:
    """Run it."""
    argparse.ArgumentParser(prog="python -m benchmarks.gather", description=__doc__).parse_args()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nats_server())
        for _ in range(INSTANCES):
            process = Process("benchmarks.gather", "serve", loop="uvloop", url=server.url)
            stack.enter_context(process).ask("use")
        url = stack.enter_context(metrics(server.url))
        seconds, pages = zip(*(scrape(url) for _ in range(SCRAPES)), strict=True)
    there = f"meshkit_gather_instances {SERVICES * INSTANCES}"
    if missing := [page for page in pages if there not in page]:
        sys.exit(f"{len(missing)} of {SCRAPES} pages lack instances")
    series = sum(not line.startswith("#") for line in pages[-1].splitlines())
    print(f"{SERVICES * INSTANCES} instances, {series:,} series, {len(pages[-1]) / 2**20:.1f} MiB")
    median = statistics.median(seconds)
    print(f"a scrape takes {median:.2f} s, {max(seconds):.2f} s at most (at most {MOST:g} s wanted)")
    if median > MOST:
        sys.exit("too slow")


if __name__ == "__main__":
    command.run(main)
