"""What a nested call inherits, and who calls.

That is the trace (https://www.w3.org/TR/trace-context/), the priority, and that nothing is to be tried again.
"""

import re
from collections.abc import Awaitable

from meshkit.headers import line, parse, render
from meshkit.message import CALLER, CURRENT, PRIORITY, RETRY, Handler, Layer, Request, Response

_INHERITED = re.compile(
    f"\r\n(?:traceparent|tracestate|baggage|{CALLER}|{PRIORITY}|{RETRY}):".encode(), re.IGNORECASE
)
TRACEPARENT = re.compile(rb"\r\ntraceparent:[^\r\n]*", re.IGNORECASE)

_PRIORITY = PRIORITY.encode()


def propagate(caller: str | None, priority: str | None = None, *, traced: bool = False) -> Layer:
    """The caller's side: pass on what a nested call inherits, and say who calls.

    Args:
        caller: `service/instance` that calls; None for a client that is no service.
        priority: How important these calls are; None for as important as the call that is being handled.
        traced: Whether these calls have spans, which say themselves which trace they belong to.
    """
    whose = b"" if caller is None else line(CALLER, caller)
    important = b"" if priority is None else line(PRIORITY, priority)

    def layer(following: Handler) -> Handler:
        def call(request: Request) -> Awaitable[Response]:
            current = CURRENT.get()
            if current is None:
                inherited = whose
            else:
                inherited = whose + current.inherited
                if traced and current.span is None:
                    inherited = TRACEPARENT.sub(b"", inherited)
            if important:
                # Most calls inherit none.
                inherited = merge(inherited, important) if _PRIORITY in inherited else inherited + important
            request.head = merge(inherited, request.head) if request.head else inherited
            return following(request)

        return call

    return layer


def merge(inherited: bytes, given: bytes) -> bytes:
    """Both heads in one: what was given goes before what is inherited, the caller is who it is."""
    if not _INHERITED.search(given):
        return given + inherited
    headers, own = parse(given), parse(inherited)
    if CALLER in own:
        headers = {name: value for name, value in headers.items() if name.lower() != CALLER.lower()}
    names = {name.lower() for name in headers}
    return render({name: value for name, value in own.items() if name.lower() not in names} | headers)
