"""The registry's bus of a process that shares its database with nobody who could be told: other processes find out by age."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID


class LocalBus:
    """`ports.Bus` within this process; never deaf."""

    def __init__(self) -> None:
        self._hearers: list[Callable[[UUID], None]] = []

    async def publish(self, data_source_id: UUID) -> None:
        for heard in tuple(self._hearers):
            heard(data_source_id)

    async def hear(self, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None:
        self._hearers.append(heard)
        try:
            listening()
            await asyncio.get_running_loop().create_future()
        finally:
            self._hearers.remove(heard)
