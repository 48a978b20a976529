"""Who calls whom: what services call, brought together with who serves it."""

from collections.abc import Iterable, Iterator

import msgspec

from meshkit.layers.statistics import OTHER
from meshkit.subject import Pattern
from meshkit.telemetry.live.changes import Change, InstanceChange
from meshkit.telemetry.live.rates import grouped, rates, worst

CLIENTS = "(clients)"
"""Callers that are no services."""
NOBODY = "(nobody)"
"""Stands for who would serve what nobody serves."""
UNKNOWN = "(unknown)"
"""Stands for whoever answers there without telling it: not every service can be discovered."""
OTHERS = "(others)"
"""Stands for whoever serves the targets that a caller does not count one by one."""

# The two readings of caller and callee are not of the same moment: what differs by no more than this share of
# the calls, or by so few calls, is nobody's.
_NOISE, _NOISE_CALLS = 0.01, 2


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """That a service calls an endpoint.

    Attributes:
        caller: The service that calls, or CLIENTS.
        callee: The service that is called, NOBODY, UNKNOWN or OTHERS.
        endpoint: The endpoint's name; without a service what is called.
        subject: Its subject, with wildcards.
        rate: Calls a second; None if that is not known.
        success: The share of them that goes well, as the caller sees it.
        p95: Seconds that 95 % of them take at most.
        circuit: The circuit breaker's state, the worst of all instances of the caller.
    """

    caller: str
    callee: str
    endpoint: str
    subject: str
    rate: float | None = None
    success: float | None = None
    p95: float | None = None
    circuit: str = "closed"


class _Served(msgspec.Struct, frozen=True, eq=False):
    """An endpoint of a service, and what its instances did."""

    service: str
    name: str
    pattern: Pattern
    changes: list[Change]

    @property
    def queue(self) -> str:
        """The queue group; empty if each instance gets all calls."""
        return self.changes[0].queue

    @property
    def arrived(self) -> int:
        """How many calls arrived."""
        requests = [change.requests for change in self.changes]
        return sum(requests) if self.queue else max(requests)


def edges(instances: Iterable[InstanceChange]) -> list[Edge]:
    """Who calls whom, by caller and callee.

    Args:
        instances: What happened in each.
    """
    instances = list(instances)
    served = list(_served(instances))
    tree = _tree(served)
    # Of each endpoint, what services say that they sent there, and which share of it arrived there.
    accounted: dict[_Served, list[tuple[Change, float]]] = {one: [] for one in served}
    found: list[Edge] = []
    called = ((one.service, change) for one in instances for change in one.called)
    for (caller, target), group in grouped(called, by=lambda pair: (pair[0], pair[1].name)).items():
        changes = [change for _, change in group]
        callees = _callees(target, tree)
        for callee, share in zip(callees, _shares(callees), strict=True):
            accounted[callee] += [(change, share) for change in changes]
            found.append(_edge(caller, callee.service, callee.name, callee.pattern.wire, changes, share))
        if not callees:
            found.append(_edge(caller, _stand_in(target, changes), target, target, changes))
    found += _of_clients(accounted)
    return sorted(found, key=lambda edge: (edge.caller, edge.callee, edge.endpoint))


def _served(instances: Iterable[InstanceChange]) -> Iterator[_Served]:
    endpoints = ((one.service, change) for one in instances for change in one.served if not change.is_event)
    by_subject = grouped(endpoints, by=lambda pair: (pair[0], pair[1].subject))
    for (service, subject), group in by_subject.items():
        changes = [change for _, change in group]
        yield _Served(service, changes[0].name, Pattern(subject), changes)


class _Node:
    """Where subjects that begin with the same tokens go on: of thousands, few have to be looked at."""

    __slots__ = ("after", "served")

    def __init__(self) -> None:
        self.after: dict[str, _Node] = {}
        self.served: list[_Served] = []


def _tree(served: Iterable[_Served]) -> _Node:
    root = _Node()
    for one in served:
        node = root
        for token in one.pattern.wire.split("."):
            node = node.after.setdefault(token, _Node())
        node.served.append(one)
    return root


def _callees(target: str, root: _Node) -> list[_Served]:
    """Whoever serves a target, by the most precise pattern: several services may serve the same one."""
    tokens = target.split(".")
    ways = [(root, 0)]
    while ways:
        node, depth = ways.pop()
        if depth < len(tokens):
            # The last of them is looked at first, and each once. A `>` of the target fits `>` alone.
            nexts = {">": len(tokens)}
            if tokens[depth] != ">":
                nexts |= dict.fromkeys(("*", tokens[depth]), depth + 1)
            ways += [(node.after[name], at) for name, at in nexts.items() if name in node.after]
        elif node.served:
            return node.served
    return []


def _shares(callees: list[_Served]) -> Iterator[float]:
    """Which share of the calls of a target goes to each of those who serve it."""
    groups = grouped(callees, by=lambda one: one.queue)
    arrived = {queue: sum(one.arrived for one in group) for queue, group in groups.items()}
    for one in callees:
        if not one.queue:
            yield 1.0
        elif arrived[one.queue]:
            yield one.arrived / arrived[one.queue]
        else:
            yield 1 / len(groups[one.queue])


def _stand_in(target: str, changes: Iterable[Change]) -> str:
    """Who is said to be called where no service tells that it is."""
    if target == OTHER:
        return OTHERS
    ended = {outcome for change in changes for outcome in change.outcomes}
    # A breaker that is open lets nothing through.
    return NOBODY if "NoResponders" in ended and ended <= {"NoResponders", "CircuitOpen"} else UNKNOWN


def _edge(
    caller: str, callee: str, endpoint: str, subject: str, changes: list[Change], share: float = 1.0
) -> Edge:
    seen = rates(changes)
    return Edge(
        caller=caller,
        callee=callee,
        endpoint=endpoint,
        subject=subject,
        rate=None if seen.rate is None else seen.rate * share,
        success=seen.success,
        p95=seen.p95,
        circuit=next(iter(worst(change.circuit for change in changes)), "closed"),
    )


def _of_clients(accounted: dict[_Served, list[tuple[Change, float]]]) -> Iterator[Edge]:
    """What arrived that no service says it sent."""
    for callee, sent in accounted.items():
        if any(not change.seconds for change in (*callee.changes, *(change for change, _ in sent))):
            continue  # it is not known how much it was
        arrived = callee.arrived
        said = sum(change.messages * share for change, share in sent)
        rest = arrived - said
        if rest <= (max(_NOISE_CALLS, _NOISE * arrived) if said else 0):
            continue
        edge = _edge(CLIENTS, callee.service, callee.name, callee.pattern.wire, callee.changes)
        rate = rest / callee.changes[0].seconds
        if said:
            # Whose calls went how is not known.
            edge = msgspec.structs.replace(edge, success=None, p95=None)
        yield msgspec.structs.replace(edge, rate=rate)
