"""Hedged calls: a second copy of what takes long, and the first answer counts.

Dean and Barroso, "The tail at scale", Communications of the ACM 56 (2013).
"""

import asyncio
import copy
import math
from collections import deque

from meshkit.budget import RetryBudget
from meshkit.errors import MeshError, is_answer
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


class Latency:
    """How long the latest calls to a target took, from when they were sent.

    Attributes:
        p95: Seconds that 95 % of them did not exceed; None while they are few.
    """

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_SAMPLES)
        self._new = 0
        self.p95: float | None = None

    def add(self, seconds: float) -> None:
        """A call has been answered."""
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

    When it is over it knows of no task any more: it is in the frames of the error that ends one.
    """

    __slots__ = ("_caller", "_cancelling", "_is_won", "_second", "_statistics", "timer")

    def __init__(self, statistics: CallStatistics) -> None:
        caller = asyncio.current_task()
        assert caller is not None
        # None once the first copy is over.
        self._caller: asyncio.Task[object] | None = caller
        # Somebody may have cancelled it long ago, and it calls while it cleans up.
        self._cancelling = caller.cancelling()
        self._second: asyncio.Task[Response] | None = None
        self._is_won = False
        self._statistics = statistics
        self.timer: asyncio.TimerHandle | None = None

    async def run(self, following: Handler, request: Request) -> Response:
        """Send the first copy, and give the first answer."""
        try:
            try:
                response = await following(request)
            except BaseException as error:
                if not await self._is_lost(error, is_won=self._end()):
                    raise
            else:
                self._end()
                return response
            assert self._second is not None
            self._statistics.hedges_won += 1
            return self._second.result()
        finally:
            if self._second is not None:
                self._second.cancel()
                self._second = None

    async def _is_lost(self, error: BaseException, *, is_won: bool) -> bool:
        """The first copy has failed; whether the answer is that of the second, which is waited for."""
        second = self._second
        if second is None or not (is_won or (isinstance(error, Exception) and not is_answer(error))):
            return False
        if not second.done():
            await asyncio.wait([second])
        if _is_answered(second):
            return True
        if isinstance(error, MeshError) and error.executed is False and _may_be_executed(second):
            error.executed = None
        return False

    def join(self, second: "asyncio.Task[Response]") -> None:
        """The second copy is on its way."""
        self._second = second
        self._statistics.hedges += 1
        second.add_done_callback(self._finish)

    def _finish(self, second: "asyncio.Task[Response]") -> None:
        # Who is being cancelled already must not take it for this.
        is_answered, caller = _is_answered(second), self._caller
        if is_answered and caller is not None and caller.cancelling() == self._cancelling:
            self._is_won = True
            caller.cancel()

    def _end(self) -> bool:
        """The first copy is over; whether since the second has won, and nobody else stops the caller."""
        caller, self._caller = self._caller, None
        assert caller is not None
        return self._is_won and caller.uncancel() <= self._cancelling


def _is_answered(second: "asyncio.Task[Response]") -> bool:
    if second.cancelled():
        return False
    error = second.exception()
    return error is None or is_answer(error)


def _may_be_executed(second: "asyncio.Task[Response]") -> bool:
    error = None if second.cancelled() else second.exception()
    return not isinstance(error, MeshError) or error.executed is not False


def hedge(after: float | Latency, *, budget: RetryBudget, statistics: CallStatistics) -> Layer:
    """The caller's side: send a second copy of an idempotent call that takes long.

    The first answer counts, a success or what a handler answered with on purpose, such as 404; the other copy
    is cancelled. If one fails otherwise, the other is waited for; if both do, the error is the first's.

    Args:
        after: Seconds from when the first copy was sent until the second is; or how long calls to the target
            take, for the time that 95 % of the latest 200 successful ones took, and for no second copies
            before there have been 20.
        budget: How many second copies the calls to the target may cause.
        statistics: Where they are counted.
    """
    loop = asyncio.get_running_loop()

    def layer(following: Handler) -> Handler:
        async def send(request: Request) -> Response:
            return await following(request)

        def send_second(race: _Race, delay: float, request: Request, head: bytes, deadline: float) -> None:
            left = min(request.sent_at + delay - loop.time(), delay)
            if left > 0:
                # It waited here, for a slot or the connection, or does so still: a copy would only wait too.
                race.timer = loop.call_later(left, send_second, race, delay, request, head, deadline)
                return
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
            race = _Race(statistics)
            request.sent_at = math.inf  # it may be an attempt after the first
            race.timer = loop.call_later(
                delay, send_second, race, delay, request, request.head, request.deadline
            )
            try:
                return await race.run(following, request)
            finally:
                race.timer.cancel()
                race.timer = None

        async def handle(request: Request) -> Response:
            if not isinstance(after, Latency):
                return await compete(request, after)
            delay = after.p95
            response = await (following(request) if delay is None else compete(request, delay))
            after.add(loop.time() - request.sent_at)
            return response

        return handle

    return layer
