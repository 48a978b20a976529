"""Rate limits: so many requests in so much time, and the rest is refused at once."""

from collections.abc import Awaitable

from meshkit.message import Handler, Layer, Request, Response
from meshkit.quota import Quota


def rate_limit(quota: Quota) -> Layer:
    """Let through what a quota lets through; of either side.

    Args:
        quota: What counts.
    """

    def layer(following: Handler) -> Handler:
        async def wait(waiting: Awaitable[None], request: Request) -> Response:
            await waiting
            return await following(request)

        def handle(request: Request) -> Awaitable[Response]:
            waiting = quota.take(request)
            return following(request) if waiting is None else wait(waiting, request)

        return handle

    return layer
