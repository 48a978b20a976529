"""A process of the launcher's, as the launcher sees it."""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from meshkit.launcher.messages import Event, Job

_EVENT = msgspec.json.Decoder[Event](Event)


class Process:
    """A running process. Made by `start`."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def event(self) -> Event | None:
        """What it tells next; None when it has ended."""
        try:
            return _EVENT.decode(await self._lines.receive_until(b"\n", sys.maxsize))
        except anyio.IncompleteRead:
            return None

    async def wait(self) -> str:
        """How it ended, in a few words."""
        code = await self._process.wait()
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return f"crashed (exit code {code})" if code else "ended"

    def stop(self) -> None:
        """Tell it to end: at once while it starts, when everything is answered while it serves."""
        # Not its own `terminate()`: that looks first whether the process has ended, and if so takes its exit
        # code away from asyncio, which then reports 255.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and the processes that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):  # likewise
            os.killpg(self._process.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def start(module: str, job: Job) -> AsyncGenerator[Process]:
    """Start a Python module as a process and give it its job; it is killed if it outlives the block.

    It gets a session of its own: a Ctrl-C on the terminal reaches the launcher alone.

    Args:
        module: The module's name.
        job: What it has to do.
    """
    # -P: a file in the current folder that is named like a module of Python's must not take its place.
    command = [sys.executable, "-P", "-m", module, job.worker or job.source.module]
    env = {**job.source.table.env, **os.environ, "NATS_URL": job.url}
    async with await anyio.open_process(command, stderr=None, env=env, start_new_session=True) as process:
        assert process.stdin is not None
        running = Process(process)
        try:
            with contextlib.suppress(anyio.BrokenResourceError):  # it ended already: waiting for it says how
                await process.stdin.send(msgspec.json.encode(job) + b"\n")
            yield running
        finally:
            if process.returncode is None:
                running.kill()
