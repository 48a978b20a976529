"""Traces: a span for each call, for each message of it, and for what handles it.

https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/ and
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

import re
from collections.abc import Awaitable

from opentelemetry import trace
from opentelemetry.baggage import _BAGGAGE_KEY  # pyright: ignore[reportPrivateUsage] # asking for all of it takes 0.3 µs
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation import _SPAN_KEY  # pyright: ignore[reportPrivateUsage] # what makes a context with a span copies it first

from meshkit.durable.delivery import attempt as delivery
from meshkit.headers import find, line, render, whole
from meshkit.layers.propagation import TRACEPARENT, merge
from meshkit.message import ATTEMPT, CURRENT, Handler, Layer, Request, Response
from meshkit.telemetry.traces.tracing import Attributes, Parent, Span, Tracer
from meshkit.transport import Sender

# What meshkit and most others write, which takes half the time to find; then what some do.
_PLAIN = re.compile(rb"\r\ntraceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?=\r\n|\Z)")
_ANY = re.compile(
    rb"\r\ntraceparent:[ \t]*(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?![0-9a-z])",
    re.IGNORECASE,
)
_TRACESTATE = re.compile(rb"\r\ntracestate:", re.IGNORECASE)
_BAGGAGE = re.compile(rb"\r\nbaggage:([^\r\n]*)", re.IGNORECASE)
# Bytes of baggage that are read, as https://www.w3.org/TR/baggage/ has it; what is longer is none.
_LONGEST_BAGGAGE = 8192
_NO_TRACE, _NO_SPAN, _ODD = b"0" * 32, b"0" * 16, b"13579bdfBDF"
_ATTEMPT = f"\r\n{ATTEMPT}:".encode()
_baggage = W3CBaggagePropagator()


def parent_of(head: bytes) -> Parent | None:
    """The span that a head says it is part of, if any."""
    found = _PLAIN.search(head) or _ANY.search(head)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return trace_id.lower(), span_id, flags[1] in _ODD


def call(tracer: Tracer, target: str, *, streams: bool = False) -> Layer:
    """The caller's side: a span for the call, all attempts together.

    Args:
        tracer: Makes it.
        target: What is called.
        streams: Whether the response is the first item of a stream: its reader ends the span.
    """
    attributes = {"rpc.system.name": "nats", "rpc.method": target}

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            span = request.span = _begin(tracer, target, SpanKind.CLIENT, attributes, request)
            try:
                response = await following(request)
            except BaseException as error:
                span.finish(error)
                raise
            if not streams:
                span.finish()
            return response

        return handle

    return layer


def _begin(tracer: Tracer, name: str, kind: SpanKind, attributes: Attributes, request: Request) -> Span:
    """A span of what is sent, within what goes on now."""
    context, head = get_current(), request.head
    parent = parent_of(head) if head else None
    if head:
        # What goes on is the new span, also where whoever calls says himself what it is part of.
        request.head = TRACEPARENT.sub(b"", head)
    if parent is None:
        if (around := context.get(_SPAN_KEY)) is not None:
            parent = _within(around, request)
        if parent is None and (current := CURRENT.get()) is not None and current.span is None:
            # What a handler on another connection is part of, which makes no spans.
            parent = parent_of(current.head)
    if _BAGGAGE_KEY in context and not _BAGGAGE.search(head):
        request.head += _carried(context)
    span = tracer.begin(name, kind, attributes, parent)
    if span.is_sampled and kind is SpanKind.CLIENT and request.subject != name:
        span.note("meshkit.subject", request.subject)
    return span


def _within(span: object, request: Request) -> Parent | None:
    """The span that goes on, the handler's or one that its code has begun; its state goes along."""
    if type(span) is Span:
        return span.trace, span.span_id, span.is_sampled
    if not isinstance(span, trace.Span):
        return None
    named = span.get_span_context()
    if not named.is_valid:
        return None
    if named.trace_state and not _TRACESTATE.search(request.head):
        request.head += line("tracestate", named.trace_state.to_header())
    span_id = b"%016x" % named.span_id if named.is_remote else named.span_id
    return b"%032x" % named.trace_id, span_id, named.trace_flags.sampled


def _carried(context: Context) -> bytes:
    carrier: dict[str, str] = {}
    _baggage.inject(carrier, context)
    return render(carrier)


def attempt(target: str) -> Layer:
    """The caller's side: a span for each message, and where it goes on for the callee.

    Args:
        target: What is called.
    """
    attributes = {"rpc.system.name": "nats", "rpc.method": target}
    name = f"{target} attempt"

    def layer(following: Handler) -> Handler:
        async def traced(request: Request, within: Span) -> Response:
            number = find(request.head, _ATTEMPT)
            span = within.part(name, SpanKind.CLIENT, attributes)
            span.note("meshkit.attempt", whole(number or "1"))
            request.head += span.line
            try:
                response = await following(request)
            except BaseException as error:
                span.finish(error)
                raise
            span.finish()
            return response

        def handle(request: Request) -> Awaitable[Response]:
            span = request.span
            if span.is_sampled:
                return traced(request, span)
            request.head += span.line
            return following(request)

        return handle

    return layer


def serve(tracer: Tracer, subject: str) -> Layer:
    """The callee's side of calls: a span for all that is done with a request.

    Args:
        tracer: Makes it.
        subject: The endpoint's subject.
    """
    attributes = {"rpc.system.name": "nats", "rpc.method": subject}
    return _handle(tracer, subject, SpanKind.SERVER, attributes, subject)


def process(tracer: Tracer, subject: str, consumer: str = "") -> Layer:
    """The side of who listens to events: a span for what is done with one.

    Args:
        tracer: Makes it.
        subject: The subscription's subject.
        consumer: The name of the consumer that a stream delivers to.
    """
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.template": subject,
    }
    if consumer:
        attributes["messaging.consumer.group.name"] = consumer
    is_durable = bool(consumer)
    return _handle(
        tracer, f"process {subject}", SpanKind.CONSUMER, attributes, subject, is_durable=is_durable
    )


def _handle(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    attributes: Attributes,
    subject: str,
    *,
    is_durable: bool = False,
) -> Layer:
    which = "meshkit.subject" if kind is SpanKind.SERVER else "messaging.destination.name"

    def layer(following: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            span = request.span = tracer.begin(name, kind, attributes, parent_of(request.head))
            # The task and its context are the request's own: there is nothing to restore.
            attach(_context(span, request.head))
            if span.is_sampled:
                span.note("meshkit.instance", request.handler)
                if request.subject != subject:
                    span.note(which, request.subject)
            if is_durable and (number := delivery(request.reply)) > 1:
                span.note("meshkit.delivery", number)
            try:
                response = await following(request)
            except BaseException as error:
                span.finish(error, may_be_long=request.sent > 0)
                raise
            span.finish(may_be_long=request.sent > 0)
            return response

        return handle

    return layer


def _context(span: Span, head: bytes) -> Context:
    context = Context({_SPAN_KEY: span})
    carried = _BAGGAGE.search(head)
    if carried is None or len(carried[1]) > _LONGEST_BAGGAGE:
        return context
    return _baggage.extract({"baggage": carried[1].decode(errors="replace").strip()}, context)


async def publish(tracer: Tracer, sender: Sender, event: Request, inherited: bytes) -> None:
    """Publish an event, with a span; its head says that the trace goes on from there.

    Args:
        tracer: Makes the span.
        sender: Sends it.
        event: What is published, and where to.
        inherited: What it inherits from what is being handled, as a head.
    """
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": event.subject,
    }
    span = _begin(tracer, f"send {_masked(event.subject)}", SpanKind.PRODUCER, attributes, event)
    if inherited:
        event.head = merge(TRACEPARENT.sub(b"", inherited), event.head)
    try:
        await sender.publish(event.subject, event.payload, event.head + span.line)
    except BaseException as error:
        span.finish(error)
        raise
    span.finish()


def _masked(subject: str) -> str:
    """A subject without what tells one thing from another, as the names of spans should be few."""
    return ".".join("*" if re.search("[0-9]", token) else token for token in subject.split("."))
