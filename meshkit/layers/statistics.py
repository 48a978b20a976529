"""Statistics of an endpoint, as the services protocol (ADR-32) reports them."""

import time

import msgspec

from meshkit.errors import MeshError
from meshkit.message import Handler, Request, Response


class Statistics(msgspec.Struct):
    """What an endpoint has done since its instance started.

    Attributes:
        requests: How many requests arrived, refused ones too.
        errors: How many of them were answered with an error.
        last_error: The last error, as `code:text`; empty if there was none.
        processing: Seconds that all requests took, waiting for a slot included.
        in_flight: How many are being handled or wait.
    """

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing: float = 0.0
    in_flight: int = 0

    def layer(self, following: Handler) -> Handler:
        """Count what passes."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()  # uvloop's clock has milliseconds only
            self.requests += 1
            self.in_flight += 1
            try:
                return await following(request)
            except MeshError as error:
                self.errors += 1
                self.last_error = f"{error.code}:{error.message}"
                raise
            finally:
                self.in_flight -= 1
                self.processing += time.perf_counter() - started

        return handle
