"""Single keys from the terminal, and the terminal as it was when they are not read any more."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Generator

from meshkit.cli.output import discard

# A key that sends several bytes, in either of a terminal's modes; the escape key; a letter.
_KEYS = re.compile(rb"\x1b[\[O]([A-Z]|[0-9;]+[A-Z~])|(\x1b)|([^\x1b])")
_ARROWS = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
_NAMED = {"\r": "enter", "\n": "enter", "\x7f": "back", "\x08": "back", "\x1b": "back"}
# Seconds that the rest of a key's bytes may take to come after its escape.
_REST = 0.05


@contextlib.contextmanager
def keyboard(on_key: Callable[[str], None], on_signal: Callable[[signal.Signals], None]) -> Generator[None]:
    """Read keys from standard input, a terminal, as they are pressed, and do not show them.

    Args:
        on_key: Called with each: a character, or `up`, `down`, `left`, `right`, `enter`, `back`.
        on_signal: Called with Ctrl-C, with what else would end the process without a word, and when the
            terminal has another size.
    """
    loop = asyncio.get_running_loop()
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    reader = _Reader(terminal, on_key, lambda: on_signal(signal.SIGHUP))
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    tty.setcbreak(terminal)
    _keep_going(terminal)
    loop.add_reader(terminal, reader.read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        for number in signals:
            loop.remove_signal_handler(number)
        with contextlib.suppress(termios.error):  # it may have been closed
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def _keep_going(terminal: int) -> None:
    """Have Ctrl-Z and Ctrl-\\ do nothing: they would leave the terminal as it is now."""  # noqa: D301
    attributes = termios.tcgetattr(terminal)
    nothing = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
    for key in (termios.VSUSP, termios.VQUIT):
        attributes[6][key] = nothing
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


class _Reader:
    """Turns bytes into keys."""

    def __init__(self, terminal: int, on_key: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._terminal = terminal
        self._on_key = on_key
        self._on_end = on_end
        self._begun = b""

    def read(self) -> None:
        try:
            read = os.read(self._terminal, 1024)
        except OSError:  # Linux's way to say that the other end is closed
            read = b""
        if not read:
            asyncio.get_running_loop().remove_reader(self._terminal)
            discard()
            self._on_end()
            return
        self._begun += read
        if self._begun.endswith((b"\x1b", b"\x1b[", b"\x1bO")):
            asyncio.get_running_loop().call_later(_REST, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        read, self._begun = self._begun, b""
        for sequence, escape, letter in _KEYS.findall(read):
            if sequence in _ARROWS:
                self._on_key(_ARROWS[sequence])
            elif escape or letter:
                key: str = (escape or letter).decode("latin-1")
                self._on_key(_NAMED.get(key, key))
