"""The Protocols round registered data sources: their rows, secrets and budgets, and what is told of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date
from typing import NamedTuple, Protocol
from uuid import UUID

from broker_edge.core.analytics import Day, Period, RunMoney
from broker_edge.core.exchange import DataObject
from broker_edge.core.record import Reading, SealedSecret, SecretKind, SecretMeta, SourceRecord
from broker_edge.core.retention import Partition, Removal, Table


class SourceStore(Protocol):
    """The registry's rows. Raises `TierBroken`.

    `revisions` answers those of all sources, cheaply: what a snapshot compares itself with. `read` answers the sources that
    there are, with what may be told of their secrets, in no order. `create` raises CallerError DATA_SOURCE_ALREADY_EXISTS where
    the name is taken; `replace` too, and answers False where the stored revision is not `expected`: somebody else was quicker.
    `remove` takes a source away with its secrets, under the same condition.
    """

    async def revisions(self) -> Mapping[UUID, int]: ...

    async def read(self, ids: Collection[UUID]) -> Sequence[SourceRecord]: ...

    async def create(self, record: SourceRecord) -> None: ...

    async def replace(self, record: SourceRecord, *, expected: int) -> bool: ...

    async def remove(self, data_source_id: UUID, *, expected: int) -> bool: ...


class SecretStore(Protocol):
    """Sealed secrets. Raises `TierBroken`.

    `read` answers all of a source's, each read written down as `reading` says in the same transaction: no audit, no secret.
    `write` makes `kind` of the source's secrets what `secrets` says (those of other names are taken away if `complete`), raises
    the source's revision, and answers what may be told of them. `count` adds uses by (secret, version).
    `sealed_otherwise` answers up to `most` secrets whose envelope does not begin with `prefix`; `reseal` puts another envelope
    around the same value, if it has not changed meanwhile.
    """

    async def read(self, data_source_id: UUID, reading: Reading) -> Sequence[SealedSecret]: ...

    async def write(
        self, data_source_id: UUID, kind: SecretKind, secrets: Sequence[SealedSecret], *, complete: bool
    ) -> Sequence[SecretMeta]: ...

    async def count(self, uses: Mapping[tuple[UUID, int], int], at: float) -> None: ...

    async def sealed_otherwise(self, prefix: str, most: int) -> Sequence[SealedSecret]: ...

    async def reseal(self, secret: SealedSecret, sealed: str) -> bool: ...


class Seals(Protocol):
    """How many secrets there are by the id of the key that they are sealed with, None for no envelope. Raises `TierBroken`."""

    async def counts(self) -> Mapping[str | None, int]: ...


class Bus(Protocol):
    """Tells every process that a data source, or one of its secrets, has changed; at most once, within milliseconds.

    `hear` calls `heard` with the id of what changed, and `listening` with True once nothing can be missed any more; it returns or
    raises `TierBroken` when that is over, and the caller begins anew. `publish` once the change is committed.
    """

    async def publish(self, data_source_id: UUID) -> None: ...

    async def hear(self, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None: ...


class Budgets(Protocol):
    """What sources spend in a day, shared by the fleet. Raises `TierBroken`: then nothing may be spent.

    `reserve` adds as many of `asked` calls at `micros` each as leave the day's calls and cost within `most_calls` and
    `most_micros` (None: no bound), atomically, and answers how many; `release` takes back calls that were not made after all.
    `spent` answers calls and micros of the day. `day` is a UTC date.
    """

    async def reserve(
        self,
        data_source_id: UUID,
        project: str | None,
        day: date,
        micros: int,
        asked: int,
        *,
        most_calls: int | None,
        most_micros: int | None,
    ) -> int: ...

    async def release(self, data_source_id: UUID, project: str | None, day: date, micros: int, calls: int) -> None: ...

    async def spent(self, data_source_id: UUID, project: str | None, day: date) -> tuple[int, int]: ...


class Analytics(Protocol):
    """Sums of the audit rows of one data source in one project. Raises `TierBroken`.

    `by_run` answers what runs cost and saved within the period, the latest `most` of them, or `run_id` alone.
    """

    async def by_day(self, data_source_id: UUID, project: UUID | None, over: Period) -> Sequence[Day]: ...

    async def by_run(
        self, data_source_id: UUID, project: UUID | None, over: Period, run_id: UUID | None, most: int
    ) -> Sequence[RunMoney]: ...


class Housekeeping(Protocol):
    """What is made ahead of time in the tables that grow, and taken away after it. Raises `TierBroken`, also where a table is in
    too much use to be changed at once: traffic never waits for more than a moment.

    `alone` is entered with False where another process is at it. `partitions` answers the names of a table's partitions, None
    where the database has no such thing; `make` makes one unless it is there. `survey` counts what a removal would take and
    keep, and makes it a deletion where its partition can't go whole. `remove` answers how many rows went.
    """

    def alone(self) -> AbstractAsyncContextManager[bool]: ...

    async def partitions(self, table: Table) -> Sequence[str] | None: ...

    async def make(self, partition: Partition) -> bool: ...

    async def survey(self, removal: Removal) -> Removal: ...

    async def remove(self, removal: Removal) -> int: ...


class ObjectNote(NamedTuple):
    """What may be said of a data object without its body; `created_at` in epoch seconds."""

    object_id: UUID
    data_source_id: UUID
    key: str
    created_at: float


class Archive(Protocol):
    """Data objects as they were kept, for who looks at them later. Raises `TierBroken`.

    `objects` answers `most` of a source's at most, by their ids, which are drawn in the order of time: the newest first, and only
    those before `after`. Both see none but those that were fetched for the source's own project; None is a project too.
    """

    async def objects(
        self, data_source_id: UUID, project_id: UUID | None, *, most: int, after: UUID | None
    ) -> Sequence[ObjectNote]: ...

    async def object(self, data_source_id: UUID, project_id: UUID | None, object_id: UUID) -> DataObject | None: ...
