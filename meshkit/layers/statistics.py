"""Statistics: of an endpoint, as the services protocol (ADR-32) reports them, and of a caller."""

import time

import msgspec

from meshkit.errors import MeshError
from meshkit.message import Handler, Request, Response


class Statistics(msgspec.Struct):
    """What an endpoint has done since its instance started.

    Attributes:
        requests: How many requests arrived, refused ones too.
        finished: How many of them have been answered.
        errors: How many of them were answered with an error.
        last_error: The last error, as `code:text`; empty if there was none.
        processing: Seconds that all requests took, waiting for a slot included.
    """

    requests: int = 0
    finished: int = 0
    errors: int = 0
    last_error: str = ""
    processing: float = 0.0

    @property
    def in_flight(self) -> int:
        """How many are being handled or wait."""
        return self.requests - self.finished

    def layer(self, following: Handler) -> Handler:
        """Count what passes."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()  # uvloop's clock has milliseconds only
            self.requests += 1
            try:
                return await following(request)
            except MeshError as error:
                self.errors += 1
                self.last_error = f"{error.code}:{error.message}"
                raise
            finally:
                self.finished += 1
                self.processing += time.perf_counter() - started

        return handle


class CallStatistics(msgspec.Struct):
    """What a caller's own side has done about the calls of one target.

    Attributes:
        retries: How many attempts followed a first one.
        hedges: How many second copies were sent.
        hedges_won: How many of them were answered first.
        budget_spent: How many retries and hedges were left out, since the budget did not allow them.
        circuit_opened: How often the circuit breaker opened.
        refused: How many calls the caller's own circuit breaker, rate limit or bulkhead refused.
        fallbacks: How many calls were answered with their fallback.
    """

    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    budget_spent: int = 0
    circuit_opened: int = 0
    refused: int = 0
    fallbacks: int = 0

    def refusals(self, following: Handler) -> Handler:
        """Count what the caller's own side refuses."""

        async def handle(request: Request) -> Response:
            try:
                return await following(request)
            except MeshError as error:
                self.refused += error.own
                raise

        return handle
