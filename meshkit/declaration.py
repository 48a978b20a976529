"""What may be declared: each check gives the value back, or raises a sentence that says what to write."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from meshkit.discovery.protocol import NAME, VERSION
from meshkit.errors import DeclarationError, shortened
from meshkit.message import LONGEST_TIMEOUT
from meshkit.subject import problem

_LONGEST_NAME = 200


def check_function(what: str, function: object) -> str:
    """The function's name."""
    if not inspect.isroutine(function):
        raise DeclarationError(f"{what} {function!r} is no function; decorate an `async def` or a `def`")
    return function.__name__


def check_parentheses(decorator: str, subject: object) -> None:
    """Not a decorator without its parentheses, which would get the function in place of a subject."""
    if callable(subject):
        raise DeclarationError(f"write @service.{decorator}(...), with parentheses")


def check_name(what: str, name: str) -> str:
    """A name of a service or an endpoint."""
    if not (_is(name, str) and NAME.match(name) and len(name) <= _LONGEST_NAME):
        proposed = re.sub(r"[^A-Za-z0-9_-]+", "-", str(name))[:_LONGEST_NAME] or what
        raise DeclarationError(
            f"{what} name {shortened(str(name), 50)!r} may hold letters, digits, - and _ only, "
            f"{_LONGEST_NAME} at most; write {proposed!r}"
        )
    return name


def check_version(version: str) -> str:
    """A semantic version."""
    if not (_is(version, str) and VERSION.match(version)):
        raise DeclarationError(f"version {version!r} is no semantic version; write one like 1.0.0")
    return version


def check_queue(queue: str | None) -> str | None:
    """A queue group, or None for none."""
    wrong = None if queue is None else problem(queue) if _is(queue, str) else "is no text"
    if wrong:
        raise DeclarationError(f"queue group {queue!r} {wrong}; write None for no queue group")
    return queue


def check_metadata(
    where: str, metadata: Mapping[str, str] | None, taken: Collection[str] = ()
) -> Mapping[str, str]:
    """Metadata as it is from now on; the keys that are taken are not the declaration's."""
    try:
        checked = msgspec.convert(metadata or {}, dict[str, str])
    except msgspec.ValidationError as error:
        raise DeclarationError(f"{where}: metadata maps strings to strings: {error}") from None
    for key in checked:
        if key in taken:
            raise DeclarationError(f"{where}: metadata {key!r} is written by meshkit; choose another key")
    return MappingProxyType(checked)


def check_seconds(what: str, value: float | None) -> float | None:
    """Seconds, or None."""
    if value is not None and not (_is(value, int | float) and 0 < value <= LONGEST_TIMEOUT):
        raise DeclarationError(f"{what} is a number of seconds above 0, not {value!r}")
    return value


def check_count(what: str, value: int, *, least: int = 1) -> int:
    """A whole number, `least` or more."""
    if not _is(value, int) or value < least:
        raise DeclarationError(f"{what} is a whole number from {least}, not {value!r}")
    return value


def _is(value: object, kind: Any) -> bool:
    """Whether it is of that type; not everybody has a type checker."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_parameters(what: str, function: Callable[..., Any], argument: str) -> None:
    """Not more than one parameter, which gets `argument`."""
    if len(inspect.signature(function).parameters) > 1:
        raise DeclarationError(f"{what} {function.__name__}() takes at most one argument, {argument}")
