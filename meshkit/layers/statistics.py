"""Statistics: one set of counters of each endpoint and of each target, from which every view is drawn."""

import asyncio
from time import perf_counter  # uvloop's clock has milliseconds only

import msgspec

from meshkit.errors import MeshError, kind, shortened
from meshkit.message import Handler, Request, Response
from meshkit.telemetry.distribution import Distribution, total

OK = "ok"
"""The outcome of what succeeded; that of what failed is the error's `kind`."""
OTHER = "_OTHER"
"""Stands for all kinds of errors, or targets, beyond those that are counted one by one."""
# Kinds of errors of one endpoint or target: handlers choose the codes that they answer with.
_MOST_KINDS = 32
# Characters of an error's text.
_LONGEST = 300

Outcomes = dict[str, Distribution]


def _outcomes() -> Outcomes:
    return {OK: Distribution()}


class Statistics(msgspec.Struct):
    """What an endpoint or a subscription has done since its instance started.

    Attributes:
        requests: How many requests or events arrived, refused ones too.
        outcomes: How long those that are over took, by outcome, waiting for a slot included.
        queued: How long those that had to wait for a slot did.
        received: Bytes of their payloads.
        sent: Bytes of the payloads of their answers.
        last_error: The last error, as `code:text`; empty if there was none.
    """

    requests: int = 0
    outcomes: Outcomes = msgspec.field(default_factory=_outcomes)
    queued: Distribution = msgspec.field(default_factory=Distribution)
    received: int = 0
    sent: int = 0
    last_error: str = ""

    @property
    def finished(self) -> int:
        """How many are over."""
        return sum(each.count for each in self.outcomes.values())

    @property
    def errors(self) -> int:
        """How many of them failed."""
        return self.finished - self.outcomes[OK].count

    @property
    def processing(self) -> float:
        """Seconds that all of them took."""
        return sum(each.sum for each in self.outcomes.values())

    @property
    def in_flight(self) -> int:
        """How many are being handled or wait."""
        return self.requests - self.finished

    def layer(self, following: Handler) -> Handler:
        """Count what passes."""
        succeeded = self.outcomes[OK]

        async def handle(request: Request) -> Response:
            started = perf_counter()
            self.requests += 1
            self.received += len(request.payload)
            try:
                response = await following(request)
            except MeshError as error:
                # A report has to be sent, whatever a handler raised.
                text = shortened(error.message, _LONGEST).encode("utf-8", "replace").decode()
                self.last_error = f"{error.code}:{text}"
                _count(self.outcomes, kind(error), perf_counter() - started)
                raise
            except asyncio.CancelledError:
                # The drain's time is over.
                _count(self.outcomes, "Unavailable", perf_counter() - started)
                raise
            finally:
                if request.queued:
                    self.queued.add(request.queued)
            succeeded.add(perf_counter() - started)
            self.sent += len(response.payload)
            return response

        return handle


class CallStatistics(msgspec.Struct):
    """What became of the calls of one target, as their caller sees it, and what was done about them.

    Attributes:
        requests: How many calls were made.
        outcomes: How long those that are over took, by outcome, all attempts and all waiting included.
        attempts: How many messages were sent, by what became of each: success without the retries.
        sent: Bytes of their payloads.
        received: Bytes of the payloads of their answers.
        queued: How long calls that had to wait for the caller's own bulkhead did.
        retries: How many attempts followed a first one.
        hedges: How many second copies were sent.
        hedges_won: How many of them were answered first.
        budget_spent: How many retries and hedges were left out, since the budget did not allow them.
        circuit_opened: How often the circuit breaker opened.
        refusals: How many calls the caller's own circuit breaker, rate limit or bulkhead refused, by outcome.
        fallbacks: How many calls were answered with their fallback.
    """

    requests: int = 0
    outcomes: Outcomes = msgspec.field(default_factory=_outcomes)
    attempts: dict[str, int] = msgspec.field(default_factory=lambda: {OK: 0})
    sent: int = 0
    received: int = 0
    queued: Distribution = msgspec.field(default_factory=Distribution)
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    budget_spent: int = 0
    circuit_opened: int = 0
    refusals: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    fallbacks: int = 0

    @property
    def refused(self) -> int:
        """How many calls the caller's own side refused."""
        return sum(self.refusals.values())

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answer."""
        return self.requests - total(self.outcomes.values()).count

    def layer(self, following: Handler) -> Handler:
        """Count calls, and what became of them in the end."""
        succeeded = self.outcomes[OK]

        async def handle(request: Request) -> Response:
            started = self.begin()
            try:
                response = await following(request)
            except BaseException as error:
                self.end(started, request.queued, error)
                raise
            if request.queued:
                self.queued.add(request.queued)
            succeeded.add(perf_counter() - started)
            return response

        return handle

    def begin(self) -> float:
        """Count a call; what this gives is for its end."""
        self.requests += 1
        return perf_counter()

    def end(self, started: float, queued: float, error: BaseException | None) -> None:
        """Count what became of it.

        Args:
            started: What `begin` gave.
            queued: Seconds that it waited for a slot.
            error: Why it failed, if it did.
        """
        outcome = OK if error is None else kind(error) if isinstance(error, MeshError) else "Cancelled"
        _count(self.outcomes, outcome, perf_counter() - started)
        if queued:
            self.queued.add(queued)
        if isinstance(error, MeshError) and error.own:
            self.refusals[outcome] = self.refusals.get(outcome, 0) + 1

    def attempt(self, following: Handler) -> Handler:
        """Count each message, and what became of it."""

        async def handle(request: Request) -> Response:
            self.sent += len(request.payload)
            outcome = "Cancelled"
            try:
                response = await following(request)
            except MeshError as error:
                outcome = _known(self.attempts, kind(error))
                raise
            else:
                outcome = OK
                self.received += len(response.payload)
                return response
            finally:
                self.attempts[outcome] = self.attempts.get(outcome, 0) + 1

        return handle


def _count(outcomes: Outcomes, outcome: str, seconds: float) -> None:
    outcomes.setdefault(_known(outcomes, outcome), Distribution()).add(seconds)


def _known(counted: Outcomes | dict[str, int], outcome: str) -> str:
    return outcome if outcome in counted or len(counted) < _MOST_KINDS else OTHER
