"""What several test modules need."""

import asyncio

from meshkit import Context, Service


async def until(condition, seconds=5.0):
    """Wait for something real: a process, a server, a message on its way."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def until_by(clock, condition, seconds=5.0):
    """The same where a test's clock stands still: it moves on by a hundredth of a second at a time."""
    for _ in range(round(seconds * 100)):
        if condition():
            return
        await clock.advance(0.01)
    raise TimeoutError


def gated(name="gated", **options):
    """A service whose handler waits for `gate`; `running` counts those that do."""
    service = Service(name, **options)
    service.gate = asyncio.Event()
    service.running = 0

    @service.endpoint()
    async def wait(ctx: Context) -> str:
        service.running += 1
        try:
            await service.gate.wait()
        finally:
            service.running -= 1
        return "done"

    return service


async def fetch(port, path="/metrics", method="GET"):
    """What an HTTP port answers: status, headers with their names in small letters, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body.decode()


def values(page):
    """The values of a page for Prometheus: `{'name{label="value"}': 1.0}`."""
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
