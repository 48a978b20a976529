"""How many calls are let through: what counts them, for the layer `meshkit.layers.rate_limit`."""

from collections.abc import Awaitable
from typing import Protocol

from meshkit.knobs import RateLimit
from meshkit.message import Request
from meshkit.transport import Transport


class Quota(Protocol):
    """Lets requests through, so many of them."""

    def take(self, request: Request) -> Awaitable[None] | None:
        """Count a request.

        Returns:
            None if it is let through; otherwise what to wait for: it returns when the request is let through.

        Raises:
            RateLimited: It is not, which waiting for what was returned may raise as well.
        """
        ...

    def give_back(self, request: Request) -> None:
        """Forget a request that was let through just now, and that another quota refuses."""
        ...


def quota(limit: RateLimit, what: str, *, transport: Transport | None = None, service: str = "") -> Quota:
    """The quota that keeps a limit.

    Args:
        limit: How many.
        what: Of what: a subject or a service's name. It stands in errors, and instances whose limit has scope
            "mesh" share one if it is the same.
        transport: Where JetStream is, for scope "mesh".
        service: Whose instances share the limit while JetStream is away.
    """
    # `limits` takes 40 ms to import.
    if limit.scope == "mesh":
        from meshkit.quota.leases import LeasedQuota

        assert transport is not None, "a limit of scope 'mesh' needs a connection"
        return LeasedQuota(limit, what, transport, service)
    from meshkit.quota.local import LocalQuota

    return LocalQuota(limit, what)
