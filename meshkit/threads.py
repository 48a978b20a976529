"""Threads for functions that block: bounded, and none keeps the process from ending."""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class _Job(NamedTuple):
    work: Callable[[], Any]
    context: contextvars.Context
    done: "asyncio.Future[Any]"


class Threads:
    """So many threads at most, started as they are needed.

    Not anyio's threads: they forget one that was given up at its deadline, and stuck functions would pile up
    without bound. Nor those of `concurrent.futures`: they are waited for when the process ends.

    Args:
        limit: How many.
        name: What they are called.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._threads = 0
        self._busy = 0

    async def run(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call a function in a thread, with the context variables of the caller.

        A cancellation gives it up; the thread is free again when the function returns.
        """
        context = contextvars.copy_context()
        done: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(lambda: function(**arguments), context, done))
        self._busy += 1
        if self._busy > self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
        return await done

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            value, error = None, None
            if not job.done.cancelled():
                try:
                    value = job.context.run(job.work)
                except BaseException as raised:  # noqa: BLE001 # it is raised where the result is awaited
                    error = raised
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._settle, job.done, value, error)

    def _settle(self, done: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if done.done():
            return
        if isinstance(error, StopIteration):
            # A future cannot hold it, and whoever awaits would wait for ever.
            failure = RuntimeError("the function raised StopIteration")
            failure.__cause__ = error
            error = failure
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)
