"""What the launcher does for `meshkit run --trace`: it puts the workers' spans together and shows them."""

import bisect
from collections.abc import Iterable

import anyio
import msgspec

from meshkit.launcher.messages import Spans
from meshkit.launcher.view import Notice, View
from meshkit.telemetry.traces.tree import Span

# Seconds between two looks at what is complete.
_EVERY = 0.1
# Seconds that a trace waits for more of its spans: workers send them ten times a second.
_WAIT = 0.5
# The same while one of its spans is known to go on, as it is part of another that has not come.
_PATIENCE = 30.0
# Traces that are shown in a second, and that may wait; spans of one; ids of those that are over.
_SHOWN, _WAITING, _MOST, _REMEMBERED = 10, 500, 400, 2000


class _Trace(msgspec.Struct):
    """What has come of a trace.

    Attributes:
        spans: Those of them that are kept: the first, and so all that they are part of.
        latest: When the last one came.
        left_out: How many are not.
    """

    spans: list[Span]
    latest: float
    left_out: int = 0

    def add(self, span: Span) -> None:
        bisect.insort(self.spans, span, key=_begins)
        if len(self.spans) > _MOST:
            self.spans.pop()
            self.left_out += 1

    def is_complete(self, now: float) -> bool:
        idle = now - self.latest
        if idle < _WAIT:
            return False
        known = {span.id for span in self.spans}
        # A parent in the same process ends later, whenever that is; of another process's nobody knows.
        goes_on = any(span.parent and not span.is_remote and span.parent not in known for span in self.spans)
        return not goes_on or idle >= _PATIENCE


def _begins(span: Span) -> tuple[int, int]:
    """What something is part of goes before it."""
    return span.start, -span.end


class Traces:
    """Traces that are not complete yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Trace] = {}
        # Ids of those that were shown, or left out.
        self._over: dict[str, None] = {}
        self._second = self._shown = 0
        self._left_out = self._late = 0

    async def show(self, view: View) -> None:
        """Show what is complete; when this is cancelled, the rest.

        Args:
            view: Where.
        """
        try:
            while True:
                await anyio.sleep(_EVERY)
                now = anyio.current_time()
                if int(now) != self._second:
                    self._second, self._shown = int(now), 0
                    self._tell(view)
                self._show(view, self._complete(now))
        finally:
            self._show(view, list(self._waiting))
            self._tell(view)

    def add(self, told: Spans, now: float) -> None:
        """Take what a worker tells.

        Args:
            told: Its spans.
            now: The time, in seconds.
        """
        self._left_out += told.left_out
        for span in told.spans:
            if span.trace in self._over:
                self._late += 1
                continue
            trace = self._waiting.get(span.trace)
            if trace is None:
                trace = self._waiting[span.trace] = _Trace([], now)
            trace.latest = now
            trace.add(span)
        while len(self._waiting) > _WAITING:
            self._take(next(iter(self._waiting)))
            self._left_out += 1

    def _complete(self, now: float) -> list[str]:
        """The ids of traces that are, those that failed first."""
        complete = [key for key, trace in self._waiting.items() if trace.is_complete(now)]
        return sorted(complete, key=lambda key: not any(span.has_failed for span in self._waiting[key].spans))

    def _show(self, view: View, keys: Iterable[str]) -> None:
        for key in keys:
            trace = self._take(key)
            if self._shown < _SHOWN:
                self._shown += 1
                view.trace(trace.spans, trace.left_out)
            else:
                self._left_out += 1

    def _take(self, key: str) -> _Trace:
        self._over[key] = None
        while len(self._over) > _REMEMBERED:
            del self._over[next(iter(self._over))]
        return self._waiting.pop(key)

    def _tell(self, view: View) -> None:
        """Say what was not shown."""
        if self._left_out:
            view.notice(Notice("trace", f"{self._left_out} more traces are not shown"))
        if self._late:
            view.notice(Notice("trace", f"{self._late} spans came when their traces had been shown"))
        self._left_out = self._late = 0
