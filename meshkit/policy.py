"""Every knob: what a caller does to keep a call alive, and what a service does to protect itself.

A policy is the same in code, in a meshkit.toml and in what a service announces. What it leaves unsaid is
`UNSET` and comes from a weaker source. `docs/resilience.md` says what each knob does.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType

from meshkit.errors import ConfigError, DeclarationError
from meshkit.message import DEFAULT_TIMEOUT, LONGEST_TIMEOUT, PRIORITIES
from meshkit.subject import Pattern

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BY = re.compile(r"|caller|header:[!-9;-~]+|field:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WINDOWS = ("moving", "fixed", "sliding")
_SCOPES = ("instance", "mesh")


class _Kind:
    """What a field may be.

    Args:
        what: The end of the sentence "timeout is …".
        check: Gives the value as it is from then on; raises ValueError or TypeError if it is none.
        optional: Whether None, which switches it off, is one. TOML has no None, and says false.
    """

    def __init__(self, what: str, check: Callable[[Any], Any], *, optional: bool = False) -> None:
        self._what = what + (", or None (in a file: false)" if optional else "")
        self._check = check
        self._optional = optional
        self.is_duration = check in (seconds, _hedge)

    def check(self, name: str, value: Any) -> Any:
        """The value as it is from then on.

        Raises:
            ValueError: The field cannot have it.
        """
        if self._optional and (value is None or value is False):
            return None
        try:
            return self._check(value)
        except (TypeError, ValueError) as error:
            why = f"; {error}" if error.args else ""
            raise ValueError(f"{name} is {self._what}, not {value!r}{why}") from None


def seconds(value: object) -> float:
    """A duration: seconds, or text such as `250ms`, `1.5s`, `2m`, `1h`.

    Raises:
        ValueError: It is neither, or not above 0.
    """
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        value = float(found[1]) * _UNITS[found[2]] if found else None
    return _number(0, LONGEST_TIMEOUT, above=True)(value)


def _number(least: float, most: float, *, above: bool = False) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError
        if above and value == least:
            raise ValueError
        return float(value)

    return check


def _count(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError
        return value

    return check


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _codes(value: Any) -> tuple[int, ...]:
    check = _count(400)
    return tuple(check(code) for code in value)


def _hedge(value: object) -> float | str:
    return "p95" if value == "p95" else seconds(value)


def _one_of(*allowed: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value not in allowed:
            raise ValueError
        return value

    return check


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many calls are let through.

    Args:
        limits: `"100/second"`, `"5 per 2 minutes"`, or several of them, all of which hold.
        by: What each limit counts by: everything together, if empty; `caller`, the calling service;
            `header:NAME`; or `field:NAME` of the message, `field:guest.id` within one.
        window: `moving` is exact: never more than the limit in any such time. `fixed` counts from a first
            call on, and may let through twice as many around the end. `sliding` estimates from two counters
            what `moving` keeps an entry of each call for.
        scope: `instance`: each instance counts for itself. `mesh`: one limit for all instances together, kept
            by JetStream, with a fixed window that begins by the server's clock.

    Raises:
        ValueError: One of them is not like that; the text says what to write.
    """

    limits: str | tuple[str, ...]
    by: str = ""
    window: str | UnsetType = UNSET
    scope: str = "instance"

    def __str__(self) -> str:
        parts = list(self.limits)
        if self.by:
            parts.append(f"by {self.by}")
        if self.scope == "mesh":
            parts.append("scope mesh")
        elif self.window != "moving":
            parts.append(f"{self.window} window")
        return ", ".join(parts)

    def __post_init__(self) -> None:
        given = self.limits
        limits = (given,) if isinstance(given, str) else tuple(given)
        if not limits:
            raise ValueError("a rate limit is text such as '100/second', or several")
        for limit in limits:
            _check_limit(limit)
        if not isinstance(self.by, str) or not _BY.fullmatch(self.by):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses a type checker
            raise ValueError(f"by is empty, 'caller', 'header:NAME' or 'field:NAME', not {self.by!r}")
        if self.scope not in _SCOPES:
            raise ValueError(f"scope is {' or '.join(_SCOPES)}, not {self.scope!r}")
        window = ("fixed" if self.scope == "mesh" else "moving") if self.window is UNSET else self.window
        if window not in _WINDOWS:
            raise ValueError(f"window is {', '.join(_WINDOWS)}, not {window!r}")
        if self.scope == "mesh" and window != "fixed":
            raise ValueError("a limit of scope 'mesh' has a fixed window")
        msgspec.structs.force_setattr(self, "limits", limits)
        msgspec.structs.force_setattr(self, "window", window)


@functools.lru_cache(maxsize=256)
def _check_limit(limit: str) -> None:
    # Who limits nothing need not wait for its import, which takes 40 ms.
    from limits import parse_many

    try:
        amounts = [item.amount for item in parse_many(limit)]
    except (ValueError, TypeError, AttributeError):
        amounts = [0]
    if min(amounts) < 1:
        raise ValueError(f"a rate limit is text such as '100/second' or '5 per 2 minutes', not {limit!r}")


def _rate_limit(value: Any) -> RateLimit:
    if isinstance(value, Mapping):
        table = cast("dict[str, Any]", value)
        if unknown := sorted(set(table).difference(RateLimit.__struct_fields__)):
            raise ValueError(f"{unknown[0]} is none of {', '.join(RateLimit.__struct_fields__)}")
        return RateLimit(**table)
    return value if isinstance(value, RateLimit) else RateLimit(value)


_SECONDS = "seconds above 0, or text such as '250ms'"
_LIMIT = "text such as '100/second', several of them, or limits with by, window and scope"
_FROM_ONE = "a whole number from 1"
_Duration: TypeAlias = Annotated[float | str | UnsetType, _Kind(_SECONDS, seconds)]
_DurationOrNone: TypeAlias = Annotated[
    float | str | UnsetType | None, _Kind(_SECONDS, seconds, optional=True)
]
_Count: TypeAlias = Annotated[int | UnsetType, _Kind("a whole number from 0", _count(0))]
_Positive: TypeAlias = Annotated[int | UnsetType, _Kind(_FROM_ONE, _count(1))]
_PositiveOrNone: TypeAlias = Annotated[int | UnsetType | None, _Kind(_FROM_ONE, _count(1), optional=True)]
_Share: TypeAlias = Annotated[float | UnsetType, _Kind("a number from 0 to 1", _number(0, 1))]
_Rate: TypeAlias = Annotated[float | UnsetType, _Kind("a number from 0", _number(0, LONGEST_TIMEOUT))]
_Flag: TypeAlias = Annotated[bool | UnsetType, _Kind("true or false", _flag)]
_Codes: TypeAlias = Annotated[
    tuple[int, ...] | UnsetType, _Kind("a list of error codes, numbers from 400", _codes)
]
_Hedge: TypeAlias = Annotated[
    float | str | UnsetType | None, _Kind(f"{_SECONDS}, or 'p95'", _hedge, optional=True)
]
_Limit: TypeAlias = Annotated[
    RateLimit | str | tuple[str, ...] | UnsetType | None, _Kind(_LIMIT, _rate_limit, optional=True)
]
_Priority: TypeAlias = Annotated[
    Literal["critical", "default", "sheddable"] | UnsetType | None,
    _Kind(" or ".join(map(repr, PRIORITIES)), _one_of(*PRIORITIES), optional=True),
]


class _Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What both policies have in common: each field is checked, whoever makes them."""

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if value is not UNSET:
                msgspec.structs.force_setattr(self, name, kind.check(name, value))

    def said(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not UNSET}


class CallPolicy(_Policy, frozen=True, kw_only=True):
    """What a caller does to keep a call alive. Durations are seconds, or text such as `"250ms"`.

    Args:
        timeout: How long a call may take in all, every attempt included.
        idempotent: Whether executing the call twice does no harm. An endpoint declares it of itself.
        attempt_timeout: How long one attempt may take; None for all the time there is. Of calls that are not
            idempotent it is left out: they could not be tried again.
        retries: How many attempts may follow the first.
        retry_codes: Of idempotent calls, which answered errors are tried again, beside those that may be
            without being idempotent.
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

    timeout: _Duration = UNSET
    idempotent: _Flag = UNSET
    attempt_timeout: _DurationOrNone = UNSET
    retries: _Count = UNSET
    retry_codes: _Codes = UNSET
    retry_delay: _Duration = UNSET
    retry_delay_most: _Duration = UNSET
    retry_budget: _Share = UNSET
    retry_reserve: _Rate = UNSET
    hedge: _Hedge = UNSET
    breaker: _Flag = UNSET
    breaker_failures: _Positive = UNSET
    breaker_success: _Share = UNSET
    breaker_calls: _Positive = UNSET
    breaker_window: _Duration = UNSET
    breaker_open: _Duration = UNSET
    breaker_open_most: _Duration = UNSET
    rate_limit: _Limit = UNSET
    concurrency: _PositiveOrNone = UNSET
    backlog: _Count = UNSET
    priority: _Priority = UNSET


class ServePolicy(_Policy, frozen=True, kw_only=True):
    """What a service does to protect itself, as a whole or one of its endpoints.

    Args:
        timeout: How long handling a call may take, whatever the caller says; None for as long as it says.
        rate_limit: How many calls are let through; what is too many is refused as `RateLimited`.
        concurrency: How many calls are handled at a time; None for no bound of the endpoint's own.
        adaptive: Whether that number follows what the latency says, up to `concurrency`.
        backlog: How many more wait for their turn.

    Raises:
        ValueError: A field cannot have its value; the text says which one, and what it may have.
    """

    timeout: _DurationOrNone = UNSET
    rate_limit: _Limit = UNSET
    concurrency: _PositiveOrNone = UNSET
    adaptive: _Flag = UNSET
    backlog: _Count = UNSET


@functools.cache
def _kinds(policy: type[_Policy]) -> dict[str, _Kind]:
    hints = get_type_hints(policy, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in policy.__struct_fields__}


def in_words(policy: type[_Policy], name: str, value: Any) -> str:
    """A field's value as a person reads it: `250ms`, not 0.25."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float() if _kinds(policy)[name].is_duration:
            return _duration(value)
        case float():
            return f"{value:.12g}"
        case tuple():
            return ", ".join(map(str, cast("tuple[object, ...]", value)))
        case _:
            return str(value)


def _duration(value: float) -> str:
    """Seconds as text that `seconds` reads."""
    for unit in ("h", "m"):
        if value >= _UNITS[unit] and value % _UNITS[unit] == 0:
            return f"{value / _UNITS[unit]:.0f}{unit}"
    return f"{value:.12g}s" if value >= 1 else f"{value * 1000:.12g}ms"


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
SERVICE_DEFAULTS = ServePolicy(timeout=None, rate_limit=None, concurrency=256, adaptive=False, backlog=256)
# What an endpoint has of its own, within its service's bounds.
ENDPOINT_DEFAULTS = ServePolicy(timeout=None, rate_limit=None, concurrency=None, adaptive=False, backlog=256)

P = TypeVar("P", bound=_Policy)

# What all calls to a target share; one call cannot have its own.
SHARED = (
    *("retry_budget", "retry_reserve", "breaker_failures", "breaker_success", "breaker_calls"),
    *("breaker_window", "breaker_open", "breaker_open_most", "rate_limit", "concurrency", "backlog"),
)


def read(kind: type[P], table: object, where: str) -> P:
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


def declared(policy: P | None, kind: type[P], where: str, **given: Any) -> P:
    """A policy and what is given beside it, as one.

    Args:
        policy: What `call=` or `serve=` says.
        kind: CallPolicy or ServePolicy.
        where: The beginning of the error's text.
        given: What arguments of their own say; UNSET for those that say nothing.

    Raises:
        DeclarationError: Both say something of the same field, or a value is none.
    """
    said = {} if policy is None else policy.said()
    given = {name: value for name, value in given.items() if value is not UNSET}
    if twice := sorted(said.keys() & given.keys()):
        raise DeclarationError(f"{where}: {twice[0]} is given twice, by itself and in its {kind.__name__}")
    try:
        return kind(**said, **given)
    except ValueError as error:
        raise DeclarationError(f"{where}: {error}") from None


class Effective(SimpleNamespace):
    """A policy with every field set: `effective.timeout` and so on."""

    def __getattr__(self, name: str) -> Any:
        """For the type checker: fields have types of their own."""
        raise AttributeError(name)


class Source(msgspec.Struct, frozen=True):
    """A policy and where it stands.

    Attributes:
        policy: The policy.
        where: What a reader is told of where it stands.
    """

    policy: _Policy
    where: str


def put_together(sources: Iterable[Source]) -> tuple[Effective, dict[str, str]]:
    """What holds when several policies apply, and where each field of it stands.

    Args:
        sources: The weakest first.
    """
    values: dict[str, Any] = {}
    stands: dict[str, str] = {}
    for source in sources:
        said = source.policy.said()
        values |= said
        stands |= dict.fromkeys(said, source.where)
    return Effective(**values), stands


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Policies by the subjects that they are for, as a meshkit.toml has them.

    Attributes:
        call: For calls to the subjects that match a pattern.
        serve: For endpoints whose subjects match.
        where: What a reader is told of where they stand.

    Raises:
        DeclarationError: A pattern is none.
    """

    call: dict[str, CallPolicy] = {}
    serve: dict[str, ServePolicy] = {}
    where: str = "connect(policies=...)"

    def __post_init__(self) -> None:
        for pattern in (*self.call, *self.serve):
            Pattern(pattern)

    def for_call(self, subject: str) -> list[Source]:
        """The policies for calls to a subject, or to the subjects of a pattern; the weakest first."""
        return self._matching("call", self.call, subject)

    def for_endpoint(self, subject: str) -> list[Source]:
        """The policies for an endpoint; the weakest first."""
        return self._matching("serve", self.serve, subject)

    def distinguish(self, pattern: Pattern) -> bool:
        """Whether a policy is for some of the subjects of a pattern, and not for others."""
        return any(
            Pattern(one).overlaps(pattern) and not Pattern(one).covers(pattern.wire) for one in self.call
        )

    def _matching(self, kind: str, policies: Mapping[str, _Policy], subject: str) -> list[Source]:
        matching = [pattern for pattern in policies if Pattern(pattern).covers(subject)]
        return [
            Source(policies[pattern], f'{self.where} [{kind}."{pattern}"]')
            for pattern in sorted(matching, key=lambda pattern: Pattern(pattern).precision)
        ]


NO_POLICIES = Policies()


def policies(content: Mapping[str, Any], where: str) -> Policies:
    """The `[call."…"]` and `[serve."…"]` tables of a file.

    Args:
        content: The file, or those two tables of it.
        where: The file's name.

    Raises:
        ConfigError: A table, a pattern or a field in it is wrong; the text says which one.
    """
    return Policies(
        _tables(CallPolicy, "call", content.get("call", {}), where),
        _tables(ServePolicy, "serve", content.get("serve", {}), where),
        where,
    )


def _tables(kind: type[P], name: str, tables: object, where: str) -> dict[str, P]:
    found: dict[str, P] = {}
    named = cast("Mapping[str, object]", tables) if isinstance(tables, Mapping) else {"": tables}
    for pattern, table in named.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f'{where}: write [{name}."subject.pattern"] with the fields below it')
        here = f'{where}, [{name}."{pattern}"]'
        fields = cast("Mapping[str, object]", table)
        for key, value in fields.items():
            # What TOML makes of [call.hotel.rooms].
            if key not in kind.__struct_fields__ and isinstance(value, Mapping):
                raise ConfigError(f'{here}: a subject stands in quotes: [{name}."{pattern}.{key}"]')
        try:
            Pattern(pattern)
        except DeclarationError as error:
            raise ConfigError(f"{here}: {error}") from None
        found[pattern] = read(kind, fields, here)
    return found


def load(file: Path) -> Policies:
    """The policies of a meshkit.toml.

    Raises:
        ConfigError: It cannot be read, or something in it is wrong; the text says what.
    """
    return policies(toml(file), str(file))


def toml(file: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    try:
        return msgspec.toml.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
