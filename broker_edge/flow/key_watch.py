"""Whether the keys in force open what is sealed: asked at the start and every minute, and learnt from what did not open."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

from broker_edge.errors import TierBroken
from broker_edge.guard.vault import Unopened
from broker_edge.ports import Seals

_EVERY: Final = 60.0  # seconds between looks


class OnError(Protocol):
    def __call__(self, event: str, **fields: Any) -> None: ...


class KeyWatch:
    """`missing` counts secrets by the id of a key that is not in force. `within` (seconds) bounds one word of the store."""

    def __init__(self, seals: Seals, key_ids: Collection[str], *, within: float, on_error: OnError) -> None:
        self.missing: Mapping[str | None, int] = {}
        self._seals = seals
        self._key_ids = key_ids
        self._within = within
        self._on_error = on_error
        self._met: set[str | None] = set()

    @property
    def failing(self) -> bool:
        return bool(self.missing or self._met)

    async def look(self) -> None:
        """What is missing is told where that is news. A database that does not answer says so elsewhere."""
        try:
            async with asyncio.timeout(self._within):
                counts = await self._seals.counts()
        except (TierBroken, TimeoutError):
            return
        before = self.missing
        self.missing = {key_id: count for key_id, count in counts.items() if key_id not in self._key_ids}
        self._met.clear()
        for key_id in self.missing.keys() - before.keys():
            self._on_error("secrets are sealed with a key that is not in force", key=key_id, secrets=self.missing[key_id])

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await self.look()

    def unopened(self, error: Unopened) -> None:
        """A secret that is needed does not open: told once between two looks."""
        if error.key_id not in self._met:
            self._met.add(error.key_id)
            self._on_error(error.message, key=error.key_id)
