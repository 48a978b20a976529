"""A bound on retries and hedges, so that they cannot bring down what is failing already."""

from meshkit.window import SLICES, Window

# How far back calls and retries count.
SECONDS = 10.0


class RetryBudget:
    """How many retries and hedges the calls of a target may cause.

    In any ten seconds that end with one of them they are at most `share` of the calls made in these ten
    seconds, and `reserve` a second. That is Finagle's RetryBudget (finagle-core, RetryBudget.scala) and
    tower's TpsBudget, counted instead of kept as tokens that expire.

    Args:
        share: Of calls.
        reserve: How many a second there may be in any case, so that who calls rarely can try again at all.

    Attributes:
        is_spent: Whether the budget refused, from then until it allows again or the next second begins with a
            call.
    """

    __slots__ = ("_reserve", "_share", "_window", "is_spent")

    def __init__(self, share: float, reserve: float) -> None:
        self._share = share
        self._reserve = reserve * SECONDS
        self._window = Window(SECONDS)  # calls, and retries
        self.is_spent = False

    def deposit(self, now: float) -> None:
        """A call is made."""
        window = self._window
        if now >= window.ends:
            window.turn(now)
            self.is_spent = False
        window.first += 1

    def withdraw(self, now: float) -> bool:
        """A retry or a hedge is about to be made; False if it must not."""
        calls, _ = self._window.totals(now)
        # Of the slice that has partly left: calls don't count any more, retries still do.
        _, retries = self._window.totals(now, SLICES + 1)
        self.is_spent = retries + 1 > self._share * calls + self._reserve
        if not self.is_spent:
            self._window.second += 1
        return not self.is_spent
