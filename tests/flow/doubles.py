"""Tiers that tests script, and values to put into them: the ports' other side, never what is under test."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from broker_edge.core.exchange import DataObject, Entry
from broker_edge.core.journal_row import RequestRow
from broker_edge.core.trail import Record, TraceContext, Trail
from broker_edge.errors import CallerError, TierBroken
from broker_edge.ports import Refused


class Database:
    """A durable tier that keeps what it takes by id; `refuses` says which row or object it never takes."""

    def __init__(self) -> None:
        self.rows: dict[uuid.UUID, RequestRow] = {}
        self.objects: dict[uuid.UUID, DataObject] = {}
        self.batches: list[tuple[int, int]] = []
        self.lookups: list[list[str]] = []
        self.down = False
        self.refuses: Callable[[RequestRow | DataObject], bool] = lambda _: False
        self.before: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()

    async def lookup(self, keys: Sequence[str]) -> Sequence[DataObject | None]:
        self.lookups.append(list(keys))
        await self._reach()
        newest = {item.key: item for item in sorted(self.objects.values(), key=lambda item: item.created_at) if item.reusable}
        return [newest.get(key) for key in keys]

    async def store(self, objects: Sequence[DataObject]) -> None:
        await self.append((), objects)

    async def append(self, rows: Sequence[RequestRow], objects: Sequence[DataObject]) -> None:
        await self._reach()
        self.batches.append((len(rows), len(objects)))
        if any(self.refuses(one) for one in (*rows, *objects)):
            raise Refused("CheckViolation")
        self.rows |= {row.run_data_request_id: row for row in rows}
        self.objects |= {item.object_id: item for item in objects}

    async def ping(self) -> None:
        await self._reach()

    async def aclose(self) -> None:
        return None

    async def _reach(self) -> None:
        self.called.set()
        await self.gate.wait()
        self.before()
        if self.down:
            raise TierBroken("the database can't be reached")


class BrokenHot:
    """A hot tier that can't say anything."""

    def __init__(self) -> None:
        self.calls = 0

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | BaseException | None]:
        raise self._broken()

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        raise self._broken()

    async def delete(self, key: str) -> None:
        raise self._broken()

    async def ping(self) -> None:
        raise self._broken()

    async def aclose(self) -> None:
        return None

    def _broken(self) -> TierBroken:
        self.calls += 1
        return TierBroken("Redis can't be reached")


def item(key: str = "key", **members: Any) -> DataObject:
    values: dict[str, Any] = {
        "object_id": uuid.uuid4(),
        "data_source_id": uuid.uuid4(),
        "key": key,
        "body": b'{"score":700}',
        "created_at": 1000.0,
        "content_type": "application/json",
        "response_type": "JSON",
        "status": 200,
        "reusable": True,
    }
    return DataObject(**{**values, **members})


def entry_of(one: DataObject, value: bytes = b'{"score":700}') -> Entry:
    return Entry(one.object_id, one.created_at, value)


def record() -> Record:
    return Record(TraceContext(1, 2), 1000.0, lambda: random.getrandbits(64))


def closed_trail(run_id: uuid.UUID | None = None) -> Trail:
    trail = Trail(TraceContext(random.getrandbits(128), 2), 1000.0, lambda: random.getrandbits(64))
    trail.run_id = run_id or uuid.uuid4()
    trail.fail(CallerError("MISSING_VARIABLE", "id has no value"), 1000.5)
    return trail
