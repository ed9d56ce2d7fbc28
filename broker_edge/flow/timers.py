"""One timer of the event loop for many deadlines, nearly all of which are called off: a hashed timing wheel.

G. Varghese and T. Lauck, Hashed and Hierarchical Timing Wheels, 1987. Here because a deadline of the event loop costs over two
microseconds to set and call off, `asyncio.timeout` three, and a place in the wheel a quarter of that; a miss needs several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Alarm = tuple[int, int]


class TimingWheel:
    """Calls come never early and up to `grain` seconds late; they must not raise. Times are those of the running loop."""

    def __init__(self, grain: float = 0.001) -> None:
        self._grain = grain
        self._slots: dict[int, dict[int, Callable[[], None]]] = {}
        self._made = 0
        self._next = 0  # the slot for which the timer is set
        self._timer: asyncio.TimerHandle | None = None

    def at(self, when: float, call: Callable[[], None]) -> Alarm:
        """Have `call` called at `when`, unless the alarm that is answered is called `off` before."""
        slot = int(when / self._grain) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            if self._timer is None or slot < self._next:
                self._set(slot)
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

    def _set(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = asyncio.get_running_loop().call_at(slot * self._grain, self._turn)

    def _turn(self) -> None:
        self._timer = None
        due = asyncio.get_running_loop().time() / self._grain
        for slot in sorted(slot for slot in self._slots if slot <= due):
            calls = self._slots.get(slot, {})
            while calls:  # one by one: each may call off others
                calls.pop(next(iter(calls)))()
            self._slots.pop(slot, None)
        if self._slots and self._timer is None:
            self._set(min(self._slots))
