"""Which event loop a process runs on: uvloop where it is installed, else asyncio's own."""

import importlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal, get_args

import anyio

from meshkit.errors import ConfigError

LoopName = Literal["auto", "asyncio", "uvloop"]
Loop = Literal["asyncio", "uvloop"]
NAMES: tuple[LoopName, ...] = get_args(LoopName)


def chosen(name: LoopName) -> Loop:
    """The loop that a name stands for.

    Args:
        name: `auto` is uvloop if it can be imported.

    Raises:
        ConfigError: It is `uvloop`, and that cannot be imported.
    """
    if name == "asyncio":
        return "asyncio"
    try:
        importlib.import_module("uvloop")  # to look for it is not enough: it may be built for another Python
    except ImportError as error:
        if name == "auto":
            return "asyncio"
        raise ConfigError(
            f"uvloop cannot be imported in {sys.prefix} ({error}): pip install 'meshkit[uvloop]'"
        ) from None
    return "uvloop"


def run(function: Callable[..., Awaitable[Any]], *args: Any, loop: LoopName = "auto") -> None:
    """Run an async function to its end.

    Args:
        function: What to run.
        args: What it is called with.
        loop: What to run it on.

    Raises:
        ConfigError: The loop cannot be imported.
    """
    anyio.run(function, *args, backend_options={"use_uvloop": chosen(loop) == "uvloop"})
