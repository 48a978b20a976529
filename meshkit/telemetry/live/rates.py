"""What several changes come to, a second: rates, shares and quantiles."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import msgspec

from meshkit.layers.statistics import Outcomes
from meshkit.telemetry.distribution import total
from meshkit.telemetry.live.changes import Change

T = TypeVar("T")
_Key = TypeVar("_Key", bound=Hashable)


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Several changes in one, a second each; None where nothing is known.

    Attributes:
        rate: Calls or events a second.
        success: The share of those that are over that were no faults, from 0 to 1.
        p50: Seconds that half of them took at most.
        p95: Seconds that 95 % of them took at most.
        p99: Seconds that 99 % of them took at most.
        average: Seconds that they took on average.
        in_flight: How many are on their way.
        outcomes: How many a second ended how.
        retries: Messages a second that followed a first one, of the calls that are made.
        refusals: Calls a second that the caller's own side refused.
        circuits: The circuit breakers that are not closed, by target.
        lag: Of consumers, how many messages no instance has got yet.
        unacknowledged: How many some instance has got and not said what became of.
        redelivered: Deliveries a second that were not the first of their message.
        dead: How many messages became dead letters since the instances started.
    """

    rate: float | None = None
    success: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    average: float | None = None
    in_flight: int | None = None
    outcomes: dict[str, float] = {}
    retries: float | None = None
    refusals: float | None = None
    circuits: dict[str, str] = {}
    lag: int | None = None
    unacknowledged: int | None = None
    redelivered: float | None = None
    dead: int | None = None


def worst(circuits: Iterable[str]) -> list[str]:
    """The states of circuit breakers that are not closed, the worst first."""
    found = set(circuits)
    return [state for state in ("open", "half-open") if state in found]


def rates(served: Iterable[Change], called: Iterable[Change] = ()) -> Rates:
    """What several changes come to.

    Args:
        served: Of endpoints; or of targets, to see what is called as its callers do.
        called: What those who serve them call.
    """
    served, called = list(served), list(called)
    known: dict[str, Any] = {
        "in_flight": sum(one.in_flight for one in served),
        "circuits": {one.name: one.circuit for one in called if one.circuit != "closed"},
    }
    if measured := [one for one in called if one.seconds]:
        seconds = measured[0].seconds
        known["retries"] = sum(one.retries for one in measured) / seconds
        known["refusals"] = sum(one.refusals for one in measured) / seconds
    if measured := [one for one in served if one.seconds]:
        seconds = measured[0].seconds
        known["rate"] = sum(one.requests for one in measured) / seconds
        outcomes = _by_outcome(measured)
        known["outcomes"] = {outcome: each.count / seconds for outcome, each in outcomes.items()}
        taken = total(outcomes.values())
        known |= {"p50": taken.quantile(0.5), "p95": taken.quantile(0.95), "p99": taken.quantile(0.99)}
        if finished := sum(one.finished for one in measured):
            known["success"] = sum(one.succeeded for one in measured) / finished
            known["average"] = sum(one.spent for one in measured) / finished
    return Rates(**known, **_of_consumers(served))


def _of_consumers(served: Iterable[Change]) -> dict[str, Any]:
    """What is known of consumers alone, if there are any."""
    changes = [(one.consumer, one.seconds) for one in served if one.consumer is not None]
    if not changes:
        return {}
    alike = grouped((each for each, _ in changes), by=lambda each: (each.stream, each.name)).values()
    found: dict[str, Any] = {
        "lag": sum(max(each.pending for each in one) for one in alike),
        "unacknowledged": sum(max(each.unacknowledged for each in one) for one in alike),
        "dead": sum(each.dead for each, _ in changes),
    }
    if measured := [(each.redelivered, seconds) for each, seconds in changes if seconds]:
        found["redelivered"] = sum(count for count, _ in measured) / measured[0][1]
    return found


def _by_outcome(changes: Iterable[Change]) -> Outcomes:
    return {
        name: total(each for _, each in group)
        for name, group in grouped(
            ((name, each) for one in changes for name, each in one.outcomes.items()),
            by=lambda pair: pair[0],
        ).items()
    }


def grouped(items: Iterable[T], by: Callable[[T], _Key]) -> dict[_Key, list[T]]:
    """Items by a key, in the order in which they come."""
    groups: dict[_Key, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return groups
