"""A circuit breaker: what fails is not called for a while, and then by one call at first."""

import asyncio
import logging
import random

from pybreaker import (
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreaker,
    CircuitBreakerListener,
    CircuitBreakerState,
)

from meshkit.errors import (
    BadReply,
    CircuitOpen,
    DeadlineExceeded,
    ServiceError,
    Unavailable,
    is_answer,
    shortened,
)
from meshkit.layers.statistics import CallStatistics
from meshkit.message import Handler, Request, Response
from meshkit.window import Window

log = logging.getLogger("meshkit.breaker")


class Breaker(CircuitBreakerListener):
    """The circuit breaker of one target, shared by all stacks that hold it.

    pybreaker holds the state. Who is let through is decided here, and so is what counts: pybreaker by itself
    takes a call for done when its coroutine is made, a cancelled one for failed, and lets any number probe.

    It opens after so many failures in a row, or when too small a share succeeds. When it has been open for a
    while it lets one call through: if that is answered the breaker closes, be it with an error of the
    handler's own such as 404; if it fails it opens for twice as long, and if it says nothing of the callee's
    health the next may try. What became of calls that began before the state last changed is of no interest.

    Args:
        target: What is called, for texts.
        failures: How many failures in a row open it.
        success: The share of successes, at most 1, below which it opens.
        calls: Of how many calls at least, within the last `window`.
        window: How far back successes and failures count, in seconds.
        open_first: Seconds that it stays open at first, at most; at least half of that, at random.
        open_most: What that doubles up to, if it is more.
        statistics: Where openings are counted.
    """

    def __init__(
        self,
        target: str,
        *,
        failures: int,
        success: float,
        calls: int,
        window: float,
        open_first: float,
        open_most: float,
        statistics: CallStatistics,
    ) -> None:
        self._target = target
        self._failures = failures
        self._success = success
        self._calls = calls
        self._seconds = window
        self._open_first = open_first
        self._open_most = max(open_first, open_most)
        self._statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._circuit = CircuitBreaker(name=target, listeners=[self])
        self._is_closed = True
        # One more with each change of the state.
        self._epoch = 0
        self._window = Window(window)  # successes and failures
        self._in_a_row = 0  # failures
        self._is_probed = False
        self._open_for = open_first
        self._until = 0.0
        self._why = ""

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._circuit.current_state

    def layer(self, following: Handler) -> Handler:
        """Call `following` unless the breaker is open.

        Raises:
            CircuitOpen: It is.
        """
        loop = self._loop

        async def handle(request: Request) -> Response:
            if not self._is_closed:
                self._admit()
            epoch = self._epoch
            try:
                response = await following(request)
            except BaseException as error:
                if epoch == self._epoch:
                    self._judge(error)
                raise
            if epoch == self._epoch:
                if self._is_closed:
                    self._in_a_row = 0
                    window, now = self._window, loop.time()
                    if now >= window.ends:
                        window.turn(now)
                    window.first += 1
                else:
                    self._circuit.close()
            return response

        return handle

    def _admit(self) -> None:
        """Let a call through as the one that probes, or refuse it."""
        left = self._until - self._loop.time()
        if left <= 0:
            if self.state == STATE_OPEN:
                self._circuit.half_open()
            if not self._is_probed:
                self._is_probed = True
                return
        when = f"it is tried again in {left:.3f} s" if left > 0 else "one call tries it now"
        error = CircuitOpen(f"the circuit breaker is {self.state}: {self._why}; {when}")
        error.retry_after = left if left > 0 else None
        try:
            raise error
        finally:
            del error  # else it and this frame keep each other until the garbage collector comes

    def _judge(self, error: BaseException) -> None:
        """Count what failed, and open if it was the one too many."""
        if not _says_unhealthy(error):
            self._is_probed = False
            if not self._is_closed and is_answer(error):
                self._circuit.close()
            return
        if not self._is_closed:
            self._open_for = min(2 * self._open_for, self._open_most)
            self._open("the call that tried it again failed", error)
            return
        successes, failures = self._window.totals(self._loop.time())
        self._window.second += 1
        failures += 1
        self._in_a_row += 1
        calls = successes + failures
        if self._in_a_row >= self._failures:
            self._open(f"{self._in_a_row} calls in a row failed", error)
        elif calls >= self._calls and successes / calls < self._success:
            self._open(f"{failures} of {calls} calls failed", error)

    def _open(self, why: str, error: BaseException) -> None:
        self._why = f"{why} (last {shortened(str(error))})"
        self._until = self._loop.time() + self._open_for * random.uniform(0.5, 1)  # noqa: S311 # no secret
        self._circuit.open()

    def state_change(
        self,
        cb: CircuitBreaker,  # noqa: ARG002
        old_state: CircuitBreakerState | None,  # noqa: ARG002
        new_state: CircuitBreakerState,
    ) -> None:
        """What pybreaker tells of its state."""
        self._epoch += 1
        self._is_probed = False
        self._is_closed = new_state.name == STATE_CLOSED
        if new_state.name == STATE_OPEN:
            self._statistics.circuit_opened += 1
            log.warning("circuit to %s opened: %s", self._target, self._why)
        elif new_state.name == STATE_HALF_OPEN:
            log.info("circuit to %s half-open: one call tries it", self._target)
        else:
            self._in_a_row = 0
            self._window = Window(self._seconds)
            self._open_for = self._open_first
            log.info("circuit to %s closed", self._target)


def _says_unhealthy(error: BaseException) -> bool:
    """Whether a failure says something of the callee's health, and not of the call, the caller or the way."""
    if isinstance(error, DeadlineExceeded):
        return error.executed is not False  # else it was over before anything was sent
    if isinstance(error, BadReply):
        return False  # it answers, if not with what was asked for
    return type(error) is Unavailable or (isinstance(error, ServiceError) and error.code >= 500)
