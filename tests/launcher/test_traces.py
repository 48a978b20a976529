"""What the launcher makes of the spans that its workers tell of."""

import anyio
import pytest

from meshkit.launcher.messages import Spans
from meshkit.launcher.traces import Traces
from meshkit.telemetry.traces.tree import Span


class Seen:
    """A view: the spans of each trace, and what was noticed."""

    def __init__(self):
        self.traces = []
        self.left_out = []
        self.notices = []

    def trace(self, spans, left_out):
        self.traces.append([span.id for span in spans])
        self.left_out.append(left_out)

    def notice(self, notice):
        self.notices.append(notice.what)


def span(trace, id_, parent="", **more):
    return Span(trace=trace, id=id_, parent=parent, name=id_, **{"start": 0, "end": 1, **more})


@pytest.fixture
async def shown(clock):
    """Traces, and who sees them; `clock.advance` has them looked at."""
    traces, seen = Traces(), Seen()
    traces.tell = lambda *spans, left_out=0: traces.add(Spans(list(spans), left_out), anyio.current_time())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(traces.show, seen)
        await clock.advance(1 - clock.now() % 1 + 0.01)  # a second begins
        yield traces, seen, clock
        tasks.cancel_scope.cancel()


async def test_a_trace_is_shown_when_nothing_more_comes(shown):
    traces, seen, clock = shown
    traces.tell(span("t", "served", "attempt", is_remote=True))
    await clock.advance(0.3)
    traces.tell(span("t", "attempt", "call"), span("t", "call"))
    await clock.advance(0.4)
    assert seen.traces == []
    await clock.advance(0.3)
    assert seen.traces == [["served", "attempt", "call"]]


async def test_a_trace_waits_for_a_span_that_goes_on(shown):
    traces, seen, clock = shown
    traces.tell(span("t", "attempt", "call"))
    await clock.advance(20)
    assert seen.traces == []
    traces.tell(span("t", "call"))
    await clock.advance(0.7)
    assert seen.traces == [["attempt", "call"]]


async def test_not_for_ever(shown):
    traces, seen, clock = shown
    traces.tell(span("t", "attempt", "call"))
    await clock.advance(31)
    assert seen.traces == [["attempt"]]


async def test_what_comes_late_is_not_shown_again(shown):
    traces, seen, clock = shown
    traces.tell(span("t", "call"))
    await clock.advance(0.7)
    traces.tell(span("t", "served", "call", is_remote=True))
    await clock.advance(2)
    assert seen.traces == [["call"]]
    assert seen.notices == ["1 spans came when their traces had been shown"]


async def test_so_many_a_second_are_shown_those_that_failed_first(shown):
    traces, seen, clock = shown
    traces.tell(*(span(f"{n}", f"{n}", has_failed=n == 24) for n in range(25)), left_out=5)
    await clock.advance(0.7)
    assert seen.traces[0] == ["24"]
    assert len(seen.traces) == 10
    await clock.advance(1)
    # Those that the workers left out may be known a second before the others.
    assert sum(int(text.removesuffix(" more traces are not shown")) for text in seen.notices) == 5 + 15


async def test_what_waits_is_bounded(shown):
    traces, seen, clock = shown
    for n in range(2000):
        traces.tell(span(f"{n}", "attempt", "call"), *[span("one", f"{n}", "call")] * 5)
    assert len(traces._waiting) <= 500
    await clock.advance(1)
    assert seen.notices[0] == "1501 more traces are not shown"


async def test_of_a_long_trace_the_beginning_is_kept_and_its_root(shown):
    traces, seen, clock = shown
    calls = [span("t", f"{n}", "root", start=10 + n, end=11 + n) for n in range(1000)]
    for n in range(0, 1000, 100):
        traces.tell(*reversed(calls[n : n + 100]))
        await clock.advance(0.1)
    traces.tell(span("t", "root", start=10, end=2000))
    await clock.advance(0.7)
    assert seen.traces == [["root", *(f"{n}" for n in range(399))]]
    assert seen.left_out == [601]


async def test_in_the_end_all_is_shown(clock):
    traces, seen = Traces(), Seen()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(traces.show, seen)
        await clock.advance(0.01)
        traces.add(Spans([span("t", "attempt", "call")]), clock.now())
        tasks.cancel_scope.cancel()
    assert seen.traces == [["attempt"]]
