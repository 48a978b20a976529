"""What became of the calls of a drill, and what that says."""

import collections
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

# Seconds of calls that are looked at together to see whether all is well again.
WINDOW = 0.25
# A window is slow when half of its calls take so many times longer than before the fault.
_SLOWER = 3


class Call(NamedTuple):
    """A call, as its caller has it; times are of a clock that all processes of a machine share.

    Attributes:
        n: Its number.
        kind: What was called.
        due: When it should have been made.
        took: Seconds from then until it was back.
        waited: Seconds from when it was made until it was back.
        came: `answered`, `wrong`, or the error's name.
        code: The error's code.
    """

    n: int
    kind: str
    due: float
    took: float
    waited: float
    came: str
    code: int

    @property
    def back(self) -> float:
        """When its caller knew."""
        return self.due + self.took

    @property
    def is_answered(self) -> bool:
        """Whether it had its own answer."""
        return self.came == "answered"


class Execution(NamedTuple):
    """An execution, as the instance noted it.

    Attributes:
        n: The call's number.
        attempt: Which attempt of its caller's.
        pid: The instance.
        began: When.
        ended: When; None if the instance did not get that far.
        how: `end`, `fail`, `stop`; empty if it did not get that far.
    """

    n: int
    attempt: int
    pid: int
    began: float
    ended: float | None = None
    how: str = ""


class Course:
    """A drill's load from its first call to its last, and the fault in it.

    Args:
        slower: Seconds that half of the calls of a window must be slower for it to be slow.

    Attributes:
        fault: When the fault began.
        over: When it was over; of what happens in a moment, the same.
        calls: All of them, in order.
        executions: Likewise.
    """

    def __init__(self, slower: float) -> None:
        self._slower = slower
        self.fault = self.over = 0.0
        self.calls: list[Call] = []
        self.executions: list[Execution] = []

    def begins(self) -> None:
        """The fault is there."""
        self.fault = self.over = time.perf_counter()

    def ends(self) -> None:
        """The fault is over."""
        self.over = time.perf_counter()

    def join(self, calls: Iterable[Call]) -> None:
        """Calls that others made meanwhile."""
        self.calls = sorted((*self.calls, *calls), key=lambda call: call.due)

    def of(self, *kinds: str) -> list[Call]:
        """The calls of these kinds; all, if none is named."""
        return [call for call in self.calls if not kinds or call.kind in kinds]

    def during(self, *kinds: str) -> list[Call]:
        """Those that were due while there was the fault."""
        return [call for call in self.of(*kinds) if self.fault <= call.due < self.over]

    def stray(self, kind: str, killed: float) -> int:
        """How many calls without answer were not in flight when something was killed.

        Args:
            kind: Of which calls.
            killed: When everybody knew.
        """
        calls = (call for call in self.of(kind) if not call.is_answered)
        return sum(not (call.due <= killed and call.back >= self.fault) for call in calls)

    def executed(self, *kinds: str) -> list[Execution]:
        """The executions of calls of these kinds."""
        numbers = {call.n for call in self.of(*kinds)}
        return [execution for execution in self.executions if execution.n in numbers]

    def figures(self, kind: str, *, until: float) -> dict[str, Any]:
        """What there is to say of the calls of a kind.

        Args:
            kind: Which.
            until: What counts as during the fault ends there, for a fault of a moment.
        """
        calls = self.of(kind)
        parts = (
            [call for call in calls if call.back < self.fault],
            [call for call in calls if call.back >= self.fault and call.due < until],
            [call for call in calls if call.due >= until],
        )
        return {
            "sent": len(calls),
            "answered": sum(call.is_answered for call in calls),
            "lost": sum(call.came == "DeadlineExceeded" for call in calls),
            "executed twice": len(twice(self.executed(kind))),
            "wrong": len(wrong(calls, self.executions)),
            "errors": errors(calls),
            "p50 ms": [percentile(part, 0.5) for part in parts],
            "p99 ms": [percentile(part, 0.99) for part in parts],
            "detected s": self.detected(kind),
            "recovered s": self._recovery(kind, parts[0]),
        }

    def _recovery(self, kind: str, before: list[Call]) -> float | str | None:
        """What there is to say of it; nothing of calls that were not answered before the fault either."""
        if not before or failed(before):
            return None
        seconds = self.recovered(kind)
        return "never" if seconds is None else seconds

    def detected(self, kind: str) -> float | None:
        """Seconds until the first caller knew, by an error or a second attempt; None if none did."""
        known = [call.back for call in self.of(kind) if not call.is_answered]
        known += [execution.began for execution in self.executed(kind) if execution.attempt > 1]
        return min((at - self.fault for at in known if at >= self.fault), default=None)

    def recovered(self, kind: str) -> float | None:
        """Seconds from the end of the fault until all was as before; None if it never was.

        It is as before in a window in which every call is answered, half of them about as fast as before.
        """
        calls = [call for call in self.of(kind) if call.due >= self.over]
        usual = percentile([call for call in self.of(kind) if call.back < self.fault], 0.5) or 0.0
        slow = max(usual * _SLOWER, usual + self._slower * 1e3)
        windows = collections.defaultdict[int, list[Call]](list)
        for call in calls:
            windows[int((call.due - self.over) / WINDOW)].append(call)
        disturbed = [
            at
            for at, window in windows.items()
            if not all(call.is_answered for call in window) or (percentile(window, 0.5) or 0.0) > slow
        ]
        if not disturbed:
            return 0.0
        # The last window may be short.
        return None if max(disturbed) >= max(windows) - 1 else (max(disturbed) + 1) * WINDOW


def failed(calls: Iterable[Call]) -> int:
    """How many had no answer."""
    return sum(not call.is_answered for call in calls)


def share(calls: list[Call]) -> float:
    """What part had none."""
    return failed(calls) / len(calls) if calls else 0.0


def twice(executions: Iterable[Execution]) -> list[int]:
    """The numbers of calls that were executed more than once."""
    return [n for n, count in collections.Counter(one.n for one in executions).items() if count > 1]


def wrong(calls: Iterable[Call], executions: Iterable[Execution]) -> list[int]:
    """The numbers of calls that were answered with another's answer, or without having been executed."""
    executed = {execution.n for execution in executions}
    return [c.n for c in calls if c.came == "wrong" or (c.is_answered and c.n not in executed)]


def unheard(calls: Iterable[Call], executions: Iterable[Execution]) -> list[Execution]:
    """Executions that began after their caller had given up."""
    back = {call.n: call.back for call in calls if not call.is_answered}
    return [one for one in executions if one.n in back and one.began > back[one.n]]


def errors(calls: Iterable[Call]) -> dict[str, int]:
    """What else came than answers, and how often."""
    came = (f"{call.code} {call.came}" if call.code else call.came for call in calls if not call.is_answered)
    return dict(collections.Counter(came))


def percentile(calls: Iterable[Call], part: float) -> float | None:
    """Milliseconds within which that part of the answered calls was answered, from when they were due."""
    taken = sorted(call.took for call in calls if call.is_answered)
    return taken[min(len(taken) - 1, int(len(taken) * part))] * 1e3 if taken else None


def waited(calls: Iterable[Call]) -> float | None:
    """The median of the milliseconds from when calls were made until they were back."""
    taken = [call.waited for call in calls]
    return statistics.median(taken) * 1e3 if taken else None


def executions(directory: Path) -> list[Execution]:
    """All that was noted. A line that a killed process left unfinished ends nothing."""
    found: list[Execution] = []
    for file in directory.glob("*.notes"):
        running: dict[tuple[int, int], Execution] = {}
        for line in file.read_text(encoding="ascii").splitlines():
            what, n, attempt, at = line.split()
            key = int(n), int(attempt)
            if what == "begin":
                # The same attempt again is another execution, and what is counted here.
                found += [running.pop(key)] if key in running else []
                running[key] = Execution(*key, int(file.stem), float(at))
            elif key in running:
                found.append(running.pop(key)._replace(ended=float(at), how=what))
        found += running.values()
    return sorted(found, key=lambda execution: execution.began)
