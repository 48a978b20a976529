"""What happens to a call, in which order: this file is the place to look it up.

A stack is built once per endpoint, on the caller's side once for each target, and holds only the layers that
the policy asks for. "Above" means: outside of, seen first by a request and last by its response.
While somebody watches live calls, `telemetry/live/tap.py` puts one more layer above all of the callee's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshkit.budget import RetryBudget
from meshkit.deadlines import Deadlines
from meshkit.layers import deadline
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.connection import Link, connection
from meshkit.layers.hedge import Latency, hedge
from meshkit.layers.propagation import propagate
from meshkit.layers.rescue import rescue
from meshkit.layers.retry import retry
from meshkit.layers.statistics import CallStatistics, Statistics
from meshkit.message import Handler, Layer, Request
from meshkit.policies import Effective

if TYPE_CHECKING:  # they load libraries that a caller or callee without them need not wait for
    from meshkit.layers.breaker import Breaker
    from meshkit.quota import Quota
    from meshkit.telemetry.traces.tracing import Tracer


@dataclass(slots=True)
class Bounds:
    """What keeps the calls of one kind from being too many; None where there is no such bound."""

    quota: "Quota | None" = None
    concurrency: Concurrency | None = None


@dataclass(slots=True)
class Shared:
    """What all calls to a target share, whatever policy one of them has; None where it is switched off.

    `latency` is there from the first stack on that has live hedging.
    """

    budget: RetryBudget
    breaker: "Breaker | None" = None
    latency: Latency | None = None
    bounds: Bounds = field(default_factory=Bounds)
    statistics: CallStatistics = field(default_factory=CallStatistics)


def client_stack(
    send: Handler,
    *,
    target: str,
    link: Link,
    caller: str | None,
    policy: Effective,
    shared: Shared,
    streams: bool = False,
    tracer: "Tracer | None" = None,
) -> Handler:
    """The caller's side, outermost first.

    Args:
        send: Hands the request to the transport.
        target: What is called.
        link: The transport's connection.
        caller: `service/instance` that calls, if it is a service.
        policy: What is to be done; a CallPolicy in which every field is set.
        shared: The state that all calls to the target share.
        streams: Whether the stack opens streams: then the response is the first item.
        tracer: Makes spans; None where nothing is traced.
    """
    layers = _client_layers(link, caller, policy, shared, streams=streams, traced=tracer is not None)
    if tracer is not None:
        from meshkit.layers import trace

        # The span of the call. Above everything, so that it covers all that is done for it.
        layers = [trace.call(tracer, target, streams=streams), *layers, trace.attempt(target)]
    return _stack(*layers, around=send)


def _client_layers(
    link: Link, caller: str | None, policy: Effective, shared: Shared, *, streams: bool, traced: bool
) -> Iterator[Layer]:
    # Says whose call this is and which trace it belongs to. Above everything else, so that every attempt and
    # every error of the layers below belongs to that trace.
    yield propagate(caller, policy.priority, traced=traced)
    if not streams:
        # Counts the calls, and what they come to in the end. Above all that can help, wait, refuse or fail. A
        # stream's end is known to its reader alone.
        yield shared.statistics.layer
    hedged = policy.hedge is not None and policy.idempotent
    if policy.retries or hedged:
        # Tries again, and counts the calls that the budget of both is a share of. Above all that can refuse
        # or fail, so that each attempt is judged and bounded anew.
        yield retry(
            retries=policy.retries,
            idempotent=policy.idempotent,
            codes=policy.retry_codes,
            delay=policy.retry_delay,
            delay_most=policy.retry_delay_most,
            budget=shared.budget,
            statistics=shared.statistics,
        )
    if policy.hedge is not None and policy.idempotent and not streams:
        # Sends a second copy of what takes long. Below retry, so that both copies are one attempt; above the
        # rest, so that each copy is judged and bounded like any other message.
        after = policy.hedge
        if after == "p95":
            after = shared.latency = shared.latency or Latency()
        yield hedge(after, budget=shared.budget, statistics=shared.statistics)
    if policy.breaker and shared.breaker is not None:
        # Refuses while the target fails, and judges by each attempt. Above the caller's own bounds, so that
        # nothing waits there for a target that is known to fail.
        yield shared.breaker.layer
    if shared.bounds.quota is not None:
        # The caller's own limit on the messages that it sends. Above concurrency: what it refuses takes no
        # slot.
        yield _rate_limit(shared.bounds.quota)
    if shared.bounds.concurrency is not None:
        # So many on their way at a time, so that one slow target does not take all that a caller has.
        yield shared.bounds.concurrency.layer
    # Waits while there is no connection. Below all that judges the callee: that says nothing of it.
    yield connection(link)
    if policy.idempotent and policy.attempt_timeout is not None:
        # Bounds an attempt. Below all that waits here, so that only the callee's time counts.
        yield deadline.attempt(policy.attempt_timeout)
    # Writes the time left into the request. Below all others that take time, so that what they spend counts.
    yield deadline.carry_whole if streams else deadline.carry
    # Counts what is sent. Innermost: what a layer above keeps back is not.
    yield shared.statistics.attempt


def server_stack(
    handle: Handler,
    *,
    subject: str,
    statistics: Statistics,
    deadlines: Deadlines[Request],
    own: Bounds,
    shared: Bounds,
    timeout: float | None = None,
    tracer: "Tracer | None" = None,
    access: Layer | None = None,
) -> Handler:
    """The callee's side of calls, outermost first.

    Args:
        handle: Decodes the message, runs the user's function and encodes its result.
        subject: The endpoint's.
        statistics: Where requests are counted.
        deadlines: Cancels the task that handles a request at the request's deadline.
        own: The endpoint's own bounds.
        shared: The bounds that it shares with the other endpoints of its service.
        timeout: Seconds that the endpoint may take; None for no bound but the caller's.
        tracer: Makes spans; None where nothing is traced.
        access: Writes the access log; None where there is none.
    """
    quotas = [bounds.quota for bounds in (own, shared) if bounds.quota is not None]
    bounds = [bounds.concurrency for bounds in (own, shared) if bounds.concurrency is not None]
    return _stack(
        # The span of what is done here. Above everything, so that refusals are traced too.
        *_trace(tracer, subject),
        # Writes the access log. Above the layers that refuse and wait, so that refusals are in it, and how
        # long a call took is all of it; within the span, whose trace it names.
        *([access] if access is not None else []),
        # Counts every request. Above the layers that refuse, so that refusals are counted too.
        statistics.layer,
        # Finds out how long the caller waits. Below statistics, so that what cannot be read is counted.
        deadline.read(timeout),
        # Refuses expired requests. Above the bounds, so that they take no slot and use up no limit, and that
        # waiting for a slot counts against the deadline.
        deadline.enforce(deadlines),
        # Lets so many through in a time. Above concurrency, so that what it refuses takes no slot and does
        # not wait.
        *([_rate_limit(*quotas)] if quotas else []),
        # Admit, queue or refuse. An endpoint's bound is above the service's, so that what waits for a slow
        # endpoint takes none of the slots that the other endpoints share.
        *(bound.layer for bound in bounds),
        # Turns whatever the handler raises into what a caller may see. Innermost: the layers above raise
        # errors made for callers.
        rescue,
        around=handle,
    )


def _trace(tracer: "Tracer | None", subject: str, *, events: bool = False, consumer: str = "") -> list[Layer]:
    if tracer is None:
        return []
    from meshkit.layers import trace  # which loads OpenTelemetry

    return [trace.process(tracer, subject, consumer) if events else trace.serve(tracer, subject)]


def _rate_limit(*quotas: "Quota") -> Layer:
    from meshkit.layers.rate_limit import rate_limit

    return rate_limit(*quotas)


def event_stack(
    handle: Handler,
    *,
    subject: str,
    statistics: Statistics,
    deadlines: Deadlines[Request],
    bound: Concurrency,
    timeout: float | None,
    tracer: "Tracer | None" = None,
) -> Handler:
    """The side of who listens to events, outermost first.

    Args:
        handle: Decodes the message and runs the user's function.
        subject: The subscription's.
        statistics: Where events are counted.
        deadlines: Cancels the task that handles a request at the request's deadline.
        bound: The subscription's bound on concurrency; at 1 it keeps events in order.
        timeout: Seconds that handling one may take, if that is bounded.
        tracer: Makes spans; None where nothing is traced.
    """
    return _stack(
        *_trace(tracer, subject, events=True),
        # Counts every event. Above the bound, so that those that it drops are counted too.
        statistics.layer,
        bound.layer,
        # Below concurrency, unlike for calls: nobody waits for an event, and its turn comes when it comes.
        *([deadline.within(timeout, deadlines)] if timeout is not None else []),
        rescue,
        around=handle,
    )


def durable_stack(
    handle: Handler,
    *,
    subject: str,
    consumer: str,
    statistics: Statistics,
    deadlines: Deadlines[Request],
    patience: Layer | None,
    once: Layer | None,
    alone: Layer,
    timeout: float | None,
    tracer: "Tracer | None" = None,
    access: Layer | None = None,
) -> Handler:
    """The side of who consumes a stream, outermost first. What it raises has the message delivered again.

    There is no layer for concurrency: no more messages are taken than can be handled.

    Args:
        handle: Decodes the message and runs the user's function.
        subject: Which messages.
        consumer: The consumer's name.
        statistics: Where messages are counted.
        deadlines: Cancels the task that handles a request at the request's deadline.
        patience: Lets through so many in a time, if that is bounded.
        once: Passes over what was handled before, if that is looked at.
        alone: Handles alone what may kill who handles it.
        timeout: Seconds that handling one may take, if that is bounded.
        tracer: Makes spans; None where nothing is traced.
        access: Writes the access log; None where there is none.
    """
    return _stack(
        *_trace(tracer, subject, events=True, consumer=consumer),
        *([access] if access is not None else []),
        # Counts every delivery.
        statistics.layer,
        # Waits, unlike for calls: nobody waits for the message, and while it has its slot none is fetched.
        *([patience] if patience is not None else []),
        # Passes over what was handled before. Above the deadline, which is the handler's.
        *([once] if once is not None else []),
        # Has what may kill its handler wait for others of that kind. Below all else that waits: it is marked
        # while it is handled, and at no other time.
        alone,
        *([deadline.within(timeout, deadlines)] if timeout is not None else []),
        rescue,
        around=handle,
    )


def _stack(*layers: Layer, around: Handler) -> Handler:
    handler = around
    for layer in reversed(layers):
        handler = layer(handler)
    return handler
