"""Bounded concurrency: so many requests run, so many wait their turn, and the rest is refused at once."""

import asyncio
import math
from collections import OrderedDict
from time import perf_counter
from typing import TypeAlias

from meshkit.deadlines import Deadlines
from meshkit.errors import DeadlineExceeded, MeshError, Overloaded
from meshkit.layers.adaptive import Gradient
from meshkit.message import PRIORITIES, Handler, Request, Response

# Who waits, and until when.
_Queue: TypeAlias = OrderedDict["asyncio.Future[None]", float]
_USUAL = PRIORITIES.index("default")


class Concurrency:
    """A bound shared by all stacks that hold it, on either side.

    Who waits is served by priority, and in order of arrival within one. In a full queue, what has expired
    gives way first, then the newest of the least important, if the newcomer is more important than that.
    Events, which have no deadline yet, keep their order.

    Args:
        limit: How many requests run at a time.
        backlog: How many wait.
        what: What is bounded, for the error's text.
        adaptive: Whether how many run follows what the latency says of it, up to `limit`.

    Attributes:
        limit: How many run at a time, as of now.
        running: How many run.
        waiting: How many wait.
        refused: How many were refused so far, or gave way.
    """

    __slots__ = (
        *("_deadlines", "_earliest", "_gradient", "_loop", "_queues"),
        *("backlog", "limit", "refused", "running", "waiting", "what"),
    )

    def __init__(self, limit: int, backlog: int, what: str, *, adaptive: bool = False) -> None:
        self._gradient = Gradient(limit) if adaptive else None
        self.limit = limit if self._gradient is None else self._gradient.limit
        self.backlog = backlog
        self.what = what
        self.running = 0
        self.waiting = 0
        self.refused = 0
        self._loop = asyncio.get_running_loop()
        self._queues: list[_Queue] = [OrderedDict() for _ in PRIORITIES]
        self._deadlines = Deadlines(_expire)
        # Nothing that waits expires before that.
        self._earliest = math.inf

    def layer(self, following: Handler) -> Handler:
        """Run `following` within the bound.

        Raises:
            Overloaded: All slots and the backlog are taken.
            DeadlineExceeded: No slot was free until the deadline.
        """
        if self._gradient is not None:
            following = self._measured(following, self._gradient)

        async def handle(request: Request) -> Response:
            if self.running < self.limit:
                self.running += 1
            else:
                await self._wait(request)
            try:
                return await following(request)
            finally:
                self._leave()

        return handle

    def _measured(self, following: Handler, gradient: Gradient) -> Handler:
        async def handle(request: Request) -> Response:
            began, answered = self._loop.time(), False
            try:
                response = await following(request)
                answered = True
                return response
            finally:
                now = self._loop.time()
                gradient.add(now - began, now, running=self.running, answered=answered)
                self.limit = gradient.limit
                while self.running < self.limit and self._pass_on():
                    self.running += 1

        return handle

    async def _wait(self, request: Request) -> None:
        is_event = request.deadline == math.inf
        priority = _USUAL if is_event else request.priority
        if self.waiting >= self.backlog:
            self._make_room(priority)
        queue = self._queues[priority]
        turn: asyncio.Future[None] = self._loop.create_future()
        queue[turn] = request.deadline
        self.waiting += 1
        self._earliest = min(self._earliest, request.deadline)
        slot = {} if is_event else self._deadlines.add(turn, request.deadline)
        began = perf_counter()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                # The turn came at the same moment; somebody else can have it.
                self._leave()
            raise
        finally:
            request.queued += perf_counter() - began
            slot.pop(turn, None)
            if queue.pop(turn, None) is not None:
                self.waiting -= 1
            del turn  # an error in it and this frame would keep each other alive

    def _leave(self) -> None:
        # Whoever waits takes over the slot, so that nobody overtakes.
        if not (self.waiting and self.running <= self.limit and self._pass_on()):
            self.running -= 1

    def _pass_on(self) -> bool:
        """Let the next one run; False if nobody waits."""
        for queue in reversed(self._queues):
            while queue:
                turn, deadline = queue.popitem(last=False)
                self.waiting -= 1
                if turn.done():
                    continue
                if deadline > self._loop.time():
                    turn.set_result(None)
                    return True
                # Something has kept the event loop, and it has not been told yet.
                _expire(turn)
        return False

    def _make_room(self, priority: int) -> None:
        """Have something give way to a newcomer.

        Raises:
            Overloaded: All that waits is as important.
        """
        now = self._loop.time()
        if self._earliest <= now:
            waiting = [(queue, *entry) for queue in self._queues for entry in queue.items()]
            for queue, turn, deadline in waiting:
                if deadline <= now:
                    del queue[turn]
                    self.waiting -= 1
                    _expire(turn)
            self._earliest = min((deadline for *_, deadline in waiting if deadline > now), default=math.inf)
        if self.waiting < self.backlog:
            return
        self.refused += 1
        for queue in self._queues[:priority]:
            if queue:
                turn, _ = queue.popitem()
                self.waiting -= 1
                _fail(turn, self._refusal())
                return
        raise self._refusal()

    def _refusal(self) -> Overloaded:
        error = Overloaded(
            f"{self.what} runs {self.limit} requests and {self.backlog} wait; "
            "try again, add instances or raise the bound"
        )
        error.own = True  # as who calls sees it; on the way to somebody else that is lost, as it should be
        return error


def _expire(turn: "asyncio.Future[None]") -> None:
    error = DeadlineExceeded("the deadline passed before the call's turn came")
    error.executed = False
    _fail(turn, error)


def _fail(turn: "asyncio.Future[None]", error: MeshError) -> None:
    if not turn.done():
        turn.set_exception(error)
