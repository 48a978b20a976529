"""Policies of several sources: for which subjects each is, and what holds when several apply."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from meshkit.errors import ConfigError, DeclarationError, shortened
from meshkit.policy import (
    ENDPOINT_DEFAULTS,
    UNBOUND_ADAPTIVE,
    CallPolicy,
    Policy,
    PolicyT,
    ServePolicy,
    expected,
    read,
)
from meshkit.subject import Pattern

# What may stand at the top of a meshkit.toml; `meshkit run` reads the first two.
_TOP = ("services", "nats", "call", "serve")


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

    policy: Policy
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


def served(sources: Iterable[Source], subject: str) -> Effective:
    """What holds for an endpoint that is served.

    Args:
        sources: What is said of it, the weakest first.
        subject: The endpoint's, for the error's text.

    Raises:
        ConfigError: What several of them say cannot be together.
    """
    policy, stands = put_together([Source(ENDPOINT_DEFAULTS, "default"), *sources])
    if policy.adaptive and policy.concurrency is None:
        raise ConfigError(f"{stands['adaptive']}, for {subject!r}: {UNBOUND_ADAPTIVE}")
    return policy


class Policies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Policies by the subjects that they are for, as a meshkit.toml has them.

    Attributes:
        call: For calls to the subjects that match a pattern.
        serve: For endpoints whose subjects match.
        where: What a reader is told of where they stand.

    Raises:
        DeclarationError: A pattern, or a policy, is none.
    """

    call: dict[str, CallPolicy] = {}
    serve: dict[str, ServePolicy] = {}
    where: str = "connect(policies=...)"

    def __post_init__(self) -> None:
        _check("call", CallPolicy, self.call)
        _check("serve", ServePolicy, self.serve)

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

    def _matching(self, kind: str, policies: Mapping[str, Policy], subject: str) -> list[Source]:
        matching = [pattern for pattern in policies if Pattern(pattern).covers(subject)]
        return [
            Source(policies[pattern], f'{self.where} [{kind}."{pattern}"]')
            for pattern in sorted(matching, key=lambda pattern: Pattern(pattern).precision)
        ]


def _check(name: str, kind: type[Policy], given: object) -> None:
    if not isinstance(given, Mapping):
        raise DeclarationError(
            f"Policies: {name} maps subject patterns to policies, "
            f"such as {{'rooms.>': {kind.__name__}(timeout='1s')}}, not {shortened(repr(given), 200)}"
        )
    for pattern, policy in cast("Mapping[Any, object]", given).items():
        Pattern(pattern)
        if not isinstance(policy, kind):
            raise DeclarationError(f"Policies: {expected(f'{name}[{pattern!r}]', kind, policy)}")


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


def _tables(kind: type[PolicyT], name: str, tables: object, where: str) -> dict[str, PolicyT]:
    found: dict[str, PolicyT] = {}
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
    """What a meshkit.toml holds.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has something at its top that no meshkit.toml has.
    """
    try:
        content: dict[str, Any] = msgspec.toml.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    if unknown := [name for name in content if name not in _TOP]:
        raise ConfigError(f"{file}: unknown field {unknown[0]!r}; the fields here are {', '.join(_TOP)}")
    return content
