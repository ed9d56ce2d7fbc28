"""Supervised tasks: the only home of create_task. A task here is held, named, and its exception always retrieved."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from broker_edge.flow.timers import TimingWheel

T = TypeVar("T")
_INSIST = 0.2  # seconds for a loop to end before it is cancelled once more
OnCrash = Callable[[str, BaseException], None]


class Background:
    """Owns every task that outlives a call; `on_crash(name, error)` hears of what nobody awaited. `timers` is the work's."""

    def __init__(self, on_crash: OnCrash) -> None:
        self.timers = TimingWheel()
        self._on_crash = on_crash
        self._work: set[asyncio.Task[Any]] = set()
        self._loops: set[asyncio.Task[Any]] = set()

    @property
    def in_hand(self) -> int:
        """How many tasks run that end by themselves."""
        return len(self._work)

    def spawn(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work that ends by itself; `drain` waits for it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._work.add(task)
        task.add_done_callback(self._finished)
        return task

    def supervise(self, name: str, body: Callable[[], Awaitable[None]], pause: float = 0.5) -> None:
        """Run an endless loop; it starts again after `pause` seconds whenever it fails."""
        task = asyncio.get_running_loop().create_task(self._forever(name, body, pause), name=name)
        self._loops.add(task)
        task.add_done_callback(self._loops.discard)

    async def drain(self, timeout: float) -> int:
        """Wait for the work in hand, at most `timeout` seconds; cancel and count the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        # Again and again: work that ends may have begun some more, like a fetch the release of its lease.
        while self._work and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._work, timeout=left)
        late = [task for task in self._work if not task.done()]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1)
        return len(late)

    async def stop(self) -> None:
        """End the endless loops."""
        # Again and again: redis-py swallows a cancellation that meets it while it connects.
        while loops := list(self._loops):
            for task in loops:
                task.cancel()
            await asyncio.wait(loops, timeout=_INSIST)

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            try:
                await body()
            except Exception as error:  # noqa: BLE001 a supervised loop must survive whatever its body does
                with contextlib.suppress(Exception):  # nor may who hears of it end it
                    self._on_crash(name, error)
            await asyncio.sleep(pause)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_crash(task.get_name(), error)
