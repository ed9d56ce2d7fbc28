"""Batcher: calls of one loop tick, and those that arrive while all lanes are busy, share one flush.

Flushing as soon as a lane is free beats a fixed window: a lone call waits for nothing, and the busier the backend is the
larger the batches become. Used for Redis GETs, durable look-ups and commits of data objects.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from broker_edge.flow.background import Background

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """`flush(items)` answers item by item, in order; an exception among the answers is that item's own."""

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        background: Background,
        *,
        lanes: int = 1,
        most: int = 256,
    ) -> None:
        self._name = name
        self._flush = flush
        self._background = background
        self._free = lanes
        self._most = most
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._scheduled = False

    def call(self, item: T) -> asyncio.Future[R]:
        """The answer to `item`. Cancelling the future gives up this item's answer, never the batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, answer))
        if not self._scheduled and self._free:
            self._scheduled = True
            loop.call_soon(self._start)
        return answer

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
        self._start()


def _settle(future: asyncio.Future[R], answer: R | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, asyncio.CancelledError):
        future.cancel()
    elif isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
