"""What a nested call inherits: the trace (https://www.w3.org/TR/trace-context/); and who calls."""

from meshkit.message import CALLER, CURRENT, Handler, Layer, Request, Response

# W3C's names in lower case; other clients may have written them in title case.
_TRACE = tuple((name, name.title()) for name in ("traceparent", "tracestate", "baggage"))


def propagate(caller: str | None) -> Layer:
    """The caller's side: pass the trace of the request being handled on, and say who calls.

    Args:
        caller: `service/instance` that calls; None for a client that is no service.
    """

    def layer(following: Handler) -> Handler:
        async def call(request: Request) -> Response:
            headers = request.headers
            if caller is not None:
                headers[CALLER] = caller
            current = CURRENT.get()
            if current is not None and current.headers:
                trace(current.headers, headers)
            return await following(request)

        return call

    return layer


def trace(source: dict[str, str], target: dict[str, str]) -> None:
    """Copy the trace headers, and nothing else: `Nats-*` of one message must never reach another."""
    for name, title in _TRACE:
        value = source.get(name) or source.get(title)
        if value is not None:
            target.setdefault(name, value)
