"""The embedded default: a hot tier in this process, bounded in bytes, and a fleet of one."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from broker_edge.core.exchange import Entry
from broker_edge.ports import Bell, Lead

_OVERHEAD = 400  # bytes of objects around a value: key, entry, dictionary slot


@dataclass(slots=True)
class _Held:
    entry: Entry
    until: float | None

    @property
    def size(self) -> int:
        return len(self.entry.value) + _OVERHEAD


class MemoryHot:
    """`ports.HotTier` in a dictionary: least recently used entries leave first, expired ones when they are met."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.bytes_held = 0

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        return [self.peek(key) for key in keys]

    def peek(self, key: str) -> Entry | None:
        held = self._held.get(key)
        if held is None:
            return None
        if held.until is not None and held.until <= self._clock():
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return held.entry

    async def put(self, key: str, entry: Entry, lifetime: float | None) -> None:
        self._drop(key)
        held = _Held(entry, None if lifetime is None else self._clock() + lifetime)
        if held.size > self._max_bytes:
            return
        self._held[key] = held
        self.bytes_held += held.size
        while self.bytes_held > self._max_bytes:
            self._drop(next(iter(self._held)))

    async def delete(self, key: str) -> None:
        self._drop(key)

    async def ping(self) -> None:
        return None

    async def aclose(self) -> None:
        self._held.clear()
        self.bytes_held = 0

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.bytes_held -= held.size


class _SilentBell:
    async def ring(self, timeout: float) -> bytes | None:
        return None


class LoneFleet:
    """`ports.Fleet` of one process: in-process flights have already made this call the only one, so every bid wins."""

    def __init__(self, hot: MemoryHot) -> None:
        self._hot = hot

    @contextlib.asynccontextmanager
    async def listen(self, key: str) -> AsyncIterator[Bell]:
        yield _SilentBell()

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        return Lead(True, self._hot.peek(key))

    async def renew(self, key: str, token: str, lease: float) -> bool:
        return True

    async def settle(self, key: str, token: str, message: bytes) -> None:
        return None
