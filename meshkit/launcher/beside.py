"""A task that accompanies a block."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import anyio


@contextlib.asynccontextmanager
async def beside(function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> AsyncGenerator[None]:
    """Run a function for as long as the block lasts; what the block raises is raised as it is, in no group.

    Args:
        function: Is cancelled at the end of the block.
        args: What it is called with.
    """
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(function, *args)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        first, *others = group.exceptions
        if others:
            raise
        raise first from None
