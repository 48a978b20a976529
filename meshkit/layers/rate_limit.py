"""Rate limits: so many requests in so much time, and the rest is refused at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from meshkit.errors import MeshError, RateLimited
from meshkit.message import Handler, Layer, Request, Response
from meshkit.quota import Quota

# Seconds, where a refusal does not say for how long it is one.
_PAUSE = 0.1


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


def patient(quota: Quota, waits: Callable[[Request], AbstractContextManager[None]]) -> Layer:
    """Let through what the quota lets through, and have the rest wait until it does.

    Args:
        quota: What counts.
        waits: A block in which a request waits, for who wants to end that.
    """

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            while True:
                try:
                    if (ready := quota.take(request)) is not None:
                        await ready
                except RateLimited as error:
                    with waits(request):
                        await asyncio.sleep(error.retry_after or _PAUSE)
                else:
                    return await following(request)

        return handle

    return layer


class _All:
    """Several quotas as one; the interface is `meshkit.quota.Quota`.

    What one of them refuses is given back to those before it: looking at all of them first would cost each
    call that is let through as much again.
    """

    def __init__(self, quotas: Sequence[Quota]) -> None:
        self._quotas = quotas

    def take(self, request: Request) -> Awaitable[None] | None:
        for at, quota in enumerate(self._quotas):
            try:
                waiting = quota.take(request)
            except RateLimited:
                self._give_back(at, request)
                raise
            if waiting is not None:
                return self._wait(waiting, at, request)
        return None

    async def _wait(self, waiting: Awaitable[None] | None, at: int, request: Request) -> None:
        try:
            while True:
                if waiting is not None:
                    await waiting
                at += 1
                if at == len(self._quotas):
                    return
                waiting = self._quotas[at].take(request)
        except MeshError:
            self._give_back(at, request)
            raise

    def _give_back(self, before: int, request: Request) -> None:
        for quota in self._quotas[:before]:
            quota.give_back(request)

    def give_back(self, request: Request) -> None:
        self._give_back(len(self._quotas), request)
