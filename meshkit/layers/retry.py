"""Calls that failed are made again: where that does no harm, within the deadline, and within a budget."""

import asyncio
import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import msgspec

from meshkit.budget import RetryBudget
from meshkit.errors import (
    BadRequest,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    Forbidden,
    MeshError,
    Unauthorized,
    Unavailable,
)
from meshkit.headers import find, line
from meshkit.layers.statistics import CallStatistics
from meshkit.message import ATTEMPT, RETRY, Handler, Layer, Request, Response

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

# Says that nothing is to be tried again for a request, neither it nor what is called on its behalf.
OFF = line(RETRY, "off")
_RETRY_LINE = f"\r\n{RETRY}:".encode()


def is_off(head: bytes) -> bool:
    """Whether a request says that nothing is to be tried again for it."""
    return find(head, _RETRY_LINE) == "off"


def retry(
    *,
    retries: int,
    idempotent: bool,
    codes: Collection[int],
    delay: float,
    delay_most: float,
    budget: RetryBudget,
    statistics: CallStatistics,
) -> Layer:
    """The caller's side: try again what failed, and may be tried again without harm.

    The first attempt is made as if there were no retries; only its failure is handed to tenacity.

    Args:
        retries: How many attempts may follow the first.
        idempotent: Whether a call that may have been executed may be made again.
        codes: Of idempotent calls, the errors that are tried again although they were answered.
        delay: The most to wait before the second attempt, in seconds; it doubles with each. The wait is what
            the error says, or random between nothing and that, which is "full jitter":
            https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        delay_most: What it doubles up to, if it is more.
        budget: How many retries the calls to the target may cause.
        statistics: Where retries are counted.
    """
    is_repeatable = functools.partial(_is_repeatable, idempotent, codes)
    controller = _controller(retries, delay, delay_most, is_repeatable, budget, statistics)

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            budget.deposit(request.started)
            head, deadline = request.head, request.deadline
            if budget.is_spent and not is_off(head):
                request.head = head + OFF
            try:
                return await following(request)
            except MeshError as error:
                if not is_repeatable(error) or is_off(head):
                    raise
                call = _Call(request, head, deadline, following, budget, error)
            try:
                return await controller(_Call.attempt, call)
            except (MeshError, asyncio.CancelledError) as error:
                error.__traceback__ = None  # it and tenacity's frames would keep each other likewise
                if isinstance(error, MeshError) and call.may_be_executed and error.executed is False:
                    error.executed = None
                raise

        return handle

    return layer


def _is_repeatable(idempotent: bool, codes: Collection[int], error: BaseException) -> bool:
    # The caller's own bounds would be met by another attempt as well.
    if not isinstance(error, MeshError) or error.own or isinstance(error, Cancelled):
        return False
    if error.executed is False and not isinstance(error, BadRequest | Unauthorized | Forbidden):
        return True
    is_unknown = isinstance(error, Unavailable | DeadlineExceeded | ConnectionLost)
    return idempotent and (is_unknown or error.code in codes)


class _Call(msgspec.Struct):
    """A call whose first attempt failed.

    Attributes:
        request: What is sent each time.
        head: Its head, before the layers below added to it.
        deadline: Of all attempts together.
        following: Where it is sent.
        budget: What its attempts are taken from.
        failure: Why the first attempt failed, until tenacity knows.
        attempts: How many there have been.
        may_be_executed: Whether one of them may have been, so that nobody can say that the call was not.
    """

    request: Request
    head: bytes
    deadline: float
    following: Handler
    budget: RetryBudget
    failure: MeshError | None
    attempts: int = 1
    may_be_executed: bool = False

    async def attempt(self) -> Response:
        """What tenacity calls each time."""
        if self.failure is not None:
            # Its first attempt is the one that has been made.
            failure, self.failure = self.failure, None
            self.may_be_executed = failure.executed is not False
            try:
                raise failure
            finally:
                del failure  # else it and this frame keep each other until the garbage collector comes
        self.attempts += 1
        self.request.head = self.head + line(ATTEMPT, str(self.attempts))
        if self.budget.is_spent:
            self.request.head += OFF
        self.request.deadline = self.deadline
        try:
            return await self.following(self.request)
        except MeshError as error:
            error.attempt = self.attempts
            self.may_be_executed |= error.executed is not False
            raise


def _controller(
    retries: int,
    delay: float,
    delay_most: float,
    is_repeatable: Callable[[BaseException], bool],
    budget: RetryBudget,
    statistics: CallStatistics,
) -> "AsyncRetrying":
    """What tries again; all calls share it, and what differs is in each one's _Call."""
    # Now, as at the first failure it would keep the event loop for 14 ms.
    from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

    loop = asyncio.get_running_loop()
    jitter = wait_random_exponential(multiplier=delay, max=max(delay, delay_most))

    def wait(state: "RetryCallState") -> float:
        after = _failure(state).retry_after
        return jitter(state) if after is None else after

    def stop(state: "RetryCallState") -> bool:
        now = loop.time()
        if state.attempt_number > retries or now + state.upcoming_sleep >= state.args[0].deadline:
            return True
        # Last, as asking spends it.
        if budget.withdraw(now):
            statistics.retries += 1
            return False
        statistics.budget_spent += 1
        _failure(state).budget_spent = True
        return True

    return AsyncRetrying(retry=retry_if_exception(is_repeatable), wait=wait, stop=stop, reraise=True)


def _failure(state: "RetryCallState") -> MeshError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, MeshError)
    return error
