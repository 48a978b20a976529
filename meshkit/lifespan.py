"""The surroundings of a running instance, entered and left in one task of their own.

An async generator may hold a task group or a cancel scope, which must be left in the task and in the order
that they were entered, whatever happens to the task that serves.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any


class Lifespan:
    """A context manager whose block is the time between `enter` and `leave`.

    Args:
        surroundings: What is entered.
    """

    def __init__(self, surroundings: AbstractAsyncContextManager[Any]) -> None:
        self._surroundings = surroundings
        self._leave = asyncio.Event()
        self._entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._host: asyncio.Task[Any] | None = None

    async def enter(self) -> Any:
        """Enter it, and give its value.

        If it fails before `leave`, the task that called this is cancelled, and `leave` raises the error.
        """
        self._host = asyncio.current_task()
        self._task = asyncio.create_task(self._live())
        await asyncio.wait({self._task, self._entered}, return_when=asyncio.FIRST_COMPLETED)
        if not self._entered.done():
            task, self._task = self._task, None
            await task
            raise RuntimeError("the lifespan ended without a yield")
        self._task.add_done_callback(self._ended)
        return self._entered.result()

    async def leave(self) -> None:
        """Leave it; raises what it raised."""
        self._leave.set()
        if self._task is None:
            return
        if not self._entered.done():
            self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def _live(self) -> None:
        async with self._surroundings as value:
            self._entered.set_result(value)
            await self._leave.wait()

    def _ended(self, _task: "asyncio.Task[None]") -> None:
        if not self._leave.is_set() and self._host is not None:
            self._host.cancel("the service's lifespan has ended")
