"""From a function's signature to how it is called: which parameter gets what, and what it returns."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from meshkit.codec import Decoder
from meshkit.errors import BadRequest, DeclarationError
from meshkit.message import Context, Request
from meshkit.subject import Pattern

_REQUIRED = inspect.Parameter.empty
# How what yields may be annotated.
_STREAMS = {AsyncIterator, AsyncIterable, AsyncGenerator}


class Signature:
    """How a handler is called.

    Args:
        function: `async def` or `def`, with at most one message parameter, one parameter for each `{token}`
            of the subject, and at most one `Context`; an `async def` may yield.
        pattern: The subject that it is declared on.

    Attributes:
        message: Decoder of the message, or None if the handler takes none.
        reply: Decoder of what it returns or, one item, yields; for callers.
        is_async: Whether calling it gives a coroutine.
        is_stream: Whether it gives an asynchronous generator.

    Raises:
        DeclarationError: The function cannot be called that way; the text says what to write instead.
    """

    def __init__(self, function: Callable[..., Any], pattern: Pattern) -> None:
        self.where = _where(function)
        self.function = function
        # A decorator may have put a `def` around an `async def`, or made something else of what it got.
        inner = inspect.unwrap(function, stop=_is_asynchronous)
        self.is_async = inspect.iscoroutinefunction(inner)
        self.is_stream = inspect.isasyncgenfunction(inner)
        self.message: Decoder | None = None
        self._pattern = pattern
        self._context_name: str | None = None
        self._message_name = ""
        self._message_default: Any = _REQUIRED
        self._tokens: dict[str, Any] = {}
        self._check_kind(inner)
        hints = self._hints()
        for parameter in inspect.signature(function).parameters.values():
            self._take(parameter, hints)
        if missing := [name for name in pattern.parameters if name not in self._tokens]:
            raise DeclarationError(
                f"{self.where}: subject {pattern.declared!r} has {{{missing[0]}}}, but the function has no "
                f"parameter of that name; add `{missing[0]}: str`"
            )
        returned = hints.get("return", Any)
        if self.is_stream:
            self.reply = self._decoder(self._item(returned), "yields")
        else:
            self.reply = self._decoder(returned, "returns")

    def _check_kind(self, function: Callable[..., Any]) -> None:
        if inspect.isgeneratorfunction(function):
            raise DeclarationError(
                f"{self.where} is a `def` that yields; write `async def` for a stream, or return one reply"
            )

    def _item(self, returned: Any) -> Any:
        """The type of one item of a stream."""
        if returned is Any:
            return Any
        if get_origin(returned) in _STREAMS and (items := get_args(returned)):
            return items[0]
        raise DeclarationError(
            f"{self.where} yields, but is annotated with {_shown(returned)}; write `-> AsyncIterator[T]`, "
            "where T is the type of an item"
        )

    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise DeclarationError(
                f"{self.where}: annotation {error.name!r} is not known where the function stands; define or "
                "import it above, at module level and not only under TYPE_CHECKING"
            ) from None
        except (AttributeError, SyntaxError, TypeError) as error:
            raise DeclarationError(f"{self.where}: an annotation cannot be understood: {error}") from None

    def _take(self, parameter: inspect.Parameter, hints: dict[str, Any]) -> None:
        name = parameter.name
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise DeclarationError(
                f"{self.where}: parameter `{parameter}` cannot be filled; a handler takes named parameters"
            )
        if name not in hints:
            raise DeclarationError(
                f"{self.where}: parameter `{name}` has no annotation; write its type, such as `{name}: int`, "
                f"or `{name}: bytes` for the payload as it is"
            )
        if hints[name] is Context:
            if self._context_name is not None:
                raise DeclarationError(
                    f"{self.where} takes two contexts, `{self._context_name}` and `{name}`"
                )
            self._context_name = name
        elif name in self._pattern.parameters:
            self._decoder(hints[name], f"takes `{name}` as")
            self._tokens[name] = hints[name]
        elif self.message is not None:
            raise DeclarationError(
                f"{self.where} takes two messages, `{self._message_name}` and `{name}`, but a call has "
                f"one; put both into a msgspec.Struct, or make one a token of the subject: {{{name}}}"
            )
        else:
            self._message_name = name
            self._message_default = parameter.default
            self.message = self._decoder(hints[name], f"takes `{name}` as")

    def _decoder(self, type_: Any, what: str) -> Decoder:
        try:
            if type_ is not bytes:
                # Of a class that it does not know msgspec builds a decoder without complaint, a schema not.
                msgspec.json.schema(type_)
            return Decoder(type_)
        except (TypeError, NameError) as error:
            why = str(error).splitlines()[-1]
            raise DeclarationError(
                f"{self.where} {what} {_shown(type_)}, which msgspec cannot decode ({why}); use a "
                "msgspec.Struct, a dataclass, a TypedDict or a built-in type"
            ) from None

    @property
    def request_schema(self) -> dict[str, Any] | None:
        """JSON Schema of the message; None if there is none, or if it is raw bytes."""
        return _schema(self.message)

    @property
    def reply_schema(self) -> dict[str, Any] | None:
        """JSON Schema of the reply; None for raw bytes."""
        return _schema(self.reply)

    def arguments(self, request: Request, kind: str, context: Callable[[Request], Context]) -> dict[str, Any]:
        """What the handler is called with.

        Args:
            request: Subject and payload to take it from.
            kind: The payload's content type.
            context: Makes the context, if the handler wants it.

        Raises:
            BadRequest: The payload or a token of the subject is not what the handler takes.
        """
        arguments: dict[str, Any] = {}
        message = self.message
        if message is not None and (request.payload or self._message_default is _REQUIRED):
            try:
                arguments[self._message_name] = message(request.payload, kind)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise self._misunderstood(message, request.payload, error) from None
        if self._tokens:
            for name, token in self._pattern.read(request.subject).items():
                try:
                    arguments[name] = msgspec.convert(token, self._tokens[name], strict=False)
                except msgspec.ValidationError as error:
                    raise BadRequest(f"{name}={token!r} in subject {request.subject!r}: {error}") from None
        if self._context_name is not None:
            arguments[self._context_name] = context(request)
        return arguments

    def _misunderstood(self, decoder: Decoder, payload: bytes, error: Exception) -> BadRequest:
        if not payload:
            return BadRequest(f"no message was sent; {_shown(decoder.type)} is expected")
        return BadRequest(f"the message is not understood: {error}")


def _is_asynchronous(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _where(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    return f"{name}() ({code.co_filename}:{code.co_firstlineno})" if code else name


def _schema(decoder: Decoder | None) -> dict[str, Any] | None:
    return None if decoder is None or decoder.raw else msgspec.json.schema(decoder.type)


def _shown(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) else str(type_)
