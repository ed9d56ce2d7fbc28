"""A lane: the one connection of this process to one Redis server, dialled when it is needed and again when it broke.

Between `redis_link` (what is asked) and `redis_wire` (bytes and order). It has no task of its own: whoever finds the lane
without a connection dials for all that come meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any

from hiredis import ReplyError

from broker_edge.backends.redis_wire import GONE, Buffer, ConnectionLost, Wire, packed
from broker_edge.errors import TierBroken

_PING = packed("PING")
_READONLY = 1.0  # seconds between dials of a server that is a replica: others wait on the connection that each of them ends
Dial = Callable[[float], Awaitable[Wire]]  # a connection that is ready for commands, by a deadline in loop time


class Lane:
    """`timeout` in seconds bounds a whole `execute`, dialling included. Used on one event loop."""

    def __init__(self, dial: Dial, timeout: float) -> None:
        self._dial = dial
        self._timeout = timeout
        self._wire: Wire | None = None
        self._dialling = asyncio.Lock()
        self._failures = 0
        self._left_at = -inf
        self._closed = False

    async def execute(
        self,
        keys: Sequence[str],
        parts: Sequence[Buffer],
        instead: Sequence[Buffer] | None = None,
        deadline: float | None = None,
    ) -> list[Any]:
        """One reply for each key: `parts` are as many packed commands, one of which may come in several parts. Errors of
        Redis are among the replies. Raises TierBroken, by `deadline` in loop time where that is before the lane's own.

        What a broken connection leaves open is sent once more, or `instead` of it what bears being done after it.
        """
        loop = asyncio.get_running_loop()
        hung = loop.time() + self._timeout
        if deadline is None:
            deadline = hung
        for _ in range(2):
            wire = self._wire
            if wire is None or not wire.usable:
                wire = await self._connected(deadline)
                hung = loop.time() + self._timeout
            try:
                replies = await wire.send(parts, len(keys), deadline, hung)
            except ConnectionLost:
                parts = instead or parts
            else:
                if len(replies) != 1 or not _is_demoted(replies[0]) or not self._left(wire):
                    return replies
            hung = loop.time() + self._timeout
        raise TierBroken(GONE)

    async def probe(self, deadline: float | None = None) -> None:
        """Whether Redis answers; raises TierBroken."""
        [reply] = await self.execute([""], [_PING], None, deadline)
        if isinstance(reply, ReplyError):
            raise TierBroken("Redis refused")

    def distrust(self, key: str) -> None:
        """End the connection: what it answered for `key` was the answer to something else."""
        if self._wire is not None and self._wire.usable:
            self._wire.abort()

    async def aclose(self) -> None:
        self._closed = True
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            await wire.lost

    def _left(self, wire: Wire) -> bool:
        """Whether to ask again after a replica's refusal: another server may be the primary by now."""
        if wire.usable:
            now = asyncio.get_running_loop().time()
            if now - self._left_at < _READONLY:
                return False
            self._left_at = now
            wire.abort()
        return True

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
