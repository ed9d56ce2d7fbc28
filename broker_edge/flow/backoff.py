"""Which keys are left alone for a while, because their last refill failed while a stale entry is at hand.

Otherwise each request that is served a stale entry would begin a refill, and a source in trouble would be hammered by those who
don't even need it. Each process keeps its own pauses: what is lost with it costs one call.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from random import random as chance

from broker_edge.core.backoff import Pause, paused


class Backoff:
    """Pauses by key, the least recently needed forgotten first; `held_back` counts the refills that were not made.

    `now` in seconds by any clock that never goes back.
    """

    def __init__(
        self, most: int = 50_000, *, now: Callable[[], float] = time.monotonic, random: Callable[[], float] = chance
    ) -> None:
        self.held_back = 0
        self._most = most
        self._now = now
        self._random = random
        self._pauses: OrderedDict[str, Pause] = OrderedDict()

    def holds(self, key: str) -> bool:
        """Whether `key` is left alone for now, and may be answered with what is stale meanwhile.

        An upstream that said "there is none" is not in trouble: who asks while its word is fresh must hear it too.
        """
        pause = self._lasting(key)
        return pause is not None and pause.excused

    def lets(self, key: str) -> bool:
        """Whether a refill of `key` behind a stale reply may begin; counts it where not."""
        held = self._lasting(key) is not None
        self.held_back += held
        return not held

    def _lasting(self, key: str) -> Pause | None:
        pause = self._pauses.get(key)
        if pause is None or pause.until <= self._now():
            return None
        self._pauses.move_to_end(key)
        return pause

    def failed(self, key: str, retry_after: float | None, *, excused: bool = True) -> None:
        before, now = self._pauses.get(key), self._now()
        self._pauses[key] = paused(before, now, retry_after=retry_after, rand=self._random(), excused=excused)
        self._pauses.move_to_end(key)
        if len(self._pauses) > self._most:
            self._pauses.popitem(last=False)

    def succeeded(self, key: str) -> None:
        self._pauses.pop(key, None)
