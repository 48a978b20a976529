"""Deadlines that are hardly ever reached, for the price of two dictionary operations each."""

import asyncio
import contextvars
import math
from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry")

# Of each second. A slot shorter than a usual timeout; a timer a slot, used or not.
_SLOTS = 10
# Seconds ahead for which there are slots, so that deadlines far off, which anybody can ask for, are no more.
_AHEAD = 60.0


class Deadlines(Generic[Entry]):
    """Something is to happen to each entry at its deadline, unless it is taken out before.

    A timer of the event loop, set and cancelled for each call, costs three times as much on uvloop and five
    times on asyncio (`python -m benchmarks.layers`). Entries are kept in slots of a tenth of a second, and
    only what is still there when it is due within one gets a timer of its own, which then is exact: a timing
    wheel of two levels (Varghese and Lauck, "Hashed and hierarchical timing wheels", 1987).

    Args:
        expire: What is to happen. The entry is out of its slot then.
    """

    __slots__ = ("_context", "_expire", "_loop", "_slots")

    def __init__(self, expire: Callable[[Entry], object]) -> None:
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        # A timer keeps the context that it is set in, and with it the request that set it.
        self._context = contextvars.Context()
        self._slots: dict[int, dict[Entry, float]] = {}

    def add(self, entry: Entry, deadline: float) -> dict[Entry, float]:
        """Put an entry in.

        Args:
            entry: Anything hashable.
            deadline: On the event loop's clock, in seconds.

        Returns:
            The slot; whoever is done takes the entry out of it: `slot.pop(entry, None)`.
        """
        slot = self._slots.get(int(deadline * _SLOTS))
        if slot is None:
            slot = self._new_slot(entry, deadline)
        slot[entry] = deadline
        return slot

    def _new_slot(self, entry: Entry, deadline: float) -> dict[Entry, float]:
        now = self._loop.time()
        number = int(min(deadline, now + _AHEAD) * _SLOTS)
        begin = number / _SLOTS
        if begin <= now:
            # It has begun already: the entry is on its own.
            slot: dict[Entry, float] = {}
            self._loop.call_at(deadline, self._reach, slot, entry, context=self._context)
            return slot
        slot = self._slots.get(number, {})
        if number not in self._slots:
            self._slots[number] = slot
            self._loop.call_at(begin, self._begin, number, context=self._context)
        return slot

    def _begin(self, number: int) -> None:
        self._look(self._slots.pop(number))

    def _look(self, slot: dict[Entry, float]) -> None:
        """Give timers to the entries that are due within a slot's time; look at the others again later.

        A timer of its own would keep an entry that is taken out until its deadline, however far off that is.
        """
        now = self._loop.time()
        again = math.inf
        for entry, deadline in slot.items():
            if deadline < now + 1 / _SLOTS:
                self._loop.call_at(deadline, self._reach, slot, entry, context=self._context)
            else:
                again = min(again, deadline)
        if again < math.inf:
            self._loop.call_at(min(again, now + _AHEAD), self._look, slot, context=self._context)

    def _reach(self, slot: dict[Entry, float], entry: Entry) -> None:
        if slot.pop(entry, None) is not None:
            self._expire(entry)
