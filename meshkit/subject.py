"""Subjects: what is a valid one, what a pattern with `{tokens}` means, and nothing smuggled through a token.

A subject is tokens separated by dots (https://docs.nats.io/nats-concepts/subjects). In a pattern `*` stands
for one token, `>` for one or more at the end, and meshkit's `{name}` for one that is given to the handler.
"""

import functools
import hashlib
import keyword
import re
from collections.abc import Mapping

from meshkit.errors import BadRequest, DeclarationError, shortened

_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f\ud800-\udfff]")
# Bytes.
LONGEST = 1000
_UNREADABLE = re.compile(r"[^\w-]", re.ASCII)
# Characters of a text that is made one.
_LONGEST_TOKEN = 64
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_RESERVED = ("$SRV", "$SYS", "$JS", "$KV", "$O", "_INBOX", "_MESH")


def problem(subject: str, *, wildcards: bool = False) -> str | None:
    """What is wrong with a subject, as the end of a sentence, or None.

    Args:
        subject: The subject or, with `wildcards`, the pattern.
        wildcards: Whether `*` and `>` are allowed where they have a meaning.
    """
    if not subject:
        return "is empty"
    if _UNSAFE.search(subject):
        return "contains white space or control characters"
    if len(subject.encode("utf-8", "surrogatepass")) > LONGEST:
        # One line of the protocol has 4,096 bytes; a longer one ends the connection for everybody on it.
        return f"is longer than {LONGEST:,} bytes"
    tokens = subject.split(".")
    if "" in tokens:
        return "has an empty token (a dot at an end, or two in a row)"
    if not wildcards:
        return "contains a wildcard" if "*" in subject or ">" in subject else None
    if ">" in tokens[:-1]:
        return "has `>` before its end"
    for token in tokens:
        if len(token) > 1 and ("*" in token or ">" in token):
            return f"has a wildcard inside the token {token!r}: a wildcard is a token of its own"
    return None


@functools.lru_cache(maxsize=4096)
def check(subject: str) -> str:
    """A subject to send to, as it is.

    Raises:
        ValueError: It is not one that a message can be sent to.
    """
    if wrong := problem(subject):
        raise ValueError(f"subject {shortened(subject, 100)!r} {wrong}")
    return subject


def covers(pattern: str, subject: str) -> bool:
    """Whether a pattern, with wildcards alone, matches a subject, or all subjects of another pattern."""
    mine, theirs = pattern.split("."), subject.split(".")
    for one, another in zip(mine, theirs, strict=False):
        if one == ">":
            return True
        if another == ">" or one not in ("*", another):
            return False
    return len(mine) == len(theirs)


class Pattern:
    """A declared subject, such as `hotel.rooms.{room}.price`.

    Args:
        declared: Tokens, `*`, `>` at the end, and `{parameters}`, each a token of its own.

    Attributes:
        wire: What is subscribed to: `hotel.rooms.*.price`.
        parameters: Name of each `{parameter}` and its position among the tokens.

    Raises:
        DeclarationError: The subject is not valid, or is one of NATS's or meshkit's own.
    """

    __slots__ = ("declared", "parameters", "wire")

    def __init__(self, declared: str) -> None:
        if not isinstance(declared, str):  # pyright: ignore[reportUnnecessaryIsInstance] # not everybody uses one
            raise DeclarationError(f"subject {declared!r} is no text")
        self.declared = declared
        self.parameters: dict[str, int] = {}
        tokens: list[str] = []
        for position, token in enumerate(declared.split(".")):
            named = _PARAMETER.fullmatch(token)
            if named is None:
                if "{" in token or "}" in token:
                    raise DeclarationError(
                        f"subject {declared!r}: a {{parameter}} is a token of its own, unlike in {token!r}"
                    )
                tokens.append(token)
                continue
            name = named[1]
            if not name.isidentifier() or keyword.iskeyword(name):
                raise DeclarationError(f"subject {declared!r}: {{{name}}} is not the name of a parameter")
            if name in self.parameters:
                raise DeclarationError(f"subject {declared!r}: {{{name}}} stands in it twice")
            self.parameters[name] = position
            tokens.append("*")
        self.wire = ".".join(tokens)
        if wrong := problem(self.wire, wildcards=True):
            raise DeclarationError(f"subject {declared!r} {wrong}")
        if tokens[0] in _RESERVED:
            raise DeclarationError(
                f"subject {declared!r}: {tokens[0]} belongs to NATS or meshkit; choose another"
            )

    def overlaps(self, other: "Pattern") -> bool:
        """Whether there is a subject that both match."""
        mine, theirs = self.wire.split("."), other.wire.split(".")
        for one, another in zip(mine, theirs, strict=False):
            if ">" in (one, another):
                return True
            if one != another and "*" not in (one, another):
                return False
        return len(mine) == len(theirs)

    def covers(self, subject: str) -> bool:
        """Whether it matches a subject, or all subjects of a pattern."""
        return covers(self.wire, subject)

    @property
    def precision(self) -> tuple[int, ...]:
        """For sorting patterns that match a subject: the more precise, the later."""
        return tuple({">": 0, "*": 1}.get(token, 2) for token in self.wire.split("."))

    def read(self, subject: str) -> dict[str, str]:
        """The parameters in a subject that matched.

        Raises:
            BadRequest: A token is a wildcard, which no caller may pass as a value.
        """
        tokens = subject.split(".")
        values = {name: tokens[position] for name, position in self.parameters.items()}
        for name, value in values.items():
            if "*" in value or ">" in value:
                raise BadRequest(f"{name} in subject {subject!r} is a wildcard, not a value")
        return values

    def fill(self, values: Mapping[str, object]) -> str:
        """The subject with its parameters filled in.

        Raises:
            ValueError: A parameter is missing or unknown, or a value is not one token.
        """
        if wrong := set(self.parameters).symmetric_difference(values):
            expected = ", ".join(self.parameters) or "no parameters"
            raise ValueError(f"subject {self.declared!r} takes {expected}; check {', '.join(sorted(wrong))}")
        tokens = self.wire.split(".")
        for name, position in self.parameters.items():
            token = str(values[name])
            if wrong := "has a dot" if "." in token else problem(token):
                raise ValueError(
                    f"{name}={shortened(token, 50)!r} cannot stand in {self.declared!r}: "
                    f"a value is one token, and this one {wrong}"
                )
            tokens[position] = token
        return check(".".join(tokens))


def token(text: str) -> str:
    """A text as one token of a subject, which no other text has.

    What a token had better not hold is written as `=2E`; of what gets long that way there is a digest.
    """
    escaped = _UNREADABLE.sub(_escaped, text) or "="
    if len(escaped) <= _LONGEST_TOKEN:
        return escaped
    return "==" + hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"={byte:02X}" for byte in found[0].encode(errors="surrogatepass"))
