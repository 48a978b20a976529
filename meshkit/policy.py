"""Every knob: what a caller does to keep a call alive, and what a service does to protect itself.

A policy is the same in code, in a meshkit.toml and in what a service announces. What it leaves unsaid is
`UNSET` and comes from a weaker source. `docs/resilience.md` says what each knob does.
"""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_type_hints

import msgspec
from msgspec import UNSET

from meshkit.errors import ConfigError, DeclarationError, shortened
from meshkit.knobs import (
    Codes,
    Count,
    Duration,
    DurationOrNone,
    Flag,
    Hedge,
    Kind,
    Limit,
    Positive,
    PositiveOrNone,
    Priority,
    Rate,
    Share,
    in_units,
)
from meshkit.message import DEFAULT_TIMEOUT


class Policy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    repr_omit_defaults=True,
    forbid_unknown_fields=True,
):
    """What both policies have in common: each field is checked, whoever makes them."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if value is not UNSET:
                msgspec.structs.force_setattr(self, name, kind.check(name, value))

    def said(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


class CallPolicy(Policy, frozen=True, kw_only=True):
    """What a caller does to keep a call alive. Durations are seconds, or text such as `"250ms"`.

    Args:
        timeout: How long a call may take in all, every attempt included.
        idempotent: Whether executing the call twice does no harm. An endpoint declares it of itself.
        attempt_timeout: How long one attempt may take; None for all the time there is. Of calls that are not
            idempotent it is left out: they could not be tried again.
        retries: How many attempts may follow the first.
        retry_codes: Of idempotent calls, which answered errors are tried again, beside those that may be
            without being idempotent; 100 at most.
        retry_delay: The most to wait before the second attempt; it doubles with each, and the wait is random
            between nothing and that.
        retry_delay_most: What it doubles up to.
        retry_budget: How many retries and hedges there may be, as a share of the calls of the last 10 s.
        retry_reserve: So many a second there may be in any case.
        hedge: Of idempotent calls, after how long a second copy is sent and the first answer taken; "p95" for
            the time that 95 % of the latest calls took; None for never.
        breaker: Whether there is a circuit breaker.
        breaker_failures: How many failures in a row open it.
        breaker_success: Which share of successes opens it when it falls below.
        breaker_calls: Of how many calls at least, within the last `breaker_window`.
        breaker_window: How far back successes and failures count.
        breaker_open: How long it stays open, at first; it doubles each time that the next call fails too.
        breaker_open_most: What that doubles up to.
        rate_limit: How many messages are sent; what is too many fails as `RateLimited`.
        concurrency: How many calls may be on their way at a time; None for any number.
        backlog: How many more may wait for their turn.
        priority: `critical`, `default` or `sheddable`: what is refused last and first by a callee that has
            too much to do. None for that of the call being handled.

    Raises:
        ValueError: A field cannot have its value; the text says which one, and what it may have.
    """

    timeout: Duration = UNSET
    idempotent: Flag = UNSET
    attempt_timeout: DurationOrNone = UNSET
    retries: Count = UNSET
    retry_codes: Codes = UNSET
    retry_delay: Duration = UNSET
    retry_delay_most: Duration = UNSET
    retry_budget: Share = UNSET
    retry_reserve: Rate = UNSET
    hedge: Hedge = UNSET
    breaker: Flag = UNSET
    breaker_failures: Positive = UNSET
    breaker_success: Share = UNSET
    breaker_calls: Positive = UNSET
    breaker_window: Duration = UNSET
    breaker_open: Duration = UNSET
    breaker_open_most: Duration = UNSET
    rate_limit: Limit = UNSET
    concurrency: PositiveOrNone = UNSET
    backlog: Count = UNSET
    priority: Priority = UNSET


class ServePolicy(Policy, frozen=True, kw_only=True):
    """What a service does to protect itself, as a whole or one of its endpoints, and what it logs.

    Args:
        timeout: How long handling a call may take, whatever the caller says; None for as long as it says.
        rate_limit: How many calls are let through; what is too many is refused as `RateLimited`.
        concurrency: How many calls are handled at a time; None for no bound of the endpoint's own. A service
            as a whole always has one.
        adaptive: Whether that number follows what the latency says, up to `concurrency`, which it needs.
        backlog: How many more wait for their turn.
        access_log: Which share of the calls gets a line in the access log, such as `"10%"`; if any do, all
            that fail with a code from 500 on do.

    Raises:
        ValueError: A field cannot have its value; the text says which one, and what it may have.
    """

    timeout: DurationOrNone = UNSET
    rate_limit: Limit = UNSET
    concurrency: PositiveOrNone = UNSET
    adaptive: Flag = UNSET
    backlog: Count = UNSET
    access_log: Share = UNSET


@functools.cache
def _kinds(policy: type[Policy]) -> dict[str, Kind]:
    hints = get_type_hints(policy, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in policy.__struct_fields__}


def in_words(policy: type[Policy], name: str, value: Any) -> str:
    """A field's value as a person reads it: `250ms`, not 0.25."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float() if _kinds(policy)[name].is_duration:
            return in_units(value)
        case float():
            return f"{value:.12g}"
        case tuple():
            return ", ".join(map(str, cast("tuple[object, ...]", value)))
        case _:
            return str(value)


CALL_DEFAULTS = CallPolicy(
    timeout=DEFAULT_TIMEOUT,
    idempotent=False,
    attempt_timeout=None,
    retries=2,
    retry_codes=(500,),
    retry_delay=0.025,
    retry_delay_most=0.25,
    retry_budget=0.2,
    retry_reserve=10,
    hedge=None,
    breaker=True,
    breaker_failures=7,
    breaker_success=0.8,
    breaker_calls=5,
    breaker_window=10,
    breaker_open=1,
    breaker_open_most=60,
    rate_limit=None,
    concurrency=None,
    backlog=100,
    priority=None,
)
SERVICE_DEFAULTS = ServePolicy(
    timeout=None, rate_limit=None, concurrency=256, adaptive=False, backlog=256, access_log=0
)
# What an endpoint has of its own, within its service's bounds.
ENDPOINT_DEFAULTS = ServePolicy(
    timeout=None, rate_limit=None, concurrency=None, adaptive=False, backlog=256, access_log=0
)

PolicyT = TypeVar("PolicyT", bound=Policy)

# What all calls to a target share; one call cannot have its own.
SHARED = (
    *("retry_budget", "retry_reserve", "breaker_failures", "breaker_success", "breaker_calls"),
    *("breaker_window", "breaker_open", "breaker_open_most", "rate_limit", "concurrency", "backlog"),
)


def read(kind: type[PolicyT], table: object, where: str) -> PolicyT:
    """A policy from a table of a file, or of an announcement.

    Args:
        kind: CallPolicy or ServePolicy.
        table: Names to values.
        where: The beginning of the error's text.

    Raises:
        ConfigError: The table has a field that is unknown, or a value that its field cannot have.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: a policy is a table of fields, not {table!r}")
    table = cast("Mapping[str, Any]", table)
    if unknown := [name for name in table if name not in kind.__struct_fields__]:
        raise ConfigError(
            f"{where}: unknown field {unknown[0]!r}; the fields here are {', '.join(kind.__struct_fields__)}"
        )
    try:
        return kind(**table)
    except ValueError as error:
        raise ConfigError(f"{where}, {error}") from None


def expected(what: str, kind: type[Policy], given: object) -> str:
    """What to tell who gave something else where a policy belongs."""
    name = kind.__name__
    return f"{what} is a {name}, such as {name}(timeout='1s'), not {shortened(repr(given), 200)}"


# A service has a bound in any case.
UNBOUND_SERVICE = (
    "concurrency is a whole number from 1 for a service as a whole; leave it out for "
    f"{SERVICE_DEFAULTS.concurrency}"
)
# There is nothing that it would be up to.
UNBOUND_ADAPTIVE = "adaptive needs concurrency, the most that it may be; give both"


def declared(policy: Policy | None, kind: type[PolicyT], where: str, **given: Any) -> PolicyT:
    """A policy and what is given beside it, as one.

    Args:
        policy: What `call=` or `serve=` says.
        kind: CallPolicy or ServePolicy.
        where: The beginning of the error's text.
        given: What arguments of their own say; UNSET for those that say nothing.

    Raises:
        DeclarationError: The policy is none of that kind, both say something of the same field, or a value
            is none.
    """
    if policy is not None and not isinstance(policy, kind):
        argument = "call" if kind is CallPolicy else "serve"
        raise DeclarationError(f"{where}: {expected(argument, kind, policy)}")
    said = {} if policy is None else policy.said()
    given = {name: value for name, value in given.items() if value is not UNSET}
    if twice := sorted(said.keys() & given.keys()):
        raise DeclarationError(f"{where}: {twice[0]} is given twice, by itself and in its {kind.__name__}")
    try:
        return kind(**said, **given)
    except ValueError as error:
        raise DeclarationError(f"{where}: {error}") from None
