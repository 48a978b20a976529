"""Bounded concurrency: so many requests run, so many wait their turn, and the rest is refused at once."""

import asyncio
from collections import OrderedDict

from meshkit.errors import Overloaded
from meshkit.message import Handler, Request, Response


class Concurrency:
    """A bound shared by all stacks that hold it.

    Args:
        limit: How many requests run at a time.
        backlog: How many wait, first come, first served.
        what: What is bounded, for the error's text.
    """

    __slots__ = ("_waiting", "backlog", "limit", "running", "what")

    def __init__(self, limit: int, backlog: int, what: str) -> None:
        self.limit = limit
        self.backlog = backlog
        self.what = what
        self.running = 0
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def layer(self, following: Handler) -> Handler:
        """Run `following` within the bound.

        Raises:
            Overloaded: All slots and the backlog are taken.
        """

        async def handle(request: Request) -> Response:
            if self.running < self.limit:
                self.running += 1
            else:
                await self._wait()
            try:
                return await following(request)
            finally:
                self._leave()

        return handle

    async def _wait(self) -> None:
        if len(self._waiting) >= self.backlog:
            raise Overloaded(
                f"{self.what} runs {self.limit} requests and {self.backlog} wait; try again or add instances"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.pop(turn, None)
            else:
                # The turn came at the same moment; somebody else can have it.
                self._leave()
            raise

    def _leave(self) -> None:
        # Whoever waits takes over the slot, so that nobody overtakes.
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
