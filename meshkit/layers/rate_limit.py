"""Rate limits: so many requests in so much time, and the rest is refused at once."""

from collections.abc import Awaitable, Sequence

from meshkit.message import Handler, Layer, Request, Response
from meshkit.quota import Quota


def rate_limit(*quotas: Quota) -> Layer:
    """Let through what all quotas let through; of either side. What one of them refuses uses up no other.

    Args:
        quotas: What counts; at least one.
    """
    quota, *others = quotas
    if others:
        quota = _All(quotas)

    def layer(following: Handler) -> Handler:
        async def wait(waiting: Awaitable[None], request: Request) -> Response:
            await waiting
            return await following(request)

        def handle(request: Request) -> Awaitable[Response]:
            waiting = quota.take(request)
            return following(request) if waiting is None else wait(waiting, request)

        return handle

    return layer


class _All:
    """Several quotas as one; the interface is `meshkit.quota.Quota`."""

    def __init__(self, quotas: Sequence[Quota]) -> None:
        self._quotas = quotas

    def look(self, request: Request) -> None:
        for quota in self._quotas:
            quota.look(request)

    def take(self, request: Request) -> Awaitable[None] | None:
        # Nothing else runs between looking and counting, unless one of them has to ask.
        self.look(request)
        for at, quota in enumerate(self._quotas):
            waiting = quota.take(request)
            if waiting is not None:
                return self._wait(waiting, self._quotas[at + 1 :], request)
        return None

    async def _wait(self, waiting: Awaitable[None], others: Sequence[Quota], request: Request) -> None:
        await waiting
        for quota in others:
            further = quota.take(request)
            if further is not None:
                await further
