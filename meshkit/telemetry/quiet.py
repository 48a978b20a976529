"""What OpenTelemetry logs is logged once a minute: a receiver that is away would be two lines a second."""

import logging

from meshkit.errors import shortened

# Seconds between two lines of a logger at a level.
_QUIET = 60.0
_LONGEST = 300


class _Seldom(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.next: dict[tuple[str, int], float] = {}
        self.said: dict[str, tuple[float, str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is time for one."""
        self.said[record.name] = (record.created, record.getMessage())
        kind = record.name, record.levelno
        if record.created < self.next.get(kind, 0.0):
            return False
        self.next[kind] = record.created + _QUIET
        return True


_seldom = _Seldom()


def quieten(*loggers: str) -> None:
    """Let a line a minute of each level through.

    Args:
        loggers: Their names.
    """
    for name in loggers:
        logging.getLogger(name).addFilter(_seldom)


def reason(logger: str, since: float) -> str:
    """What a logger that was quietened said last, to stand behind what came of it; empty if nothing.

    Args:
        logger: Its name.
        since: What is older is of no interest; seconds since 1970.
    """
    when, text = _seldom.said.get(logger, (0.0, ""))
    return f": {shortened(text, _LONGEST)}" if when >= since else ""
