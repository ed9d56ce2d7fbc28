"""Data sources by name: a snapshot in memory that requests read without waiting, and the changes that are made to it.

The snapshot follows the database by the bus, at once, and by comparing revisions, every few seconds. While the database is down
it goes on serving and grows older; while the bus is deaf the comparison alone finds what others change. Both fail open.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar
from uuid import UUID

from broker_edge.core.exchange import SecretRef
from broker_edge.core.lifecycle import archived, new_record, published, revised
from broker_edge.core.record import Draft, SourceRecord, Status
from broker_edge.errors import CallerError, EdgeError, TierBroken
from broker_edge.flow.snapshot import Loaded, Named, Snapshot, loaded, named_of, project_of
from broker_edge.ports import Bus, SourceStore

__all__ = ["Named", "Registry"]

T = TypeVar("T")
_EARLY: Final = 0.8  # of the greatest age: then the next comparison begins
_AGAIN: Final = 0.5  # seconds until a comparison that failed is made again
_SLICE: Final = 200  # sources read in one go
_BREATH: Final = 10  # sources compiled before others have their turn, or
_SECRETS: Final = 1_000  # secrets indexed
_TRIES: Final = 20  # somebody gets through at each


class Registry:
    """One process's data sources. `timeout` seconds bound each statement, `max_age` the time between comparisons.

    `listeners` hear the id of every source that changed, or whose secrets did, and None where anything may have. `hearing` says
    whether the bus would tell.
    """

    def __init__(
        self,
        store: SourceStore,
        bus: Bus,
        *,
        new_id: Callable[[], UUID],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        max_age: float = 5.0,
        timeout: float = 5.0,
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        self.listeners: list[Callable[[UUID | None], None]] = []
        self.hearing = False
        self._store, self._bus = store, bus
        self._new_id, self._now, self._clock = new_id, now, clock
        self._max_age, self._timeout = max_age, timeout
        self._on_failure = on_failure
        self._snapshot = Snapshot()
        self._loaded = False
        self._compared = clock()
        self._agreed: Mapping[UUID, int] | None = None  # the revisions that the snapshot has agreed with
        # Reads and writes of this process come one after the other: what is read never replaces what is newer.
        self._turn = asyncio.Lock()
        self._heard: set[UUID] = set()
        self._everything = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """How many sources serve, or would if they could be compiled."""
        return len(self._snapshot)

    def age(self) -> float:
        """Seconds since the snapshot was last known to be what the database holds."""
        return self._clock() - self._compared

    def named(self, project: str | None, name: str) -> Named:
        """Raises `CallerError` DATA_SOURCE_NOT_FOUND, or INVALID_DATA_SOURCE where this version can't compile what is stored."""
        found = self._snapshot.names.get((project, name))
        return found if found is not None else self._refuse(project, name)

    def ref(self, project: str | None, data_source_id: UUID, var_name: str) -> SecretRef:
        """The secret of that name. Raises `CallerError` DATA_SOURCE_NOT_FOUND, or MISSING_VARIABLE where it is not set."""
        record = self._snapshot.records.get(data_source_id)
        if record is None or project_of(record) != project:
            raise self._unknown()
        found = self._snapshot.refs[data_source_id].get(var_name)
        if found is None:
            raise CallerError("MISSING_VARIABLE", f"The data source has no value for {var_name}")
        return found

    async def get(self, project: str | None, data_source_id: UUID) -> SourceRecord:
        """As the database has it, archived or not. Raises `CallerError` DATA_SOURCE_NOT_FOUND, TierBroken."""
        for record in await self._answered(self._store.read([data_source_id])):
            if project_of(record) == project:
                return record
        raise _not_found()

    async def list(
        self, project: str | None, *, include_archived: bool = False, status: Status | None = None
    ) -> Sequence[SourceRecord]:
        """As the database has them, the oldest first; archived ones where they are asked for, by either argument."""
        await self.refresh()
        records = list(self._snapshot.records.values())
        if include_archived or status == "ARCHIVED":
            others = list(self._snapshot.revisions.keys() - self._snapshot.records.keys())
            for ids in _slices(others):
                records += await self._answered(self._store.read(ids))
        wanted = (record for record in records if project_of(record) == project and status in (None, record.status))
        return sorted(wanted, key=lambda record: (record.created_at, record.data_source_id))

    async def create(self, project: str | None, draft: Draft) -> SourceRecord:
        """Raises `CallerError`: DATA_SOURCE_ALREADY_EXISTS, and what the spec is refused for."""
        record = new_record(draft, self._new_id(), None if project is None else UUID(project), self._now())
        async with self._turn:
            await self._answered(self._store.create(record))
            await self._take((), [record])
        await self._announce(record.data_source_id)
        return record

    async def update(self, project: str | None, data_source_id: UUID, draft: Draft) -> SourceRecord:
        """Raises `CallerError`: DATA_SOURCE_ALREADY_EXISTS, and what `core.lifecycle.revised` refuses."""
        return await self._change(project, data_source_id, lambda record: revised(record, draft, self._now()))

    async def publish(self, project: str | None, data_source_id: UUID) -> SourceRecord:
        return await self._change(project, data_source_id, lambda record: published(record, self._now()))

    async def remove(self, project: str | None, data_source_id: UUID) -> SourceRecord:
        """A draft is deleted with its secrets, a published source archived; answers what it was at last."""
        return await self._change(project, data_source_id, lambda record: archived(record, self._now()), deletes=True)

    async def secrets_changed(self, data_source_id: UUID) -> None:
        """After a change of secrets is committed: apply and announce it."""
        self._tell(data_source_id)
        try:
            await self._load([data_source_id])
        except TierBroken as error:
            self._on_failure("registry", error)
            self.changed(data_source_id)
        await self._announce(data_source_id)

    async def refresh(self) -> None:
        """Make the snapshot what the database holds; reads only what differs. Raises TierBroken."""
        async with self._turn:
            began = self._clock()
            stored = await self._answered(self._store.revisions())
            if stored is not self._agreed:  # a store answers the same object while nothing changes
                known = self._snapshot.revisions
                await self._take(known.keys() - stored.keys(), ())
                for ids in _slices([each for each, revision in stored.items() if known.get(each) != revision]):
                    await self._read(ids)
                self._agreed = stored
            self._compared, self._loaded = began, True

    def changed(self, data_source_id: UUID) -> None:
        """The bus says so."""
        self._tell(data_source_id)
        self._heard.add(data_source_id)
        self._wake.set()

    async def follow(self) -> None:
        """Listen to the bus for as long as it lasts. Raises TierBroken."""
        try:
            await self._bus.hear(self.changed, self._listening)
        finally:
            self.hearing = False
            self._tell(None)

    async def watch(self) -> None:
        """Apply what is heard at once, many changes in one go, and compare with the database before the snapshot is too old."""
        failing = False
        while True:
            try:
                await self._next()
                failing = False
            except TierBroken as error:
                if not failing:
                    self._on_failure("registry", error)
                failing = self._everything = True
                await asyncio.sleep(_AGAIN)

    async def _next(self) -> None:
        left = _EARLY * self._max_age - self.age()
        if not self._everything and left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        self._wake.clear()
        heard, everything = self._heard, self._everything or self.age() >= _EARLY * self._max_age
        self._heard, self._everything = set(), False
        await (self.refresh() if everything else self._load(heard))

    def _listening(self) -> None:
        """What changed while nobody listened was told to nobody."""
        self.hearing = self._everything = True
        self._tell(None)
        self._wake.set()

    async def _change(
        self,
        project: str | None,
        data_source_id: UUID,
        rule: Callable[[SourceRecord], SourceRecord],
        *,
        deletes: bool = False,
    ) -> SourceRecord:
        """Again on what is there by then, where somebody else was quicker: nobody's change is overwritten unseen."""
        for _ in range(_TRIES):
            record = await self.get(project, data_source_id)
            wanted = rule(record)
            if wanted is record:
                return record
            if await self._written(record, wanted, deletes=deletes and record.status == "DRAFT"):
                await self._announce(data_source_id)
                return wanted
        raise TierBroken("the data source is being changed by others")

    async def _written(self, record: SourceRecord, wanted: SourceRecord, *, deletes: bool) -> bool:
        async with self._turn:
            if deletes:
                done = await self._answered(self._store.remove(record.data_source_id, expected=record.revision))
                await self._take([record.data_source_id] if done else (), ())
            else:
                done = await self._answered(self._store.replace(wanted, expected=record.revision))
                await self._take((), [wanted] if done else ())
        return done

    async def _load(self, ids: Collection[UUID]) -> None:
        async with self._turn:
            for some in _slices(list(ids)):
                await self._read(some)

    async def _read(self, ids: Sequence[UUID]) -> None:
        records = await self._answered(self._store.read(ids))
        await self._take(set(ids) - {record.data_source_id for record in records}, records)

    async def _take(self, gone: Collection[UUID], records: Sequence[SourceRecord]) -> None:
        """Compile outside any request, a few at a time, then replace in one step and say so."""
        found: list[Loaded] = []
        taken = 0.0
        for record in records:
            found.append(loaded(record, self._compiled(record)))
            taken += 1 / _BREATH + len(record.secrets) / _SECRETS
            if taken >= 1:
                taken = 0.0
                await asyncio.sleep(0)
        self._snapshot.replace(gone, found)
        for data_source_id in (*gone, *(record.data_source_id for record in records)):
            self._tell(data_source_id)

    def _compiled(self, record: SourceRecord) -> Named | None:
        if record.status == "ARCHIVED":
            return None
        try:
            return named_of(record, self._snapshot.of(record.data_source_id))
        except Exception as error:  # noqa: BLE001 whatever is wrong with one stored spec, the others must be served
            self._on_failure(f"data source {record.data_source_id}", error)
            return None

    async def _announce(self, data_source_id: UUID) -> None:
        """The change is made, whoever hears of it: others find it by age."""
        try:
            await self._answered(self._bus.publish(data_source_id))
        except TierBroken as error:
            self._on_failure("bus", error)

    def _tell(self, data_source_id: UUID | None) -> None:
        for listener in self.listeners:
            listener(data_source_id)

    def _refuse(self, project: str | None, name: str) -> Named:
        if (project, name) in self._snapshot.unusable:
            raise CallerError("INVALID_DATA_SOURCE", "the data source is stored in a form that this version can't use")
        raise self._unknown()

    def _unknown(self) -> EdgeError:
        # Before the first load nothing can be said of what there is not.
        return _not_found() if self._loaded else TierBroken("the data sources are not loaded yet")

    async def _answered(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await call
        except TimeoutError:
            raise TierBroken("the database did not answer in time") from None


def _not_found() -> CallerError:
    return CallerError("DATA_SOURCE_NOT_FOUND", "there is no such data source")


def _slices(ids: Sequence[UUID]) -> Sequence[Sequence[UUID]]:
    return [ids[start : start + _SLICE] for start in range(0, len(ids), _SLICE)]
