"""What happens to a call, in which order: this file is the place to look it up.

A stack is built once per endpoint, or once per mesh on the caller's side, and holds only the layers it needs.
"Above" means: outside of, seen first by a request and last by its response.
"""

from collections.abc import Iterable

from meshkit.deadlines import Deadlines
from meshkit.layers import deadline
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.propagation import propagate
from meshkit.layers.rescue import rescue
from meshkit.layers.statistics import Statistics
from meshkit.message import Handler, Layer, Request


def client_stack(send: Handler, *, caller: str | None) -> Handler:
    """The caller's side, outermost first.

    Args:
        send: Hands the request to the transport.
        caller: `service/instance` that calls, if it is a service.
    """
    return _stack(
        # Says whose call this is and which trace it belongs to. Above everything, so that every attempt and
        # every error of the layers below belongs to that trace.
        propagate(caller),
        # Writes the time left into the request. Innermost, so that what the layers above it spend counts.
        deadline.carry,
        around=send,
    )


def server_stack(
    handle: Handler,
    *,
    statistics: Statistics,
    deadlines: Deadlines[Request],
    bounds: Iterable[Concurrency],
) -> Handler:
    """The callee's side of calls, outermost first.

    Args:
        handle: Decodes the message, runs the user's function and encodes its result.
        statistics: Where requests are counted.
        deadlines: Cancels the task that handles a request at the request's deadline.
        bounds: Bounds on concurrency, the widest last: the endpoint's own, then the service's.
    """
    return _stack(
        # Counts every request. Above the layers that refuse, so that refusals are counted too.
        statistics.layer,
        # Refuses expired requests. Above concurrency, so that they take no slot, and that waiting for one
        # counts against the deadline.
        deadline.enforce(deadlines),
        # Admit, queue or refuse. An endpoint's bound is above the service's, so that what waits for a slow
        # endpoint takes none of the slots that the other endpoints share.
        *(bound.layer for bound in bounds),
        # Turns whatever the handler raises into what a caller may see. Innermost: the layers above raise
        # errors made for callers.
        rescue,
        around=handle,
    )


def event_stack(
    handle: Handler, *, deadlines: Deadlines[Request], bound: Concurrency, timeout: float | None
) -> Handler:
    """The side of who listens to events, outermost first.

    Args:
        handle: Decodes the message and runs the user's function.
        deadlines: Cancels the task that handles a request at the request's deadline.
        bound: The subscription's bound on concurrency; at 1 it keeps events in order.
        timeout: Seconds that handling one may take, if that is bounded.
    """
    return _stack(
        bound.layer,
        # Below concurrency, unlike for calls: nobody waits for an event, and its turn comes when it comes.
        *([deadline.within(timeout, deadlines)] if timeout is not None else []),
        rescue,
        around=handle,
    )


def _stack(*layers: Layer, around: Handler) -> Handler:
    handler = around
    for layer in reversed(layers):
        handler = layer(handler)
    return handler
