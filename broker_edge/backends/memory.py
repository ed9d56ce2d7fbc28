"""The embedded default: a hot tier in this process, bounded in bytes, and a fleet of one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from broker_edge.backends.bells import Bells
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

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        if only_if_absent and self.peek(key) is not None:
            return
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


class LoneFleet:
    """`ports.Fleet` of one process. Its leases keep apart what single flights don't: a refresh and a live fetch of one key."""

    def __init__(self, hot: MemoryHot, clock: Callable[[], float] = time.monotonic) -> None:
        self._hot = hot
        self._clock = clock
        self._leases: dict[str, tuple[str, float]] = {}
        self._bells = Bells()

    def listen(self, key: str) -> AbstractAsyncContextManager[Bell]:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        holder, until = self._leases.get(key, ("", 0.0))
        left = until - self._clock()
        if left > 0 and holder != token:
            return Lead(False, lease_left=left)
        self._leases[key] = (token, self._clock() + lease)
        return Lead(True, self._hot.peek(key))

    async def renew(self, key: str, token: str, lease: float) -> bool:
        holds = self._holds(key, token)
        if holds:
            self._leases[key] = (token, self._clock() + lease)
        return holds

    async def settle(self, key: str, token: str, message: bytes) -> None:
        # Lapsed or not, as long as nobody else has it: whoever waits is told.
        if self._leases.get(key, ("", 0.0))[0] == token:
            del self._leases[key]
            self._bells.strike(key, message)

    def _holds(self, key: str, token: str) -> bool:
        holder, until = self._leases.get(key, ("", 0.0))
        return holder == token and until > self._clock()
