"""Batcher: calls of one loop tick, and those that arrive while all lanes are busy, share one flush.

Flushing as soon as a lane is free beats a fixed window: a lone call waits for nothing, and the busier the backend is the
larger the batches become. Used for Redis GETs, durable look-ups and commits of data objects.

A fast backend keeps batches small though, and then it is the event loop that is short of time: there `gathering` lets a batch
wait until half of the work in hand is in it. Requests go on together from there, and share reads, writes and wake-ups.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.gathering import Gathering

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """`flush(items)` answers item by item, in order; an exception among the answers is that item's own.

    A call that has no answer `within` seconds raises TierBroken. The flush goes on: it is others' too. `gathering` says
    when a batch may wait for more; without it none does.
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
        gathering: Gathering | None = None,
    ) -> None:
        self._name = name
        self._flush = flush
        self._background = background
        self._free = lanes
        self._most = most
        self._within = within
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._gathering = gathering
        self._start_at: asyncio.Handle | None = None
        self._patient = False
        self._due: deque[tuple[float, asyncio.Future[R]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def call(self, item: T) -> asyncio.Future[R]:
        """The answer to `item`. Cancelling the future gives up this item's answer, never the batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, answer))
        if self._gathering is not None:
            self._gathering.came()
        if self._free and (self._start_at is None or (self._patient and len(self._waiting) >= self._enough())):
            self._schedule(loop)
        if self._within is not None:
            self._watch(answer, loop.time() + self._within)
        return answer

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start at the end of this tick; or, where that is worth waiting for, once there are enough."""
        if self._start_at is not None:
            self._start_at.cancel()
        enough, gathering = self._enough(), self._gathering
        self._patient = gathering is not None and len(self._waiting) < enough and gathering.worth(enough)
        if gathering is not None and self._patient:
            self._start_at = loop.call_later(gathering.patience, self._start)
        else:
            self._start_at = loop.call_soon(self._start)

    def _enough(self) -> int:
        return min(self._most, self._background.in_hand // 2)

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
        self._start_at, self._patient = None, False
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
        if self._waiting and self._start_at is None:
            self._schedule(asyncio.get_running_loop())


def _settle(future: asyncio.Future[R], answer: R | BaseException) -> None:
    if future.done():
        return
    if not isinstance(answer, BaseException):
        future.set_result(answer)
    elif isinstance(answer, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(answer)
