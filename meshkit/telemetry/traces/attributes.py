"""What spans say: texts that can be sent, whatever the user's code put into them."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast


def exception_attributes(exception: BaseException) -> dict[str, str]:
    """What an event says of an exception.

    https://opentelemetry.io/docs/specs/semconv/exceptions/exceptions-spans/
    """
    name = f"{type(exception).__module__}.{type(exception).__qualname__}"
    return {
        "exception.type": name.removeprefix("builtins."),
        "exception.message": text_of(exception),
        "exception.stacktrace": "".join(traceback.format_exception(exception)),
        "exception.escaped": "False",
    }


def text_of(exception: BaseException) -> str:
    """What an exception says, also one that fails to."""
    try:
        return encodable(str(exception))
    except Exception:  # noqa: BLE001 # whatever the user's own class raises
        return f"<{type(exception).__name__} whose text cannot be made>"


def encodable(value: Any) -> Any:
    """A text, or what holds texts, without halves of characters: one would lose its whole batch."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, list | tuple):
        return [encodable(each) for each in cast("Sequence[Any]", value)]
    if isinstance(value, Mapping):
        return {encodable(key): encodable(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    return value
