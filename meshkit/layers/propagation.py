"""What a nested call inherits: the trace (https://www.w3.org/TR/trace-context/); and who calls."""

import re
from collections.abc import Awaitable

from meshkit.headers import line, parse, render
from meshkit.message import CALLER, CURRENT, Handler, Layer, Request, Response

_INHERITED = re.compile(rb"\r\n(?:traceparent|tracestate|baggage|%b):" % CALLER.encode(), re.IGNORECASE)


def propagate(caller: str | None) -> Layer:
    """The caller's side: pass the trace of the request being handled on, and say who calls.

    Args:
        caller: `service/instance` that calls; None for a client that is no service.
    """
    whose = b"" if caller is None else line(CALLER, caller)

    def layer(following: Handler) -> Handler:
        def call(request: Request) -> Awaitable[Response]:
            current = CURRENT.get()
            inherited = whose if current is None else whose + current.trace
            request.head = merge(inherited, request.head) if request.head else inherited
            return following(request)

        return call

    return layer


def merge(inherited: bytes, given: bytes) -> bytes:
    """Both heads in one: a trace that was given goes before that inherited, the caller is who it is."""
    if not _INHERITED.search(given):
        return given + inherited
    headers, own = parse(given), parse(inherited)
    if CALLER in own:
        headers = {name: value for name, value in headers.items() if name.lower() != CALLER.lower()}
    names = {name.lower() for name in headers}
    return render({name: value for name, value in own.items() if name.lower() not in names} | headers)
