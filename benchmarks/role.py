"""What runs in a process of its own: `python -m benchmarks.role MODULE ROLE LOOP SETTINGS`.

It says "ready", then carries out commands, a JSON line each, until its standard input ends. The role is
that of the module's name, an async context manager that gives its commands; `call` of a module that has only
a `client` is the loads on it. It needs msgspec and the module's own imports, and nothing of meshkit.
"""

import asyncio
import importlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import ModuleType
from typing import Any, TextIO

Commands = dict[str, Callable[..., Any]]


@asynccontextmanager
async def call(module: ModuleType, settings: dict[str, Any]) -> AsyncIterator[Commands]:
    """Put load on what the module's client calls."""
    from benchmarks.work import loads  # a service would pay for it in memory

    async with module.client(**settings) as one_call:
        yield loads(one_call)


def enter(module: ModuleType, role: str, settings: dict[str, Any]) -> AbstractAsyncContextManager[Commands]:
    """The role of the module."""
    if hasattr(module, role):
        return getattr(module, role)(**settings)
    assert role == "call", f"{module.__name__} has no role {role}"
    return call(module, settings)


async def play(role: AbstractAsyncContextManager[Commands], tell: Callable[[Any], None]) -> None:
    """Do as told."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    async with role as commands:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        tell("ready")
        async for line in reader:
            order = json.loads(line)
            try:
                told = {"result": await commands[order["command"]](**order["arguments"])}
            except Exception:  # noqa: BLE001 # whoever gave the order shows it
                told = {"error": traceback.format_exc()}
            tell(told)


def speaker(stream: TextIO) -> Callable[[Any], None]:
    """What writes JSON lines to a stream."""
    return lambda value: print(json.dumps(value), file=stream, flush=True)


def main() -> None:
    """Run a role to the end of standard input."""
    name, role, loop, settings = sys.argv[1:]
    # What libraries print goes to standard error, out of the way of the answers.
    tell = speaker(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    factory = None
    if loop == "uvloop":
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(play(enter(importlib.import_module(name), role, json.loads(settings)), tell))


if __name__ == "__main__":
    main()
