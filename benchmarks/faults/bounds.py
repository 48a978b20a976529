"""What must hold in a drill, and whether it does."""

from typing import NamedTuple

from benchmarks.report import shown


class Bound(NamedTuple):
    """One of them.

    Attributes:
        what: What is looked at.
        reached: What it came to; None if it did not happen.
        limit: What it must be.
        is_kept: Whether it is.
    """

    what: str
    reached: float | None
    limit: str
    is_kept: bool


def at_most(what: str, reached: float | None, most: float) -> Bound:
    """It must not be more."""
    return Bound(what, reached, f"at most {shown(most)}", reached is not None and reached <= most)


def at_least(what: str, reached: float | None, least: float) -> Bound:
    """It must not be less."""
    return Bound(what, reached, f"at least {shown(least)}", reached is not None and reached >= least)


def none(what: str, reached: int) -> Bound:
    """There must be none."""
    return Bound(what, reached, "0", reached == 0)
