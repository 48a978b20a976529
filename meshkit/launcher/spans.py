"""What a worker does for `meshkit run --trace`: its spans go to the launcher, and where they go anyhow."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import StatusCode

from meshkit.errors import shortened
from meshkit.launcher.child import Launcher
from meshkit.launcher.messages import Spans
from meshkit.telemetry.environment import is_off, wants
from meshkit.telemetry.traces.attributes import encodable
from meshkit.telemetry.traces.exporting import given, is_foreign, provide, span_exporter
from meshkit.telemetry.traces.tree import Span

log = logging.getLogger("meshkit.telemetry")

# Traces that begin in a worker and are seen, in a second; nobody reads more.
_MOST = 10
# Milliseconds that a span may wait to be sent with others.
_DELAY = 100
# Letters of a text, and events of a span.
_LONGEST, _EVENTS = 300, 20


def trace_to(launcher: Launcher, name: str) -> None:
    """Have this process traced, and the launcher told.

    Args:
        launcher: Is told.
        name: The connection's, `service/version/instance`.

    Raises:
        ConfigError: The environment says what cannot be done.
    """
    if is_off():
        log.warning("OTEL_SDK_DISABLED=true: there are no traces to show")
        return
    if is_foreign():
        return
    has_own = given() is not None
    few = _Few(launcher)
    provider = provide(_ToLauncher(launcher), name, sampler=ParentBased(few), delay=_DELAY)
    provider.add_span_processor(few)
    if not has_own and (exporter := wants("traces")):
        provide(span_exporter(exporter), name)


class _Few(Sampler, SpanProcessor):
    """Samples all traces, up to so many a second; says how many it left out, each second and in the end."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._second = self._taken = self._left_out = 0
        self._counting = threading.Lock()

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        """Whether it is one of them."""
        second = time.time_ns() // 1_000_000_000
        with self._counting:
            if second != self._second:
                self._second, self._taken = second, 0
            self._taken += 1
            if self._taken <= _MOST:
                return SamplingResult(Decision.RECORD_AND_SAMPLE)
            self._left_out += 1
            is_first = self._left_out == 1
        if is_first:
            timer = threading.Timer(1.0, self.force_flush)
            timer.daemon = True
            timer.start()
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        """What it is called."""
        return f"{_MOST} a second"

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 # as OpenTelemetry has it
        """Tell."""
        with self._counting:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            self._launcher.tell(Spans([], left_out))
        return True


class _ToLauncher(SpanExporter):
    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them."""
        self._launcher.tell(Spans([_span(span, self._launcher.job.worker) for span in spans]))
        return SpanExportResult.SUCCESS


def _span(span: ReadableSpan, worker: str) -> Span:
    context, parent = span.context, span.parent
    assert context is not None
    attributes = span.attributes or {}
    attempt = attributes.get("meshkit.attempt", 0)
    subject = attributes.get("meshkit.subject")
    return Span(
        trace=f"{context.trace_id:032x}",
        id=f"{context.span_id:016x}",
        parent=f"{parent.span_id:016x}" if parent else "",
        is_remote=parent is not None and parent.is_remote,
        name=_short(subject or span.name),
        kind=span.kind.name,
        where=worker,
        start=span.start_time or 0,
        end=span.end_time or 0,
        attempt=attempt if isinstance(attempt, int) else 0,
        has_failed=span.status.status_code is StatusCode.ERROR,
        error=_short(attributes.get("error.type", "")),
        text=_short(span.status.description or ""),
        events=list(_events(span)),
    )


def _events(span: ReadableSpan) -> Iterator[tuple[int, str]]:
    """What happened, an exception as what it says, if that is not what the span says anyhow."""
    for event in span.events[:_EVENTS]:
        name = event.name
        if name == "exception":
            said = event.attributes or {}
            name = f"{said.get('exception.type')}: {said.get('exception.message')}"
            if span.status.description and name.endswith(span.status.description):
                continue
        yield event.timestamp, _short(name)


def _short(text: object) -> str:
    """A text that JSON can hold: of what the user's own tracers make, too."""
    return shortened(encodable(str(text)), _LONGEST)
