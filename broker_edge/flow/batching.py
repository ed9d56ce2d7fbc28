"""Batcher: calls of one loop tick, and those that arrive while all lanes are busy, share one flush.

Flushing as soon as a lane is free beats a fixed window: a lone call waits for nothing, and the busier the backend is the
larger the batches become. Used for Redis GETs, durable look-ups and commits of data objects.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """`flush(items)` answers item by item, in order; an exception among the answers is that item's own.

    A call that has no answer `within` seconds raises TierBroken. The flush goes on: it is others' too.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        background: Background,
        *,
        lanes: int = 1,
        most: int = 256,
        within: float | None = None,
    ) -> None:
        self._name = name
        self._flush = flush
        self._background = background
        self._free = lanes
        self._most = most
        self._within = within
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._scheduled = False
        self._due: deque[tuple[float, asyncio.Future[R]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def call(self, item: T) -> asyncio.Future[R]:
        """The answer to `item`. Cancelling the future gives up this item's answer, never the batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, answer))
        if not self._scheduled and self._free:
            self._scheduled = True
            loop.call_soon(self._start)
        if self._within is not None:
            self._watch(answer, loop.time() + self._within)
        return answer

    def _watch(self, answer: asyncio.Future[R], until: float) -> None:
        """All wait equally long, so they are due in their order, and one timer does for all of them."""
        due = self._due
        while due and due[0][1].done():
            due.popleft()
        due.append((until, answer))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(until, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        loop, due = asyncio.get_running_loop(), self._due
        now = loop.time()
        while due and (due[0][0] <= now or due[0][1].done()):
            answer = due.popleft()[1]
            if not answer.done():
                answer.set_exception(TierBroken("it does not answer"))
        if due:
            self._timer = loop.call_at(due[0][0], self._give_up)

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and self._free:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [call for call in batch if not call[1].done()]  # whose caller has given up
            if batch:
                self._free -= 1
                self._background.spawn(self._name, self._run(batch))

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        settled: list[tuple[tuple[T, asyncio.Future[R]], R | BaseException]]
        try:
            answers = await self._flush([item for item, _ in batch])
            settled = list(zip(batch, answers, strict=True))
        except BaseException as error:  # noqa: BLE001 whatever befell the flush is every item's answer
            settled = [(call, error) for call in batch]
        finally:
            self._free += 1
        for (_, future), answer in settled:
            _settle(future, answer)
        if self._waiting:
            self._start()


def _settle(future: asyncio.Future[R], answer: R | BaseException) -> None:
    if future.done():
        return
    if not isinstance(answer, BaseException):
        future.set_result(answer)
    elif isinstance(answer, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(answer)
