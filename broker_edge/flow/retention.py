"""Housekeeping behind everything: partitions are there before their rows are, and what is past its time goes.

What can't be done because a table is in use, or the database away, is tried again in the next round. Nothing of a fetch waits
for any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from broker_edge.core.retention import PARTITIONED, TABLES, Limits, Removal, Table, ahead, cutoff, past
from broker_edge.errors import TierBroken
from broker_edge.ports import Housekeeping

_ROUND = 3600.0  # seconds
_TRIES = 3  # to get a lock in a round
_BETWEEN = 1.0  # seconds

OnEvent = Callable[..., None]


class Done(msgspec.Struct, frozen=True):
    """A removal and how many rows went; None where it has to wait for another time."""

    removal: Removal
    gone: int | None


class Retention:
    """`now` gives epoch seconds; `on_event(what, **facts)` hears of whatever was made, taken away or left."""

    def __init__(
        self,
        store: Housekeeping,
        limits: Limits,
        *,
        now: Callable[[], float],
        on_event: OnEvent,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._limits = limits
        self._now = now
        self._on_event = on_event
        self._sleep = sleep
        self._looked: date | None = None  # when objects were last looked at: who is named takes a pass over all kept rows

    async def keep(self) -> None:
        """Endless: a round each hour; objects are looked at once a day. Raises TierBroken."""
        while True:
            await self.prepare()
            if self._limits.days:
                await self.run([table for table in TABLES if table != "data_object" or self._looked != self._today()])
            await self._sleep(_ROUND)

    async def prepare(self) -> Sequence[str]:
        """The partitions of the time to come; answers the names of those that it made. Raises TierBroken."""
        made: list[str] = []
        known = {table: await self._store.partitions(table) for table in PARTITIONED}
        for partition in ahead(self._today()):
            names = known[partition.table]
            if names is None or partition.name in names:
                continue
            try:
                if await self._store.make(partition):
                    made.append(partition.name)
            except TierBroken as error:  # each for itself: one that can't be made must not keep the others away
                self._on_event("a partition could not be made", partition=partition.name, reason=error.message)
        if made:
            self._on_event("partitions made", count=len(made), first=made[0], last=made[-1])
        return made

    async def plan(self, tables: Sequence[Table] = TABLES) -> Sequence[Removal]:
        """What would go if it went by now, counted; raises TierBroken."""
        return [removal for table in tables for removal in await self._plan(table)]

    async def run(self, tables: Sequence[Table] = TABLES) -> Sequence[Done] | None:
        """Take away what is past its time, table by table; None where another process is at it. Raises TierBroken."""
        async with self._store.alone() as alone:
            if not alone:
                return None
            # A table is looked at when those before it are done: a request's row that has gone names no object any more.
            done = [await self._do(removal) for table in tables for removal in await self._plan(table)]
        if "data_object" in tables:
            self._looked = self._today()
        return done

    async def _plan(self, table: Table) -> Sequence[Removal]:
        days, today = self._limits.days.get(table), self._today()
        if days is None:
            return ()
        kept = self._limits.days.get("run_data_request")
        since = date.min if kept is None else cutoff(kept, today)
        found = [
            await self._store.survey(msgspec.structs.replace(one, force=self._limits.force, named_since=since))
            for one in past(table, await self._store.partitions(table), cutoff(days, today))
        ]
        return [one for one in found if one.rows or one.kept or one.how == "drop"]

    async def _do(self, removal: Removal) -> Done:
        try:
            gone = await self._remove(removal) if removal.rows or removal.how == "drop" else 0
        except TierBroken as error:
            gone = None
            self._on_event("retention waits for another time", reason=error.message, **_told(removal))
        else:
            self._on_event("retention", gone=gone, **_told(removal))
        return Done(removal, gone)

    async def _remove(self, removal: Removal) -> int:
        for _ in range(_TRIES - 1):
            try:
                return await self._store.remove(removal)
            except TierBroken:
                await self._sleep(_BETWEEN)
        return await self._store.remove(removal)

    def _today(self) -> date:
        return datetime.fromtimestamp(self._now(), UTC).date()


def _told(removal: Removal) -> dict[str, Any]:
    return {
        "table": removal.table,
        "how": removal.how,
        "partition": removal.partition,
        "before": removal.before.isoformat(),
        "kept": removal.kept,
    }
