"""Health: what an instance answers on `_MESH.health`, meshkit's own addition to the services protocol."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

# Leaves time for the way back within the 300 ms that whoever gathers answers waits for the next one.
CHECK_SECONDS = 0.25

Check = Callable[[], Awaitable[None]]
"""Returns if what it looks at is well, and raises if not."""


class HealthResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `_MESH.health`.

    Attributes:
        service: The service's name.
        id: The instance's id.
        version: The service's version.
        healthy: Whether every check is "ok".
        checks: For each check "ok", or what is wrong.
    """

    service: str
    id: str
    version: str
    healthy: bool
    checks: dict[str, str] = {}


def health_subject(name: str = "", instance: str = "") -> str:
    """Where all services, the instances of one, or one instance answer about their health."""
    return ".".join(filter(None, ("_MESH.health", name, instance)))


async def run_checks(checks: Mapping[str, Check]) -> dict[str, str]:
    """Run the checks side by side, for at most a quarter of a second.

    Returns:
        For each check "ok", the error that it raised, or that it did not answer.
    """
    tasks = {name: asyncio.create_task(_run(check)) for name, check in checks.items()}
    try:
        if tasks:
            await asyncio.wait(tasks.values(), timeout=CHECK_SECONDS)
        return {name: _outcome(task) for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()  # not waited for: a check that ignores it must not keep the answer back


async def _run(check: Check) -> None:
    await check()


def _outcome(task: asyncio.Task[None]) -> str:
    if not task.done():
        return f"no answer in {CHECK_SECONDS} s"
    if task.cancelled():
        return "CancelledError"
    error = task.exception()
    return "ok" if error is None else f"{type(error).__name__}: {error}"
