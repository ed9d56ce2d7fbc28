"""Bells of the flights in this process that wait for a leader, by key: the local half of `ports.Fleet`."""

from __future__ import annotations

import asyncio
from types import TracebackType


class LocalBell:
    """`ports.Bell`, hung while its context lasts; a message that came before `ring` is kept for it, each one is heard once."""

    __slots__ = ("_hung", "_key", "_message", "_waiter")

    def __init__(self, hung: dict[str, set[LocalBell]], key: str) -> None:
        self._hung = hung
        self._key = key
        self._message: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> LocalBell:
        self._hung.setdefault(self._key, set()).add(self)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        bells = self._hung[self._key]
        bells.discard(self)
        if not bells:
            del self._hung[self._key]

    def strike(self, message: bytes) -> None:
        if self._message is None:
            self._message = message
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def ring(self, timeout: float) -> bytes | None:
        if self._message is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._waiter], timeout=timeout)
        message, self._message, self._waiter = self._message, None, None
        return message


class Bells:
    def __init__(self) -> None:
        self._hung: dict[str, set[LocalBell]] = {}

    def listen(self, key: str) -> LocalBell:
        return LocalBell(self._hung, key)

    def strike(self, key: str, message: bytes) -> None:
        for bell in self._hung.get(key, ()):
            bell.strike(message)
