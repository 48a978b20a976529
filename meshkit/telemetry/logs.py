"""Log lines that say which call they belong to, as text or as JSON.

They are parts of Python's own `logging`, for `basicConfig` and `dictConfig`; `meshkit run` uses them.
"""

import logging
import re
import sys
import threading
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import msgspec

from meshkit.message import CURRENT, Request

LogFormat: TypeAlias = Literal["text", "json"]

ACCESS = "meshkit.access"
"""The logger of `meshkit.layers.access`, whose lines name their call themselves."""

_CONTEXT = ("service", "instance", "subject", "trace_id", "span_id")
# Of every record; whatever else there is, who logs has added with `extra`.
_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
_TRACEPARENT = re.compile(
    rb"\r\ntraceparent:[ \t]*[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-([0-9a-f]{16})-", re.IGNORECASE
)


def trace_of(request: Request) -> dict[str, str]:
    """The ids of a request's trace and of its span, which is its caller's where it has none of its own."""
    if request.span is not None:
        return {"trace_id": f"{request.span.trace_id:032x}", "span_id": f"{request.span.span_id:016x}"}
    found = _TRACEPARENT.search(request.head)
    if found is None:
        return {}
    return {"trace_id": found[1].decode().lower(), "span_id": found[2].decode().lower()}


def context() -> dict[str, str]:
    """What goes on here and now: the request that is handled, and the span; empty if there is neither."""
    fields: dict[str, str] = {}
    request = CURRENT.get()
    if request is not None:
        service = request.handler.partition("/")[0]
        fields = {"service": service, "instance": request.handler, "subject": request.subject}
        fields |= trace_of(request)
    # A handler may have begun spans of its own. Who has not loaded OpenTelemetry has none.
    if current := getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None):
        span = current().get_span_context()
        if span.is_valid:
            fields |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
    return fields


class ContextFilter(logging.Filter):
    """Gives each record `service`, `instance`, `subject`, `trace_id` and `span_id`, for any format.

    They are empty where there is none. It is for handlers: a logger's filters do not see what comes from the
    loggers below it. On a `QueueHandler` it has to be, since another thread does the formatting.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; every record passes."""
        vars(record).update(dict.fromkeys(_CONTEXT, "") | context() | vars(record))
        return True


class TextFormatter(logging.Formatter):
    """A line as `logging.Formatter` has it, and behind it in brackets which call it belongs to.

    What a record holds is on one line, unprintable characters escaped. Only a traceback has more, which are
    indented: a line that begins at the margin is a record's.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [_on_one_line(self.formatMessage(record) + _suffix(record))]
        for more in (_exception(self, record), record.stack_info):
            lines.extend(f"    {_on_one_line(line)}" for line in (more or "").splitlines())
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """A JSON object a line.

    Its fields are `timestamp` (RFC 3339, UTC), `level`, `logger`, `message`; while a request is handled
    `service`, `instance`, `subject`, `trace_id`, `span_id`; `exception` and `stack`, with tracebacks; and
    what the record was given as `extra`, which goes before all but the first four.

    Args:
        always: Fields of every line, such as `service="rooms"`.
    """

    def __init__(self, **always: str) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The JSON of a record."""
        own = {
            "timestamp": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        more = {"exception": _exception(self, record), "stack": record.stack_info}
        fields = own | self._always | context() | {name: text for name, text in more.items() if text}
        return _encoded(fields | _extra(record) | own)


def configure(form: LogFormat, level: str, **always: str) -> None:
    """Have this process log to standard error, as those of `meshkit run` do.

    Args:
        form: Text or JSON.
        level: The least level of what is logged.
        always: Fields of every JSON line; `worker` is in front of the text.
    """
    if form == "json":
        formatter = JsonFormatter(**always)
        # These would print lines of their own.
        logging.captureWarnings(True)
        threading.excepthook = _log_uncaught
    else:
        formatter = TextFormatter(
            f"%(asctime)s {always['worker']} %(levelname)s %(name)s: %(message)s", "%H:%M:%S"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _log_uncaught(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit:  # which ends a thread, as it always does
        name = failure.thread.name if failure.thread else "?"
        error = failure.exc_value or failure.exc_type()
        logging.getLogger("threading").error("thread %s ended", name, exc_info=error)


def _suffix(record: logging.LogRecord) -> str:
    if record.name == ACCESS:
        return ""
    known = context() | {name: value for name in _CONTEXT if (value := getattr(record, name, ""))}
    said = [known.get("instance"), known.get("subject")]
    said += [f"{name}={known[f'{name}_id']}" for name in ("trace", "span") if f"{name}_id" in known]
    return f" [{' '.join(text)}]" if (text := [str(one) for one in said if one]) else ""


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and not (name in _CONTEXT and value == "")
    }


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else record.exc_text


def _on_one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encoded(fields: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(fields, enc_hook=repr).decode()
    except (ValueError, TypeError, RecursionError):
        # Text that is no Unicode, a structure that holds itself: no reason to lose the line.
        plain = {
            name: value if isinstance(value, int | float) else _unicode(str(value))
            for name, value in fields.items()
        }
        return msgspec.json.encode(plain).decode()


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
