"""What an HTTP engine keeps per origin (scheme, host, port, address, TLS): a client or a pool, and how many may use it at once.

One address and one trust per entry: a connection opened for one target can never carry another's request. The bound is the
bulkhead: an upstream that has become slow holds its own places and takes no memory, connection or thread from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Generic, TypeVar

from broker_edge.core.exchange import Target
from broker_edge.errors import NOT_SENT

T = TypeVar("T")

UNUSED_SECONDS: Final = 300.0  # then an entry is given up: its address may long have left the name's answers
_SWEEP: Final = 30.0  # seconds between looks for those


class Origin(Generic[T]):
    """One entry: what is kept, its users, and who waits to become one, in the order in which they came."""

    __slots__ = ("used", "users", "value", "waiting")

    def __init__(self, value: T) -> None:
        self.value = value
        self.users = 0
        self.used = 0.0
        self.waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for a place; whoever leaves hands it over, so that `users` stays as it is."""
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError as error:
            error.add_note(NOT_SENT)
            if mine.cancelled():
                with contextlib.suppress(ValueError):  # whoever left just passed over it
                    self.waiting.remove(mine)
            else:  # the place came in the same moment: the next one's, as nobody else would hand it on
                self.leave()
            raise

    def leave(self) -> None:
        while self.waiting:
            first = self.waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        self.users -= 1


class Lease(Generic[T]):
    """The entry of a target for the time of a context."""

    __slots__ = ("_origin", "_origins", "_target")

    def __init__(self, origins: Origins[T], target: Target) -> None:
        self._origins, self._target = origins, target

    async def __aenter__(self) -> T:
        self._origin = await self._origins.take(self._target)
        return self._origin.value

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._origin.leave()


class Origins(Generic[T]):
    """At most `limit` entries and those in use, each with at most `most` users at once.

    The surplus, and what nobody used for `UNUSED_SECONDS`, is closed within the calls that come by, so no task is needed.
    """

    def __init__(
        self,
        make: Callable[[Target], T],
        close: Callable[[T], Awaitable[None]],
        limit: int,
        most: int = 1024,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._close, self._limit, self._most, self._now = make, close, limit, most, now
        self._entries: dict[Target, Origin[T]] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def lease(self, target: Target) -> Lease[T]:
        """The entry of the target, made if need be; in use, and so not given up, until the context ends."""
        return Lease(self, target)

    async def take(self, target: Target) -> Origin[T]:
        """As `lease`, for callers that `leave` the entry themselves; waits while all its places are taken."""
        origin = self._entries.get(target)
        if origin is None:
            origin = self._entries[target] = Origin(self._make(target))
        origin.used = now = self._now()
        if origin.users < self._most:
            origin.users += 1
        else:
            await origin.turn()
        if now >= self._sweep_at or len(self._entries) > self._limit:
            try:
                await self._shrink(now)
            except BaseException:
                origin.leave()
                raise
        return origin

    async def _shrink(self, now: float) -> None:
        self._sweep_at = now + _SWEEP
        idle = sorted((entry.used, at, target) for at, (target, entry) in enumerate(self._entries.items()) if not entry.users)
        surplus = len(self._entries) - self._limit
        given_up = [target for nth, (used, _, target) in enumerate(idle) if nth < surplus or used <= now - UNUSED_SECONDS]
        for target in given_up:
            entry = self._entries.get(target)  # looked at again: every pause lets others in
            if entry is not None and not entry.users:
                del self._entries[target]
                await self._close(entry.value)

    async def aclose(self) -> None:
        while self._entries:
            await self._close(self._entries.popitem()[1].value)
