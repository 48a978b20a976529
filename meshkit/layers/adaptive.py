"""How many requests may run at a time, by what latency says of it.

After Gradient2 of Netflix (https://github.com/Netflix/concurrency-limits) and Envoy's adaptive concurrency
(https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter):
the limit grows by its square root, and shrinks by the factor by which requests take longer than they usually
do. What is usual is a long-term mean, and measured anew from time to time with half as many running: the mean
alone would get used to an overload that lasts. Envoy lets three run meanwhile, and refuses nearly all others.
"""

import asyncio
import math

# At the least, which is also where the root makes up for the most that the limit shrinks at once.
_LEAST = 4
_FIRST = 20
# Seconds, and requests, after which the limit is thought over.
_WINDOW = 0.1
_ENOUGH = 10
# So much longer than usual is nothing: Envoy's buffer.
_TOLERANCE = 1.25
# Of a window in the long-term mean: Gradient2's.
_WEIGHT = 1 / 600
# After so many windows come those with half as many running. It is in the third of them that every request
# has begun after that.
_DIP_AFTER = 50
_DIP = 3


class Gradient:
    """The limit of a service, from the latency of what it has done.

    Args:
        most: What the limit never exceeds.

    Attributes:
        limit: How many may run at a time.
    """

    __slots__ = (
        "_begin",
        "_count",
        "_least",
        "_most",
        "_peak",
        "_settled",
        "_sum",
        "_usual",
        "_windows",
        "limit",
    )

    def __init__(self, most: int) -> None:
        self._most = most
        self._least = min(_LEAST, most)
        self._settled = float(min(_FIRST, most))  # as it is between the dips, and not rounded
        self.limit = int(self._settled)
        self._usual = 0.0
        # Of the requests that begin first, together, the quick ones end first: a window that does not count.
        self._windows = -1
        self._begin = asyncio.get_running_loop().time()
        self._sum = 0.0
        self._count = self._peak = 0

    def add(self, latency: float, now: float, *, running: int, answered: bool) -> None:
        """Take into account what a request took.

        Args:
            latency: In seconds.
            now: On the event loop's clock.
            running: How many ran, this one included.
            answered: Whether it succeeded. What failed says how long it takes only if it took long.
        """
        if not answered and latency < self._usual:
            return
        self._sum += latency
        self._count += 1
        self._peak = max(self._peak, running)
        if now - self._begin >= _WINDOW and self._count >= max(_ENOUGH, self.limit):
            self._adapt(max(self._sum / self._count, 1e-6))  # uvloop's clock has milliseconds only
            self._begin = now
            self._sum = 0.0
            self._count = self._peak = 0

    def _adapt(self, latency: float) -> None:
        if self._windows < 0:
            self._windows = 0
            return
        self._usual += (latency - self._usual) * (_WEIGHT if self._usual else 1)
        if self._usual > 2 * latency:
            self._usual *= 0.95  # it is over, whatever it was
        if self._peak < self.limit / 2:
            return  # latency says nothing of a limit that is not used
        self._windows += 1
        if self._windows == _DIP_AFTER + _DIP:
            self._windows = 0
        if self._windows == 0 or self.limit == self._least:
            self._usual = latency
        if self._windows < _DIP_AFTER:
            gradient = max(0.5, min(1.0, _TOLERANCE * self._usual / latency))
            grown = self._settled * gradient + math.sqrt(self._settled)
            self._settled = max(self._least, min(grown, self._most))
            self.limit = int(self._settled)
        else:
            self.limit = max(self._least, int(self._settled / 2))
