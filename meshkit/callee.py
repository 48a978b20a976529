"""What a caller knows of what it calls: the policy that holds for a target, and the state its calls share."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from meshkit.budget import RetryBudget
from meshkit.discovery.directory import Directory
from meshkit.layers.concurrency import Concurrency
from meshkit.layers.statistics import OTHER, CallStatistics
from meshkit.message import Handler
from meshkit.policies import Effective, Policies, Source, put_together
from meshkit.policy import CALL_DEFAULTS, SHARED, CallPolicy, expected
from meshkit.service import Endpoint
from meshkit.stack import Shared, client_stack
from meshkit.stream import opening
from meshkit.telemetry.report import Called, Recent, called
from meshkit.transport import Transport

if TYPE_CHECKING:  # they load libraries that callers without them need not wait for
    from meshkit.layers.breaker import Breaker
    from meshkit.quota import Quota
    from meshkit.telemetry.traces.tracing import Tracer

# Subjects whose callees are remembered; the state of one that is forgotten begins anew.
_MOST = 4096
# Of them those whose calls are counted each by itself; those of all others are counted together.
_MOST_COUNTED = 256
# Policies of single calls, for each callee.
_MOST_POLICIES = 64

_Declared: TypeAlias = Endpoint[..., Any, Any]
_Key: TypeAlias = str | _Declared | tuple[_Declared, str]


class Callee:
    """An endpoint as one mesh sees it. All its subjects share its state.

    Attributes:
        target: Its subject or, with parameters, the pattern of its subjects.
        policy: The policy that holds for calls to it, every field set.
        sources: Where the policy is from, the weakest first.
        stands: Where each field of the policy stands.
        timeout: Seconds that a call may take.
        stack: What a call goes through.
    """

    def __init__(
        self,
        target: str,
        sources: list[Source],
        shared: Shared,
        build: Callable[[Effective, Shared, bool], Handler],
    ) -> None:
        self.target = target
        self.policy, self.stands = put_together(sources)
        self.timeout: float = self.policy.timeout
        self.stack = build(self.policy, shared, False)
        self.shared = shared
        self.sources = sources
        self._build = build
        self._with: dict[CallPolicy, Callee] = {}

    @functools.cached_property
    def opening(self) -> Handler:
        """What a request goes through that opens a stream."""
        return self._build(self.policy, self.shared, True)

    @property
    def statistics(self) -> CallStatistics:
        """What became of its calls, and what was done to keep them alive; many targets share the last one."""
        return self.shared.statistics

    @property
    def circuit(self) -> str:
        """The circuit breaker's state: `closed`, `open` or `half-open`."""
        return "closed" if self.shared.breaker is None else self.shared.breaker.state

    def under(self, policy: CallPolicy) -> "Callee":
        """The same callee, called by a policy that one call is given.

        Raises:
            TypeError: It is no CallPolicy.
            ValueError: The policy says something that all calls to a target share.
        """
        if not isinstance(policy, CallPolicy):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
            raise TypeError(expected("policy", CallPolicy, policy))
        known = self._with.get(policy)
        if known is None:
            if shared := [name for name in policy.said() if name in SHARED]:
                raise ValueError(
                    f"{shared[0]} is shared by all calls to {self.target!r}, and one call cannot have its "
                    "own; give it to connect(policies=...) or write it into a meshkit.toml"
                )
            while len(self._with) >= _MOST_POLICIES:
                del self._with[next(iter(self._with))]
            sources = [*self.sources, Source(policy, "this call")]
            known = self._with[policy] = Callee(self.target, sources, self.shared, self._build)
        return known


class Callees:
    """The callees of one mesh; `by_target` has those that are known.

    Args:
        transport: The connection that they are called on.
        send: Hands a request to it.
        caller: `service/instance` that calls, if it is a service.
        policies: The caller's own.
        directory: What services announce.
        tracer: Makes spans; None where nothing is traced.
    """

    def __init__(
        self,
        transport: Transport,
        send: Handler,
        *,
        caller: str | None,
        policies: Policies,
        directory: Directory,
        tracer: "Tracer | None" = None,
    ) -> None:
        self._transport = transport
        self._send = send
        self._caller = caller
        self._policies = policies
        self._directory = directory
        self._tracer = tracer
        # By subject; for those who have its declaration by endpoint, with its subject where policies differ.
        self._known: dict[_Key, Callee] = {}
        self.by_target: dict[str, Callee] = {}
        # Of each target: the policy for all its subjects, and the state that it asks for.
        self._states: dict[str, tuple[Effective, Shared]] = {}
        self._others = CallStatistics()
        self._recent = Recent()
        # On the way of every call.
        self.get = self._known.get
        directory.tell(self)

    def forget(self) -> None:
        """What services announce has changed: look again at the next call."""
        self._known.clear()

    def meet(self, subject: str, endpoint: Endpoint[..., Any, Any] | None = None) -> Callee:
        """The callee for a subject that is not known yet.

        Args:
            subject: Where the call goes.
            endpoint: Its declaration, where the caller has it.
        """
        key: _Key = subject
        if endpoint is not None:
            target, declared = endpoint.pattern.wire, endpoint.call_policies
            key = (endpoint, subject) if self._policies.distinguish(endpoint.pattern) else endpoint
        else:
            target, declared = self._directory.find(subject)
        sources = self._sources(declared, subject)
        callee = self.by_target.get(target)
        if callee is None or callee.sources != sources:
            self._make_room()
            shared = self._shared(target, self._sources(declared, target))
            callee = Callee(target, sources, shared, functools.partial(self._build, target))
        while len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[key] = self.by_target[target] = callee
        return callee

    def report(self) -> list[Called]:
        """What became of the calls of all targets that are not idle."""
        targets = [
            (target, callee.statistics, callee.circuit, callee.shared.bounds.concurrency)
            for target, callee in self.by_target.items()
            if callee.statistics is not self._others
        ]
        return called([*targets, (OTHER, self._others, "closed", None)], self._recent)

    @property
    def circuits(self) -> dict[str, str]:
        """The circuit breakers that are not closed, by target."""
        states = {target: callee.circuit for target, callee in self.by_target.items()}
        return {target: state for target, state in states.items() if state != "closed"}

    def _sources(self, declared: list[Source], subject: str) -> list[Source]:
        return [Source(CALL_DEFAULTS, "default"), *declared, *self._policies.for_call(subject)]

    def _make_room(self) -> None:
        """Forget the target that was met first and has nothing to remember: no open circuit, no counts."""
        while len(self.by_target) >= _MOST:
            known = self.by_target.items()
            closed = (target for target, callee in known if callee.circuit == "closed")
            # Looked at first: it takes as long as there are others before them, and those are few.
            uncounted = (
                target
                for target, callee in known
                if callee.statistics is self._others and callee.circuit == "closed"
            )
            target = next(uncounted, None) or next(closed, next(iter(self.by_target)))
            del self.by_target[target], self._states[target]

    def _build(self, target: str, policy: Effective, shared: Shared, streams: bool) -> Handler:
        return client_stack(
            opening(self._transport) if streams else self._send,
            target=target,
            link=self._transport,
            caller=self._caller,
            policy=policy,
            shared=shared,
            streams=streams,
            tracer=self._tracer,
        )

    def _shared(self, target: str, sources: list[Source]) -> Shared:
        """The state of a target. What its policy leaves as it was goes on.

        Args:
            target: Whose.
            sources: The policies for all its subjects.
        """
        policy, _ = put_together(sources)
        budget = RetryBudget(policy.retry_budget, policy.retry_reserve)
        before, state = self._states.get(target, (None, None))
        if state is None:
            is_counted = len(self._states) < _MOST_COUNTED
            state = Shared(budget, statistics=CallStatistics() if is_counted else self._others)
        # The stacks that there are go on with what they have.
        shared = replace(state, bounds=replace(state.bounds))
        self._states[target] = policy, shared

        def is_new(*fields: str) -> bool:
            return before is None or any(getattr(before, name) != getattr(policy, name) for name in fields)

        if is_new("retry_budget", "retry_reserve"):
            shared.budget = budget
        if is_new("breaker", *(name for name in SHARED if name.startswith("breaker"))):
            shared.breaker = self._breaker(target, policy, shared) if policy.breaker else None
        what = f"calls to {target}"
        if is_new("rate_limit"):
            shared.bounds.quota = self._quota(policy, what)
        if is_new("concurrency", "backlog"):
            many = policy.concurrency
            shared.bounds.concurrency = None if many is None else Concurrency(many, policy.backlog, what)
        return shared

    def _breaker(self, target: str, policy: Effective, shared: Shared) -> "Breaker":
        from meshkit.layers.breaker import Breaker

        return Breaker(
            target,
            failures=policy.breaker_failures,
            success=policy.breaker_success,
            calls=policy.breaker_calls,
            window=policy.breaker_window,
            open_first=policy.breaker_open,
            open_most=policy.breaker_open_most,
            statistics=shared.statistics,
        )

    def _quota(self, policy: Effective, what: str) -> "Quota | None":
        if policy.rate_limit is None:
            return None
        from meshkit.quota import quota

        return quota(policy.rate_limit, what, transport=self._transport)
