"""The roles, on a machine whose clocks are wrong by `skew` seconds.

Python's wall clock is shifted in this process before anything else is imported, and with it the clock of the
event loop, which on another machine begins elsewhere too. That of C code is not: there nothing but TLS asks
for it.
"""

import datetime as dt
import json
import sys
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

_skew = json.loads(sys.argv[-1])["skew"]


class _Skewed(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        return super().now(tz) + dt.timedelta(seconds=_skew)

    @classmethod
    def utcnow(cls) -> dt.datetime:
        return cls.now(dt.UTC).replace(tzinfo=None)


def _shift(name: str, step: int) -> None:
    clock = getattr(time, name)
    setattr(time, name, lambda: clock() + step)


_shift("time", _skew)
_shift("time_ns", _skew * 10**9)
# Not to less than nothing, on a machine that has just started.
_shift("monotonic", abs(_skew))
_shift("monotonic_ns", abs(_skew) * 10**9)
dt.datetime = _Skewed

from benchmarks.faults import roles  # noqa: E402 # with the clocks shifted


def serve(*, skew: int, **settings: Any) -> AbstractAsyncContextManager[roles.Commands]:
    """An instance of the service."""
    assert skew == _skew
    return roles.serve(**settings)
