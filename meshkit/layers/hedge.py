"""Hedged calls: a second copy of what takes long, and the first answer counts.

Dean and Barroso, "The tail at scale", Communications of the ACM 56 (2013).
"""

import asyncio
import copy
import math
from collections import deque

from meshkit.budget import RetryBudget
from meshkit.headers import line
from meshkit.layers.retry import is_off
from meshkit.layers.statistics import CallStatistics
from meshkit.message import ATTEMPT, Handler, Layer, Request, Response

_ATTEMPT_LINE = f"\r\n{ATTEMPT}:".encode()
_SECOND = line(ATTEMPT, "2")
# Calls that the p95 is of, and after how many it is taken anew.
_SAMPLES, _EVERY = 200, 20
# Seconds. uvloop's clock has milliseconds, so what takes less may seem to take nothing.
_SHORTEST = 0.002


class _Latency:
    """How long the latest calls took; `p95` is what 95 % of them did not exceed, None while they are few."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_SAMPLES)
        self._new = 0
        self.p95: float | None = None

    def add(self, seconds: float) -> None:
        self._latest.append(seconds)
        self._new += 1
        if self._new == _EVERY:
            self._new = 0
            p95 = sorted(self._latest)[math.ceil(0.95 * len(self._latest)) - 1]
            self.p95 = max(p95, _SHORTEST)


class _Race:
    """A call of which there may be two copies.

    The first runs in the caller's own task, and a second that wins cancels it there, the way asyncio.timeout
    does: most calls need no second, and a task for the first would cost each of them more than all the rest.
    """

    __slots__ = ("_caller", "_cancelling", "_is_over", "_is_won", "_second", "_statistics")

    def __init__(self, caller: "asyncio.Task[object]", statistics: CallStatistics) -> None:
        self._caller = caller
        # Somebody may have cancelled it long ago, and it calls while it cleans up.
        self._cancelling = caller.cancelling()
        self._second: asyncio.Task[Response] | None = None
        self._is_won = False
        self._is_over = False
        self._statistics = statistics

    async def run(self, following: Handler, request: Request) -> Response:
        """Send the first copy, and give the first answer."""
        try:
            response = await following(request)
        except BaseException as error:
            is_won, second = self._end(), self._second
            if second is None or not (is_won or isinstance(error, Exception)):
                raise
            if not second.done():
                await asyncio.wait([second])
            if not _is_answered(second):
                raise
            self._statistics.hedges_won += 1
            return second.result()
        else:
            self._end()
            return response
        finally:
            if self._second is not None:
                self._second.cancel()

    def join(self, second: "asyncio.Task[Response]") -> None:
        """The second copy is on its way."""
        self._second = second
        self._statistics.hedges += 1
        second.add_done_callback(self._finish)

    def _finish(self, second: "asyncio.Task[Response]") -> None:
        # Who is being cancelled already must not take it for this.
        if _is_answered(second) and not self._is_over and self._caller.cancelling() == self._cancelling:
            self._is_won = True
            self._caller.cancel()

    def _end(self) -> bool:
        """The first copy is over; whether since the second has won, and nobody else stops the caller."""
        self._is_over = True
        return self._is_won and self._caller.uncancel() <= self._cancelling


def _is_answered(second: "asyncio.Task[Response]") -> bool:
    return not second.cancelled() and second.exception() is None


def hedge(after: float | None, *, budget: RetryBudget, statistics: CallStatistics) -> Layer:
    """The caller's side: send a second copy of an idempotent call that takes long.

    The first that succeeds is the answer, and the other is cancelled. If one fails, the other is waited for;
    if both do, the error is the first's.

    Args:
        after: Seconds until the second copy is sent; None for the time that 95 % of the latest 200 successful
            calls took, and for no second copies before there have been 20.
        budget: How many second copies the calls to the target may cause.
        statistics: Where they are counted.
    """
    loop = asyncio.get_running_loop()
    latency = _Latency()

    def layer(following: Handler) -> Handler:
        async def send(request: Request) -> Response:
            return await following(request)

        def send_second(race: _Race, request: Request, head: bytes, deadline: float) -> None:
            if is_off(head):
                return
            if not budget.withdraw(loop.time()):
                statistics.budget_spent += 1
                return
            second = copy.copy(request)
            # The layers below have changed the first one's.
            second.head = head if _ATTEMPT_LINE in head else head + _SECOND
            second.deadline = deadline
            race.join(loop.create_task(send(second)))

        async def compete(request: Request, delay: float) -> Response:
            caller = asyncio.current_task()
            assert caller is not None
            race = _Race(caller, statistics)
            timer = loop.call_later(delay, send_second, race, request, request.head, request.deadline)
            try:
                return await race.run(following, request)
            finally:
                timer.cancel()

        async def handle(request: Request) -> Response:
            delay = latency.p95 if after is None else after
            began = loop.time()
            response = await (following(request) if delay is None else compete(request, delay))
            latency.add(loop.time() - began)
            return response

        return handle

    return layer
