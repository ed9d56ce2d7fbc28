"""When a batch gains from waiting for more: on an event loop that is short of time, for company that is sure to come soon.

A loop with time to spare keeps nobody waiting, and nobody waits for requests that an upstream holds up for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SCARCE = 0.5  # share of the time; a full loop whose batches have become large is at three quarters
_WINDOW = 0.02  # seconds over which shares and rates are taken


class Gathering:
    """`patience` in seconds; `used` counts the CPU seconds of the thread that asks, which has to be the loop's."""

    def __init__(
        self,
        patience: float,
        *,
        now: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        self.patience = patience
        self._now = now
        self._used = used
        self._came = 0
        self._most = 0.0
        self._since, self._used_then = now(), used()

    def came(self) -> None:
        """One more call; of each that comes."""
        self._came += 1

    def worth(self, wanted: int) -> bool:
        """Whether as many as are `wanted` will have come within `patience`, if it goes on as in the last window."""
        now = self._now()
        passed = now - self._since
        if passed >= _WINDOW:
            used = self._used()
            scarce = used - self._used_then > _SCARCE * passed
            self._most = self._came / passed * self.patience if scarce else 0.0
            self._since, self._used_then, self._came = now, used, 0
        return wanted <= self._most
