"""Look-ups in the hot tier for requests that have no task: those of one loop tick share a round trip, a task, a verdict.

A future and a task for every hit would cost it more than Redis does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from broker_edge.core.breaker import Breaker
from broker_edge.core.exchange import Entry
from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.ports import HotTier

Then = Callable[[Entry | BaseException | None], None]


class Lookups:
    """Calls back with what `HotTier.get_many` answers, a `TierBroken` included; callbacks must not raise."""

    def __init__(self, hot: HotTier, breaker: Breaker, background: Background) -> None:
        self._hot = hot
        self._breaker = breaker
        self._background = background
        self._waiting: list[tuple[str, Then]] = []

    def ask(self, key: str, then: Then) -> None:
        self._waiting.append((key, then))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        if self._breaker.allows(time.monotonic()):
            self._background.spawn("look", self._run(batch))
        else:
            broken = TierBroken("it is left alone for a while")
            for _, then in batch:
                then(broken)

    async def _run(self, batch: Sequence[tuple[str, Then]]) -> None:
        answers: Sequence[Entry | BaseException | None] = [TierBroken("it does not answer")] * len(batch)
        try:
            answers = await self._hot.get_many([key for key, _ in batch])
        except TierBroken:
            pass
        finally:  # cancelled at the end of the process, too: somebody waits for every answer
            self._breaker.record(ok=not isinstance(answers[0], BaseException), now=time.monotonic())
            for (_, then), answer in zip(batch, answers, strict=True):
                then(answer)
