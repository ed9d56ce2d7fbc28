"""One timer of the event loop for many deadlines, nearly all of which are called off: a hashed timing wheel.

G. Varghese and T. Lauck, Hashed and Hierarchical Timing Wheels, 1987. Here because a deadline of the event loop costs over two
microseconds to set and call off, `asyncio.timeout` three, and a place in the wheel a quarter of that; a miss needs several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

Alarm = tuple[int, int]
_STALE = 1000  # numbers of slots that are gone, from which on they are weeded out


class TimingWheel:
    """Calls come never early and up to `grain` seconds late; they must not raise. Times are those of the running loop."""

    def __init__(self, grain: float = 0.001) -> None:
        self._grain = grain
        self._slots: dict[int, dict[int, Callable[[], None]]] = {}
        self._order: list[int] = []  # a heap of their numbers, and of numbers whose slot is gone
        self._made = 0
        self._next = inf  # the slot for which the timer is set; nothing comes before the end of a turn that is under way
        self._timer: asyncio.TimerHandle | None = None

    def at(self, when: float, call: Callable[[], None]) -> Alarm:
        """Have `call` called at `when`, unless the alarm that is answered is called `off` before."""
        slot = int(when / self._grain) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            self._put_in_order(slot)
        self._made = number = self._made + 1
        calls[number] = call
        return slot, number

    def off(self, alarm: Alarm) -> None:
        """Call an alarm off; one that has gone off stays as it is."""
        slot, number = alarm
        calls = self._slots.get(slot)
        if calls is not None:
            calls.pop(number, None)
            if not calls:  # the timer stays: setting it anew for each would cost what the wheel saves
                del self._slots[slot]

    def _put_in_order(self, slot: int) -> None:
        order = self._order
        if len(order) > _STALE + 2 * len(self._slots):  # nearly all are stale, and some may be so for minutes
            order[:] = self._slots
            heapify(order)
        else:
            heappush(order, slot)
        if slot < self._next:
            self._set(slot)

    def _set(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = asyncio.get_running_loop().call_at(slot * self._grain, self._turn)

    def _turn(self) -> None:
        self._timer, self._next = None, -inf
        due = asyncio.get_running_loop().time() / self._grain
        slots, order = self._slots, self._order
        try:
            while order and (order[0] <= due or order[0] not in slots):
                self._run(heappop(order))
        finally:
            self._next = inf
            if order:
                self._set(order[0])

    def _run(self, slot: int) -> None:
        """One by one: each may call off others of the slot, or add some to it, which then has a place in the order anew."""
        try:
            while calls := self._slots.get(slot):
                call = calls.pop(next(iter(calls)))
                if not calls:
                    del self._slots[slot]
                call()
        finally:
            if slot in self._slots:  # one has raised, against the rule: the others must not pay for it
                heappush(self._order, slot)
