"""Everything that can go wrong, in one tree and one table.

    MeshError                   code  executed?  when
    ├── ServiceError            any   yes        the service answered with an error
    │   ├── BadRequest          400   no         the message does not decode, or does not fit
    │   ├── Unauthorized        401   no         who is calling is not known
    │   ├── Forbidden           403   no         who is calling may not do this
    │   ├── NotFound            404   yes        what is asked for does not exist
    │   ├── Reject              422   yes        a handler of messages does not want this one, ever
    │   ├── Redeliver           425   yes        a handler of messages wants this one again, later
    │   ├── RateLimited         429   no         too many calls
    │   ├── InternalError       500   yes        the handler failed; its log has the traceback
    │   └── BadReply            502   yes        the reply does not decode as the type asked for
    ├── Cancelled               499   unknown    the caller went away
    ├── Unavailable             503   unknown    the instance went away, or a service that it called
    │   ├── NoResponders              no         no service listens on the subject
    │   ├── Overloaded                no         every handler is busy and the queue is full
    │   ├── Draining                  no         the instance is about to stop
    │   ├── Disconnected              no         no connection to NATS
    │   └── CircuitOpen               no         the caller's own breaker refused
    ├── DeadlineExceeded        504   unknown    no answer in time (also a TimeoutError)
    ├── ConnectionLost          503   unknown    the connection broke during the call (also a ConnectionError)
    └── StreamBroken            503   unknown    items of a stream did not arrive

    DeclarationError, ConfigError (both ValueError): mistakes of who writes or runs a service.

On the wire an error is the two headers of the NATS services protocol (ADR-32), and three of meshkit's own:
`docs/wire.md`.
"""

import math
import re
from collections.abc import Mapping

ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"
NACK = "Mesh-Nack"
RETRY_AFTER = "Mesh-Retry-After"
INSTANCE = "Mesh-Instance"

# Seconds; the header has nine digits of milliseconds.
_LONGEST_RETRY = 999_999


class MeshError(Exception):
    """A call that failed.

    Args:
        message: What went wrong, for a person.

    Attributes:
        code: The number on the wire, see the table above.
        message: The text alone; `str(error)` adds where it happened.
        executed: Whether the handler ran: True, False, or None where the caller cannot know. Only where it is
            False can the call be repeated without a thought.
        own: Whether the caller's own side refused, and nothing was sent: its circuit breaker, rate limit or
            bulkhead.
        retry_after: Seconds after which another attempt may succeed, where the service said so.
        target: The subject that was called.
        instance: `service/instance` that answered, where known.
        attempt: Which attempt this was, from 1.
        elapsed: Seconds from the call to the error.
        budget_spent: Whether the call was to be tried again, and the target's retry budget did not allow it.
    """

    code: int = 500
    executed: bool | None = None
    own: bool = False

    def __init__(self, message: str = "") -> None:
        # Often it is another exception that is handed in.
        self.message = str(message) or (type(self).__doc__ or "").partition(".")[0]
        self.retry_after: float | None = None
        self.target: str | None = None
        self.instance: str | None = None
        self.attempt: int = 1
        self.elapsed: float | None = None
        self.budget_spent = False
        super().__init__(self.message)

    def __str__(self) -> str:
        text = f"{self.code} {type(self).__name__}: {self.message}"
        if self.target is None:
            return text
        where = [f"attempt {self.attempt}"]
        if self.elapsed is not None:
            where.append(f"{self.elapsed:.3f} s")
        if self.instance:
            where.insert(0, f"instance {self.instance}")
        if self.budget_spent:
            where.append("retry budget spent")
        return f"{self.target}: {text} ({', '.join(where)})"


class ServiceError(MeshError):
    """The service answered with an error.

    A handler raises it on purpose to answer with a code of its own:

        raise ServiceError(409, "room 12 is taken")

    Args:
        code: 400 to 9999. The codes of the table above arrive as the classes of that table.
        message: The text that the caller gets.

    Raises:
        ValueError: The code is outside that range.
    """

    executed = True

    def __init__(self, code: int, message: str = "") -> None:
        if not 400 <= code <= 9999:
            raise ValueError(f"an error's code is a number from 400 to 9999, not {code!r}")
        self.code = code
        super().__init__(message)
        self.args = (code, self.message)


class _Coded(ServiceError):
    """A service's error whose code is fixed by its class."""

    def __init__(self, message: str = "") -> None:
        super().__init__(type(self).code, message)
        self.args = (self.message,)


class BadRequest(_Coded):
    """The message cannot be understood."""

    code = 400
    executed = False


class Unauthorized(_Coded):
    """Who is calling is not known."""

    code = 401
    executed = False


class Forbidden(_Coded):
    """Who is calling may not do this."""

    code = 403
    executed = False


class NotFound(_Coded):
    """What is asked for does not exist."""

    code = 404


class Reject(_Coded):
    """A message cannot be handled, now or later: it goes to the dead letters."""

    code = 422


class Redeliver(_Coded):
    """A message is to be delivered again, later.

    Args:
        delay: After how long, in seconds or as text such as `"10s"`; 0 for at once. By default as after other
            errors.
        message: Why, for a person.

    Raises:
        ValueError: The delay is none.
    """

    code = 425

    def __init__(self, delay: float | str | None = None, message: str = "") -> None:
        from meshkit.knobs import DURATION  # which knows the errors

        super().__init__(message)
        self.delay: float | None = 0.0
        if delay is None or delay:
            self.delay = None if delay is None else DURATION.check("delay", delay)


class RateLimited(_Coded):
    """Too many calls."""

    code = 429
    executed = False


class InternalError(_Coded):
    """The handler failed."""

    code = 500


class BadReply(_Coded):
    """The reply is not what was asked for."""

    code = 502


class Cancelled(MeshError):
    """The caller went away."""

    code = 499


class Unavailable(MeshError):
    """The instance went away, or a service that it called."""

    code = 503


class NoResponders(Unavailable):
    """No service listens on this subject."""

    executed = False


class Overloaded(Unavailable):
    """Every handler is busy and the queue is full."""

    executed = False


class Draining(Unavailable):
    """The instance is about to stop."""

    executed = False


class Disconnected(Unavailable):
    """There is no connection to NATS."""

    executed = False


class CircuitOpen(Unavailable):
    """The caller's circuit breaker is open."""

    executed = False
    own = True


class DeadlineExceeded(MeshError, TimeoutError):
    """No answer in time."""

    code = 504


class ConnectionLost(MeshError, ConnectionError):
    """The connection to NATS broke while the call was in flight."""

    code = 503


class StreamBroken(MeshError):
    """Items of a stream did not arrive."""

    code = 503


class DeclarationError(ValueError):
    """A service, endpoint or handler is declared in a way that cannot work; the text says what to write."""


class ConfigError(ValueError):
    """A setting, a file or a target of the command line is wrong; the text says what to write."""


_BY_CODE = {
    cls.code: cls
    for cls in (
        BadRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        RateLimited,
        InternalError,
        BadReply,
        Cancelled,
        DeadlineExceeded,
    )
}
# A handler's own classes arrive as ServiceError: both sides call them by their code.
_KINDS: dict[type[MeshError], str] = {
    cls: cls.__name__
    for cls in (
        *_BY_CODE.values(),
        *(Reject, Redeliver),
        *(Unavailable, NoResponders, Overloaded, Draining, Disconnected, CircuitOpen),
        *(ConnectionLost, StreamBroken),
    )
}
FAULTS = (*(name for cls, name in _KINDS.items() if cls.code >= 500), "[5-9][0-9]{2}", "[0-9]{4}")
"""The kinds of errors that count against a service, as regular expressions: the codes from 500 up.

A call that is wrong (400), an answer (404, 409), who asks too much (429) or goes away (499) does not count. A
circuit breaker that is open does: while it refuses, its target is as good as away.
"""
# The value of the Mesh-Nack header names the reason.
_BY_NACK: dict[str, type[Unavailable]] = {"overloaded": Overloaded, "draining": Draining}
_NACKS: dict[type[MeshError], str] = {cls: name for name, cls in _BY_NACK.items()}


def is_answer(error: BaseException) -> bool:
    """Whether a handler ran, and answered with the error on purpose: the callee is well, if not of use."""
    return isinstance(error, ServiceError) and error.code < 500 and error.executed is True


def kind(error: MeshError) -> str:
    """What metrics and traces call an error: its class in the table above, else its code."""
    return _KINDS.get(type(error)) or str(error.code)


def shortened(text: str, most: int = 1000) -> str:
    """A text of bounded length, for headers and logs."""
    return text if len(text) <= most else f"{text[:most]}…"


def to_headers(error: MeshError, instance: str) -> dict[str, str]:
    """The headers of an error reply.

    Args:
        error: What to tell the caller.
        instance: `service/instance` that answers.
    """
    # A header's value is one line of bounded length. Whatever a handler raised, this gives headers.
    line = " ".join(error.message.split()).encode("utf-8", "replace").decode()
    headers = {
        ERROR: shortened(line) or type(error).__name__,
        ERROR_CODE: str(error.code),
        INSTANCE: instance,
    }
    if error.executed is False and not isinstance(error, BadRequest | Unauthorized | Forbidden):
        headers[NACK] = _NACKS.get(type(error), "refused")
    if error.retry_after is not None and 0 <= error.retry_after < _LONGEST_RETRY:
        headers[RETRY_AFTER] = str(math.ceil(error.retry_after * 1000))  # a moment earlier is too early
    return headers


def from_headers(headers: Mapping[str, str]) -> MeshError | None:
    """The error that a reply's headers carry, or None for a successful reply."""
    number = headers.get(ERROR_CODE)
    if number is None and ERROR not in headers:
        return None
    # Other clients' services send what they like: what is no such number counts as 500.
    code = int(number) if number and re.fullmatch("[0-9]{3,4}", number) else 500
    code = code if code >= 400 else 500
    message = headers.get(ERROR, "")
    nack = headers.get(NACK)
    error: MeshError
    if code == 503:
        error = _BY_NACK.get(nack or "", Unavailable)(message)
    elif code in _BY_CODE:
        error = _BY_CODE[code](message)
    else:
        error = ServiceError(code, message)
    if nack is not None:
        error.executed = False
    elif error.executed is False:
        # A handler may raise such an error too, with half of its work done.
        error.executed = None
    retry_after = headers.get(RETRY_AFTER, "")
    if re.fullmatch("[0-9]{1,9}", retry_after):
        error.retry_after = int(retry_after) / 1000
    error.instance = headers.get(INSTANCE)
    return error
