"""What the fields of a policy may be: each kind checks a value, and says in a sentence what would be one."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec
from msgspec import UNSET, UnsetType

from meshkit.errors import shortened
from meshkit.message import LONGEST_TIMEOUT, PRIORITIES

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SHORTEST = 1e-6  # seconds; what is less could not be read back from what `in_words` writes
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BY = re.compile(r"|caller|header:[!-9;-~]+|field:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WINDOWS = ("moving", "fixed", "sliding")
_SCOPES = ("instance", "mesh")
_NO_TIME = re.compile(r"(?:/|per)\s*0+(?!\d)", re.IGNORECASE)
# Policies are also what strangers announce: they stay small, and `limits` takes long to read long texts.
_MOST_CODES = 100
_MOST_LIMITS = 10
_LONGEST_TEXT = 100


class Kind:
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
            # A TypeError is in Python's own words.
            why = f"; {error}" if isinstance(error, ValueError) and error.args else ""
            raise ValueError(f"{name} is {self._what}, not {shortened(repr(value), 200)}{why}") from None


def seconds(value: object) -> float:
    """A duration: seconds, or text such as `250ms`, `1.5s`, `2m`, `1h`, `7d`.

    Raises:
        ValueError: It is neither, or less than a microsecond.
    """
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        value = float(found[1]) * UNITS[found[2]] if found else None
    number = _number(0, LONGEST_TIMEOUT)(value)
    if number == 0:
        raise ValueError
    if number < _SHORTEST:
        raise ValueError("the least is a microsecond")
    return number


def in_units(value: float) -> str:
    """Seconds as text such as `250ms`, which `seconds` reads."""
    for unit in ("d", "h", "m"):
        if value >= UNITS[unit] and value % UNITS[unit] == 0:
            return f"{value / UNITS[unit]:.0f}{unit}"
    return f"{value:.12g}s" if value >= 1 else f"{value * 1000:.12g}ms"


def share(value: object) -> float:
    """A share: a number from 0 to 1, or text such as `10%`.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value.strip())
        value = float(found[1]) / 100 if found else None
    return _number(0, 1)(value)


def _number(least: float, most: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
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
    codes = tuple(check(code) for code in value)
    if len(codes) > _MOST_CODES:
        raise ValueError(f"there may be {_MOST_CODES} at most")
    return codes


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
        limits: `"100/second"`, `"5 per 2 minutes"`, or several of them, ten at most, all of which hold.
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
        # Not everybody uses a type checker.
        given, by = cast("object", self.limits), cast("object", self.by)
        limits = tuple(cast("list[object]", given)) if isinstance(given, list | tuple) else (given,)
        if not 0 < len(limits) <= _MOST_LIMITS:
            raise ValueError(f"a rate limit is text such as '100/second', or several, {_MOST_LIMITS} at most")
        for limit in limits:
            if not isinstance(limit, str) or len(limit) > _LONGEST_TEXT or not _is_limit(limit):
                raise ValueError(
                    "a rate limit is text such as '100/second' or '5 per 2 minutes', not "
                    + shortened(repr(limit), 50)
                )
        if not isinstance(by, str) or len(by) > _LONGEST_TEXT or not _BY.fullmatch(by):
            raise ValueError(
                "by is empty, 'caller', 'header:NAME' or 'field:NAME', not " + shortened(repr(by), 50)
            )
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
def _is_limit(limit: str) -> bool:
    # Who limits nothing need not wait for its import, which takes 40 ms.
    from limits import parse_many

    try:
        amounts = [item.amount for item in parse_many(limit)]
    except ValueError:
        return False
    # It takes `5 per 0 minutes` for one minute.
    return min(amounts) > 0 and not _NO_TIME.search(limit)


def _rate_limit(value: Any) -> RateLimit:
    if isinstance(value, Mapping):
        table = cast("dict[str, Any]", value)
        if unknown := sorted(set(table).difference(RateLimit.__struct_fields__)):
            raise ValueError(f"{unknown[0]} is none of {', '.join(RateLimit.__struct_fields__)}")
        return RateLimit(**table)
    if isinstance(value, str | list | tuple):
        return RateLimit(cast("Any", value))
    if not isinstance(value, RateLimit):
        raise TypeError
    return value


_SECONDS = "seconds above 0, or text such as '250ms'"
_LIMIT = "text such as '100/second', several of them, or limits with by, window and scope"
_FROM_ONE = "a whole number from 1"
DURATION = Kind(_SECONDS, seconds)
Duration: TypeAlias = Annotated[float | str | UnsetType, DURATION]
DurationOrNone: TypeAlias = Annotated[float | str | UnsetType | None, Kind(_SECONDS, seconds, optional=True)]
Count: TypeAlias = Annotated[int | UnsetType, Kind("a whole number from 0", _count(0))]
Positive: TypeAlias = Annotated[int | UnsetType, Kind(_FROM_ONE, _count(1))]
PositiveOrNone: TypeAlias = Annotated[int | UnsetType | None, Kind(_FROM_ONE, _count(1), optional=True)]
Share: TypeAlias = Annotated[
    float | str | UnsetType, Kind("a number from 0 to 1, or text such as '10%'", share)
]
Rate: TypeAlias = Annotated[float | UnsetType, Kind("a number from 0", _number(0, LONGEST_TIMEOUT))]
Flag: TypeAlias = Annotated[bool | UnsetType, Kind("true or false", _flag)]
Codes: TypeAlias = Annotated[
    tuple[int, ...] | UnsetType, Kind("a list of error codes, numbers from 400", _codes)
]
Hedge: TypeAlias = Annotated[
    float | str | UnsetType | None, Kind(f"{_SECONDS}, or 'p95'", _hedge, optional=True)
]
Limit: TypeAlias = Annotated[
    RateLimit | str | tuple[str, ...] | UnsetType | None, Kind(_LIMIT, _rate_limit, optional=True)
]
Priority: TypeAlias = Annotated[
    Literal["critical", "default", "sheddable"] | UnsetType | None,
    Kind(" or ".join(map(repr, PRIORITIES)), _one_of(*PRIORITIES), optional=True),
]
