"""Options that are a number, or text with a unit; each function is an option's `type`."""

import contextlib
from collections.abc import Callable

import click

from meshkit import knobs


def duration(text: str) -> float:
    """Seconds."""
    return _number(text, knobs.seconds, "seconds above 0, or text such as 250ms, is wanted.")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, knobs.share, "a number from 0 to 1, or text such as 10%, is wanted.")


def _number(text: str, check: Callable[[float | str], float], wanted: str) -> float:
    given: float | str = text
    with contextlib.suppress(ValueError):
        given = float(text)
    try:
        return check(given)
    except ValueError:
        raise click.BadParameter(wanted) from None
