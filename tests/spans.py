"""Spans in tests, as whoever receives them gets them."""

from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from otlp import attributes

from meshkit.telemetry.traces.tracing import Provider


class Span(NamedTuple):
    """Ids in hexadecimal, empty for none; times in seconds; events as (name, attributes)."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: float
    end: float
    attributes: dict
    resource: dict
    events: list
    status: str
    message: str


class Recorder(SpanExporter):
    """Keeps the spans of connections that are made after it; `sampler` decides which there are."""

    def __init__(self, monkeypatch, sampler=ALWAYS_ON):
        self._requests = []
        self.provider = Provider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self))
        # OpenTelemetry has it set once in a process, which all tests share.
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", self.provider)

    def export(self, spans):
        encoded = encode_spans(spans).SerializeToString()
        self._requests.append(ExportTraceServiceRequest.FromString(encoded))
        return SpanExportResult.SUCCESS

    @property
    def spans(self):
        return received(self._requests)

    def named(self, name, kind=None):
        """Those of a name, in the order in which they began."""
        spans = [span for span in self.spans if span.name == name and kind in {None, span.kind}]
        return sorted(spans, key=lambda span: span.start)

    def clear(self):
        self._requests.clear()


def received(requests):
    """The spans of what a receiver has got, in order."""
    return [
        _span(span, attributes(block.resource.attributes))
        for request in requests
        for block in request.resource_spans
        for scope in block.scope_spans
        for span in scope.spans
    ]


def shape(spans):
    """How spans are nested: a line for each, `KIND name`, in the order in which they began."""
    known = {span.id for span in spans}

    def lines(parent, depth):
        for span in sorted(spans, key=lambda span: span.start):
            if span.parent == parent or (not parent and span.parent not in known):
                yield f"{'  ' * depth}{span.kind} {span.name}"
                yield from lines(span.id, depth + 1)

    return list(lines("", 0))


def _span(span, resource):
    return Span(
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        attributes(span.attributes),
        resource,
        [(event.name, attributes(event.attributes)) for event in span.events],
        trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        span.status.message,
    )
