"""Spans: who decides which calls are traced, and what becomes of them.

They are OpenTelemetry's, but not made by its SDK, whose spans take 14 µs each, and 6 µs where they are not
sampled: ours are handed to the SDK's span processors when they end, and only those that are to be kept.
"""

import asyncio
import copy
import functools
import logging
import random
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

import msgspec
from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from meshkit.errors import Cancelled, MeshError, kind
from meshkit.telemetry.environment import resource
from meshkit.telemetry.traces.attributes import encodable, exception_attributes, text_of
from meshkit.telemetry.traces.sampling import asked, share

log = logging.getLogger("meshkit.telemetry")

Attributes = Mapping[str, Any]
# What a span is part of: ids of the trace and of the span as a Span has them, and whether it is sampled. A
# SpanContext takes ten times as long to make.
Parent: TypeAlias = tuple[bytes, int | bytes, bool]

# Of traces that are not sampled so many spans a second are kept, as they failed or were slow.
_MOST_KEPT = 100
_NOT_SAMPLED, _SAMPLED = TraceFlags(0), TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_LOW_BITS = TraceIdRatioBased.TRACE_ID_LIMIT
_OURS = (SpanKind.SERVER, SpanKind.CONSUMER)


class Provider(TracerProvider):
    """The provider of a process that had none: what its spans say of their service is for meshkit to say."""


class Tracer:
    """Makes spans, and hands those that are to be kept to a provider's processors.

    Whether a trace is sampled is decided once, at its root, and all its other spans follow. Of a trace that
    is not, a span is kept by itself if it failed or took long, whoever made it: as errors pass on to callers,
    the spans that are kept show the way that they took.

    Args:
        provider: The SDK's, with its processors, resource, ids and sampler.
        slow: Seconds from which on a span is kept in any case.

    Attributes:
        on_end: Takes a span that has ended.
        resource: Whose spans they are.
        scope: What made them.
        slow: Nanoseconds from which on a span is kept.
        limits: What a span has room for, of what the user's code adds to it.
        new_trace_id: Makes an id.
        new_span_id: Likewise.
    """

    def __init__(self, provider: TracerProvider, *, slow: float) -> None:
        self.scope = InstrumentationScope("meshkit", version("meshkit"))
        tracer = provider.get_tracer(self.scope.name, self.scope.version)
        assert isinstance(tracer, SdkTracer)
        self.on_end = tracer.span_processor.on_end
        self.resource = provider.resource
        self.slow = round(slow * 1e9)
        self.limits: SpanLimits = tracer._span_limits  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # nothing else tells
        ids = provider.id_generator
        self.new_trace_id, self.new_span_id = ids.generate_trace_id, ids.generate_span_id
        if type(ids) is RandomIdGenerator:
            # The same without asking whether it is 0, which it never is.
            self.new_trace_id = functools.partial(random.getrandbits, 128)
            self.new_span_id = functools.partial(random.getrandbits, 64)
        self._is_ours = isinstance(provider, Provider)
        self._sampler = provider.sampler
        rate, is_off = share(provider.sampler)
        # Trace ids below it are sampled.
        self._bound = None if rate is None else TraceIdRatioBased.get_bound_for_rate(rate)
        # Who switches traces off wants none.
        self._most_kept = 0 if is_off else _MOST_KEPT
        self._second = self._kept = 0

    def of(self, name: str, instance_id: str, version: str) -> "Tracer":
        """The tracer of one instance, where the process may have several.

        Args:
            name: Its service's.
            instance_id: Its own.
            version: Its service's.
        """
        if not self._is_ours:
            return self
        one = copy.copy(self)
        one.resource = resource(name, instance_id, version)
        return one

    def begin(self, name: str, kind: SpanKind, attributes: Attributes, parent: Parent | None) -> "Span":
        """A span; if it is the root of a trace, this decides whether that is sampled.

        Args:
            name: What it is called.
            kind: Its kind.
            attributes: What is known when it begins; they are not copied.
            parent: What it is part of; None for the root of a trace.
        """
        if parent is not None:
            trace, within, is_sampled = parent
        else:
            trace_id, within = self.new_trace_id(), 0
            if self._bound is not None:
                is_sampled = trace_id & _LOW_BITS < self._bound
            else:
                is_sampled = asked(self._sampler, trace_id, name, kind, attributes)
            trace = b"%032x" % trace_id
        return Span(
            self, name, kind, attributes, trace, within, is_sampled, self.new_span_id(), time.time_ns()
        )

    def may_keep(self, now: int) -> bool:
        """Whether one more span of a trace that is not sampled is kept.

        Args:
            now: Nanoseconds since 1970.
        """
        second = now // 1_000_000_000
        if second != self._second:
            self._second, self._kept = second, 0
        self._kept += 1
        return self._kept <= self._most_kept


class Span(msgspec.Struct, gc=False, eq=False):
    """A span, while it goes on. Made by `begin`.

    It is one of OpenTelemetry's API, but no class derived from that: those take five times as long to make.

    Attributes:
        tracer: Keeps it.
        name: What it is called.
        kind: Its kind.
        attributes: What was known when it began; they are not copied.
        trace: The trace's id in hexadecimal, as it travels.
        parent: Id of the span that it is part of: 0 for none, hexadecimal if it is another process's.
        is_sampled: Whether its trace is.
        span_id: Its own id.
        start_time: When it began, in nanoseconds since 1970.
    """

    tracer: Tracer
    name: str
    kind: SpanKind
    attributes: Attributes
    trace: bytes
    parent: int | bytes
    is_sampled: bool
    span_id: int
    start_time: int
    # What most spans do not have: they are not sampled.
    _own: dict[str, Any] | None = None
    _users: BoundedAttributes | None = None
    _events: "BoundedList[Event] | None" = None
    _links: "BoundedList[Link] | None" = None
    _status: Status | None = None
    _line: bytes = b""
    _is_over: bool = False

    @property
    def trace_id(self) -> int:
        """The trace's id."""
        return int(self.trace, 16)

    @property
    def line(self) -> bytes:
        """What travels to whoever goes on with the trace: https://www.w3.org/TR/trace-context/."""
        if not self._line:
            self._line = b"\r\ntraceparent: 00-%b-%016x-0%d" % (self.trace, self.span_id, self.is_sampled)
        return self._line

    def part(self, name: str, kind: SpanKind, attributes: Attributes) -> "Span":
        """A span that is a part of it.

        Args:
            name: What it is called.
            kind: Its kind.
            attributes: What is known when it begins; they are not copied.
        """
        tracer = self.tracer
        return Span(
            tracer,
            name,
            kind,
            attributes,
            self.trace,
            self.span_id,
            self.is_sampled,
            tracer.new_span_id(),
            time.time_ns(),
        )

    @contextmanager
    def child(self, name: str) -> Generator["Span"]:
        """A part of it, for the time of a block.

        Args:
            name: What it is called.
        """
        span = self.part(name, SpanKind.INTERNAL, {})
        try:
            yield span
        except BaseException as error:
            span.finish(error)
            raise
        span.finish()

    def finish(self, error: BaseException | None = None, *, may_be_long: bool = False) -> None:
        """It is over, and perhaps since it failed; a second time this does nothing.

        Args:
            error: Why it failed.
            may_be_long: Whether it says nothing that it took long: streams may.
        """
        if self._is_over:
            return
        self._is_over = True
        now = time.time_ns()
        if not self.is_sampled:
            is_slow = not may_be_long and now - self.start_time >= self.tracer.slow
            is_failure = error is not None and _is_failure(error)
            if not (is_slow or is_failure) or not self.tracer.may_keep(now):
                return
        try:
            if error is not None:
                self._fail(error, now)
            self.tracer.on_end(self._readable(now))
        except Exception:
            # Of the user's own processor, for one: no reason for a call to fail.
            log.exception("a span was not taken")

    def _fail(self, error: BaseException, now: int) -> None:
        is_here = self.kind in _OURS
        if isinstance(error, asyncio.CancelledError):
            # Who waits no more has not failed; who serves is stopped when a drain's time is over.
            self.note("error.type", "Unavailable" if is_here else "Cancelled")
            return
        if not isinstance(error, MeshError):
            self.note("error.type", type(error).__name__)
            self._status = self._status or Status(StatusCode.ERROR, text_of(error))
            return
        self.note("error.type", kind(error))
        self.note("rpc.response.status_code", str(error.code))
        if error.instance:
            self.note("meshkit.instance", error.instance)
        if error.budget_spent:
            self.note("meshkit.retry_budget_spent", True)
        # What a caller did wrong is no failure of who says so, nor is it one to wait no more.
        # https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/
        if error.code >= 500 or not (is_here or isinstance(error, Cancelled)):
            self._status = self._status or Status(StatusCode.ERROR, encodable(error.message))
        if error.__cause__ is not None:
            self._happened("exception", exception_attributes(error.__cause__), now)

    def _readable(self, end: int) -> ReadableSpan:
        trace_id, parent = self.trace_id, None
        if self.parent:
            flags = _SAMPLED if self.is_sampled else _NOT_SAMPLED
            is_remote = isinstance(self.parent, bytes)
            parent_id = int(self.parent, 16) if isinstance(self.parent, bytes) else self.parent
            parent = SpanContext(trace_id, parent_id, is_remote, flags)
        return ReadableSpan(
            name=self.name,
            # Kept, whatever was decided for its trace.
            context=SpanContext(trace_id, self.span_id, False, _SAMPLED),
            parent=parent,
            resource=self.tracer.resource,
            attributes=self._attributes(),
            events=self._events or (),
            links=self._links or (),
            kind=self.kind,
            status=self._status or _UNSET,
            start_time=self.start_time,
            end_time=end,
            instrumentation_scope=self.tracer.scope,
        )

    def _attributes(self) -> Attributes:
        if self._users is not None:
            return {**self.attributes, **self._users, **(self._own or {})}
        return {**self.attributes, **self._own} if self._own else self.attributes

    def note(self, key: str, value: Any) -> None:
        """Add an attribute of meshkit's own, whatever was decided for the trace."""
        if self._own is None:
            self._own = {}
        self._own[key] = value

    def _happened(self, name: str, attributes: Attributes | None, timestamp: int | None) -> None:
        limits = self.tracer.limits
        if self._events is None:
            self._events = BoundedList(limits.max_events)
        most, longest = limits.max_event_attributes, limits.max_attribute_length
        bounded = BoundedAttributes(most, encodable(attributes or {}), max_value_len=longest)
        self._events.append(Event(encodable(name), bounded, timestamp or time.time_ns()))

    # What OpenTelemetry asks of a span: handlers may add to the one that is theirs.

    def get_span_context(self) -> SpanContext:
        """What names it."""
        flags = _SAMPLED if self.is_sampled else _NOT_SAMPLED
        return SpanContext(self.trace_id, self.span_id, False, flags)

    def is_recording(self) -> bool:
        """Whether what is added to it is kept."""
        return self.is_sampled and not self._is_over

    def end(self, end_time: int | None = None) -> None:
        """Nothing: who began it ends it."""

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: Any) -> None:
        """Add an attribute."""
        if not self.is_recording():
            return
        if self._users is None:
            limits = self.tracer.limits
            most, longest = limits.max_span_attributes, limits.max_span_attribute_length
            self._users = BoundedAttributes(most, immutable=False, max_value_len=longest)
        self._users[encodable(key)] = encodable(value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Add an event."""
        if self.is_recording():
            self._happened(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Add a link."""
        if not self.is_recording():
            return
        limits = self.tracer.limits
        if self._links is None:
            self._links = BoundedList(limits.max_links)
        bounded = BoundedAttributes(limits.max_link_attributes, encodable(attributes or {}))
        self._links.append(Link(context, bounded))

    def update_name(self, name: str) -> None:
        """Call it something else."""
        if self.is_recording():
            self.name = encodable(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Say how it went."""
        if not self.is_recording():
            return
        code, text = (
            (status, description)
            if isinstance(status, StatusCode)
            else (status.status_code, status.description)
        )
        self._status = Status(code, encodable(text))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an exception as an event."""
        what = exception_attributes(exception) | {"exception.escaped": str(escaped)}
        self.add_event("exception", {**what, **(attributes or {})}, timestamp)


# For `get_current_span`.
trace.Span.register(Span)


def _is_failure(error: BaseException) -> bool:
    """Whether somebody will ask why; not a caller's own mistake, nor that he waits no more."""
    if isinstance(error, MeshError):
        return error.code >= 500
    return not isinstance(error, asyncio.CancelledError)
