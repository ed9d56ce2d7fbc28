"""Bells of the flights in this process that wait for a leader, by key: the local half of `ports.Fleet`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class LocalBell:
    """`ports.Bell`; a message that came before `ring` is kept for it, each one is heard once."""

    def __init__(self) -> None:
        self._message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def strike(self, message: bytes) -> None:
        if not self._message.done():
            self._message.set_result(message)

    async def ring(self, timeout: float) -> bytes | None:
        done, _ = await asyncio.wait([self._message], timeout=timeout)
        if not done:
            return None
        message = self._message.result()
        self._message = asyncio.get_running_loop().create_future()
        return message


class Bells:
    def __init__(self) -> None:
        self._hung: dict[str, set[LocalBell]] = {}

    @contextlib.asynccontextmanager
    async def listen(self, key: str) -> AsyncIterator[LocalBell]:
        bell = LocalBell()
        self._hung.setdefault(key, set()).add(bell)
        try:
            yield bell
        finally:
            self._hung[key].discard(bell)
            if not self._hung[key]:
                del self._hung[key]

    def strike(self, key: str, message: bytes) -> None:
        for bell in self._hung.get(key, ()):
            bell.strike(message)
