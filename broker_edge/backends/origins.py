"""What an HTTP engine keeps per origin (scheme, host, port, address, TLS): a client or a pool, the least recently used given up.

One address and one trust per entry: a connection opened for one target can never carry another's request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from broker_edge.core.exchange import Target

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    users: int = 0


class Origins(Generic[T]):
    """At most `limit` entries and those in use; the surplus is closed within the calls that come by, so no task is needed."""

    def __init__(self, make: Callable[[Target], T], close: Callable[[T], Awaitable[None]], limit: int) -> None:
        self._make, self._close, self._limit = make, close, limit
        self._entries: OrderedDict[Target, _Entry[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[T]:
        """The entry of the target, made if need be; in use, and so not given up, until the context ends."""
        entry = self._entries.get(target)
        if entry is None:
            entry = self._entries[target] = _Entry(self._make(target))
        self._entries.move_to_end(target)
        entry.users += 1
        try:
            await self._shrink()
            yield entry.value
        finally:
            entry.users -= 1

    async def _shrink(self) -> None:
        while len(self._entries) > self._limit:
            idle = next((key for key, entry in self._entries.items() if not entry.users), None)
            if idle is None:
                return
            await self._close(self._entries.pop(idle).value)

    async def aclose(self) -> None:
        while self._entries:
            await self._close(self._entries.popitem()[1].value)
