"""A lane: the one connection of this process to one Redis server, dialled when it is needed and again when it broke.

Between `redis_link` (what is asked) and `redis_wire` (bytes and order). It has no task of its own: whoever finds the lane
without a connection dials for all that come meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hiredis import ReplyError

from broker_edge.backends.redis_wire import GONE, Buffer, ConnectionLost, Wire, packed
from broker_edge.errors import TierBroken

_PING = packed("PING")
Dial = Callable[[float], Awaitable[Wire]]  # a connection that is ready for commands, by a deadline in loop time


class Lane:
    """`timeout` in seconds bounds a whole `execute`, dialling included. Used on one event loop."""

    def __init__(self, dial: Dial, timeout: float) -> None:
        self._dial = dial
        self._timeout = timeout
        self._wire: Wire | None = None
        self._dialling = asyncio.Lock()
        self._failures = 0
        self._closed = False

    async def execute(self, keys: Sequence[str], parts: Sequence[Buffer]) -> list[Any]:
        """One reply for each key: `parts` are as many packed commands, one of which may come in several parts. Errors of
        Redis are among the replies. Raises TierBroken.

        What a broken connection leaves open is sent once more, so every command has to bear being done twice.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        for _ in range(2):
            wire = self._wire
            if wire is None or not wire.usable:
                wire = await self._connected(deadline)
            try:
                replies = await wire.send(parts, len(keys), deadline)
            except ConnectionLost:
                continue
            if len(replies) != 1 or not _is_demoted(replies[0]):
                return replies
            wire.abort()  # another server is the primary by now: ask who
        raise TierBroken(GONE)

    async def probe(self) -> None:
        """Whether Redis answers; raises TierBroken."""
        [reply] = await self.execute([""], [_PING])
        if isinstance(reply, ReplyError):
            raise TierBroken("Redis refused")

    async def aclose(self) -> None:
        self._closed = True
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.lost

    async def _connected(self, deadline: float) -> Wire:
        """The connection, which the first that comes dials; its failure is the failure of all that waited for it."""
        failures = self._failures
        try:
            async with asyncio.timeout_at(deadline):
                await self._dialling.acquire()
        except TimeoutError:
            raise TierBroken(GONE) from None
        try:
            if self._wire is not None and self._wire.usable:
                return self._wire
            if self._failures != failures or self._closed:
                raise TierBroken(GONE)
            return await self._connect(deadline)
        finally:
            self._dialling.release()

    async def _connect(self, deadline: float) -> Wire:
        # A caller that is cancelled while it dials says nothing of Redis: the next one dials.
        try:
            async with asyncio.timeout_at(deadline):
                wire = await self._dial(deadline)
        except (OSError, TimeoutError, ConnectionLost, TierBroken):
            self._failures += 1
            raise TierBroken(GONE) from None
        if self._closed:
            wire.abort()
            raise TierBroken(GONE)
        self._wire = wire
        return wire


def _is_demoted(reply: Any) -> bool:
    return isinstance(reply, ReplyError) and str(reply).startswith("READONLY")
