"""Two counts of the last seconds, for next to nothing an event."""

from collections import deque

# Of a window: what is older leaves it a tenth at a time.
SLICES = 10


class Window:
    """How many of two kinds of things happened in the last `seconds`.

    Who counts does so in place, as the call of a method would take longer than the rest:

        if now >= window.ends:
            window.turn(now)
        window.first += 1

    Both counts only grow, and what they were when a slice of the window began is kept: what happened since is
    a difference, and nothing is ever summed up.

    Args:
        seconds: How far back things count.

    Attributes:
        first: How many things of the first kind there have ever been.
        second: How many of the second kind.
        ends: When the slice ends that is being counted in, on the clock that `now` is of.
    """

    __slots__ = ("_begun", "_number", "_seconds", "ends", "first", "second")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds / SLICES
        self._number = 0
        self.first = 0
        self.second = 0
        self.ends = float("-inf")
        # Both counts at the beginning of a slice: the one being counted in is the last, and one is to spare.
        self._begun = deque([(0, 0)] * (SLICES + 1), maxlen=SLICES + 1)

    def turn(self, now: float) -> None:
        """Begin the slice that `now` is in; what is counted from here on belongs to it."""
        number = int(now // self._seconds)
        self._begun.extend([(self.first, self.second)] * min(number - self._number, SLICES + 1))
        self._number = number
        self.ends = (number + 1) * self._seconds

    def totals(self, now: float, slices: int = SLICES) -> tuple[int, int]:
        """How many there were of each kind.

        Args:
            now: The time.
            slices: In how many slices, with the one that `now` is in: together they are at most `seconds`
                long. With one more they are at least that.
        """
        if now >= self.ends:
            self.turn(now)
        first, second = self._begun[-slices]
        return self.first - first, self.second - second
