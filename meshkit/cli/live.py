"""What is shown again and again: on a terminal in place, in a pipe one below the other."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.segment import SegmentLines
from rich.text import Text

from meshkit.cli.exits import ExitCode
from meshkit.cli.figures import NumberRange
from meshkit.cli.keyboard import keyboard
from meshkit.cli.output import clean, console
from meshkit.errors import MeshError

watch_option = click.option("--watch", is_flag=True, help="Go on looking.")
pause_option = click.option(
    "--interval",
    metavar="SECONDS",
    type=NumberRange(0.5, 3600),
    default=2.0,
    show_default=True,
    help="With --watch: how long from one look to the next.",
)


class Notes(logging.Handler):
    """Keeps the last warning: on standard error it would land in the middle of the screen."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.last = record.getMessage()


async def plain(look: Callable[[], Awaitable[bool]], interval: float) -> None:
    """Look until that was the last time; what goes wrong after the first look is told on standard error.

    Args:
        look: Prints what there is to see; true if nothing else will come.
        interval: Seconds from one look to the next.

    Raises:
        MeshError: The first look failed.
    """
    if not await look():
        await _again(look, interval, lambda text: click.echo(f"meshkit: {clean(text)}", err=True))


async def _again(
    look: Callable[[], Awaitable[bool]], interval: float, trouble: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due = max(loop.time(), due + interval)
        await asyncio.sleep(due - loop.time())
        try:
            if await look():
                return
        except MeshError as error:
            trouble(error.message)


async def live(
    look: Callable[[], Awaitable[tuple[RenderableType, bool]]], interval: float, *, full: bool
) -> int:
    """Show on the terminal what is seen, until that was the last time, or somebody has seen enough.

    Args:
        look: What there is to show now, and whether nothing else will come.
        interval: Seconds from one look to the next.
        full: Whether it takes the whole screen, and is gone afterwards.

    Returns:
        The exit code.

    Raises:
        MeshError: The first look failed.
    """
    happened: asyncio.Queue[Any] = asyncio.Queue()
    notes = Notes(logging.WARNING)
    shown, is_over = await look()
    if is_over:
        console.print(shown)
        return ExitCode.OK
    trouble = ""

    def tell(text: str) -> None:
        nonlocal trouble
        trouble = text
        happened.put_nowait(None)

    async def look_again() -> bool:
        nonlocal shown, is_over
        notes.last = ""
        shown, is_over = await look()
        tell("")
        return is_over

    def drawn(keys: str) -> Group:
        return _fitting(shown, trouble or notes.last, "" if is_over else keys)

    logging.getLogger().addHandler(notes)
    task = asyncio.create_task(_again(look_again, interval, tell))
    task.add_done_callback(happened.put_nowait)
    try:
        return await _show(drawn, happened, task, full=full)
    finally:
        task.cancel()
        logging.getLogger().removeHandler(notes)


async def _show(
    drawn: Callable[[str], Group], happened: asyncio.Queue[Any], task: asyncio.Task[None], *, full: bool
) -> int:
    """Show what is drawn until the task ends, or somebody has seen enough; the exit code."""
    # Without standard input, as in `<&-`, there is no object for it.
    has_keys = sys.stdin is not None and sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]
    keys = keyboard(happened.put_nowait, happened.put_nowait) if has_keys else contextlib.nullcontext()
    with keys, Live(console=console, screen=full, auto_refresh=False) as screen:
        while True:
            screen.update(drawn("q quit" if has_keys else ""), refresh=True)
            what = await happened.get()
            if what is task:
                task.result()
                return ExitCode.OK
            if what in {"q", signal.SIGINT}:
                return ExitCode.OK
            if isinstance(what, signal.Signals) and what is not signal.SIGWINCH:
                return ExitCode.SIGNAL + what


def _fitting(shown: RenderableType, trouble: str, keys: str) -> Group:
    """What is shown, as much of it as there is room for."""
    below = [
        Text(clean(text), style, no_wrap=True, overflow="ellipsis")
        for text, style in ((trouble, "red"), (keys, "dim"))
        if text
    ]
    lines = console.render_lines(shown, pad=False)
    room = max(1, console.height - len(below) - 2)
    if len(lines) > room:
        below.insert(0, Text(f"… {len(lines) - room + 1} more lines", "dim"))
        lines = lines[: room - 1]
    return Group(SegmentLines(lines, new_lines=True), *below)
