"""The Protocols between the story (flow) and the technology (backends), named by role.

Contracts are stated here once; tests/contract runs the same suite over every implementation. Implementations translate
foreign exceptions into `EdgeError` before they leave the backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from broker_edge.core.exchange import DataObject, Entry, Outbound, Target
from broker_edge.core.journal_row import RequestRow
from broker_edge.ports.registry import (
    Analytics,
    Archive,
    Budgets,
    Bus,
    Housekeeping,
    ObjectNote,
    SecretStore,
    SourceStore,
)

__all__ = [
    "Analytics",
    "Archive",
    "Bell",
    "Budgets",
    "Bus",
    "DurableTier",
    "Fleet",
    "HotTier",
    "Housekeeping",
    "Lead",
    "NearTier",
    "ObjectNote",
    "RawReply",
    "Refused",
    "Resolver",
    "SecretStore",
    "SourceStore",
    "Spool",
    "Transport",
]


class RawReply(Protocol):
    """An upstream's answer while its body still flows: nothing decoded, header names lower case.

    Repeated headers are joined with ", "; one with a value outside ASCII is left out. `chunks` raises `UpstreamError`
    UPSTREAM_INCOMPLETE where the body ends before its framing says so (short Content-Length, cut chunked body, reset stream).
    `whole` answers what `chunks` would give, at once and for less, where Content-Length promises `most` bytes or fewer; else
    None, and the body is still to be taken. Of the two one is called, once.
    """

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def http_version(self) -> str: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def whole(self, most: int) -> bytes | None: ...


class Transport(Protocol):
    """Sends one request to one pinned address over pooled, kept-alive HTTP/1.1 or HTTP/2 connections.

    `open` never follows redirects, never retries what may have been processed, never decodes, never reads the environment
    (but for where the system keeps its public roots),
    adds no header but Host, Content-Length, what framing needs, and `Accept: */*` and `User-Agent: broker-edge` where the
    request has none (one engine can't leave them out). It raises
    `UpstreamError`: CONNECT_ERROR or TLS_ERROR (sent=False) where no byte of the request left, CONNECT_ERROR (sent=True)
    where the connection broke before an answer, TIMEOUT (sent=False) where connecting took longer than the connect time-out.
    Deadlines are the caller's: cancelling the context at any await gives the connection up. `within` seconds the caller will
    have done so: an engine that can't cancel what it has sent frees it then.
    """

    def open(self, request: Outbound, target: Target, *, within: float) -> AbstractAsyncContextManager[RawReply]: ...

    async def aclose(self) -> None: ...


class Resolver(Protocol):
    """Names to addresses, as IP literals without zone; raises `UpstreamError` DNS_ERROR (sent=False)."""

    async def resolve(self, host: str, port: int) -> Sequence[str]: ...


class NearTier(Protocol):
    """Entries of the hot tier in this process, for as long as somebody tells of what changes there; never fails, never waits.

    `begin` before the hot tier is asked, `offer` with its answer and what `begin` said: an entry is not taken where its key may
    have been forgotten in between. `forget` is for what has just been put or deleted here: the next `get` must not find it.
    """

    def get(self, key: str) -> Entry | None: ...

    def begin(self, key: str) -> int: ...

    def offer(self, key: str, entry: Entry, begun: int) -> None: ...

    def forget(self, keys: Iterable[str]) -> None: ...


class HotTier(Protocol):
    """Ready entries by key under native TTLs. Raises `TierBroken` where it can't say: that is not a miss.

    `get_many` answers in the order of the keys, in one round trip; an answer may be the exception of that key alone.

    `lifetime` in seconds; None keeps the entry until it is evicted or deleted.
    """

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | BaseException | None]: ...

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


class DurableTier(Protocol):
    """Immutable data objects, and the index of those that may be reused. Raises `TierBroken`.

    `lookup` answers in the order of the keys, the newest object that `run_data_cache` names. `store` returns when the objects
    are committed, all or none; storing one twice changes nothing, and an older object never replaces a newer one in the
    index. `append` takes audit rows and objects in one transaction under the same rules, and raises `Refused` where the
    database will never take them.
    """

    async def lookup(self, keys: Sequence[str]) -> Sequence[DataObject | None]: ...

    async def store(self, objects: Sequence[DataObject]) -> None: ...

    async def append(self, rows: Sequence[RequestRow], objects: Sequence[DataObject]) -> None: ...

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


class Refused(Exception):
    """The database will never take these rows as they are (not a matter of waiting)."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The answer to a bid for leadership: won, with what the hot tier holds by now; or lost, with the lease's rest in seconds."""

    won: bool
    entry: Entry | None = None
    lease_left: float = 0.0


class Bell(Protocol):
    """Waits for the leader of one key; `ring` answers its message, or None after `timeout` seconds."""

    async def ring(self, timeout: float) -> bytes | None: ...


class Fleet(Protocol):
    """Leadership of a fetch among instances: at most one holder of a key's lease at a time, by token. Raises `TierBroken`.

    `bid` tries to take the lease, and wins it again where the token holds it already; when it wins it answers what the hot
    tier holds at that very moment. When it loses, the holder's `settle` will ring the bells of all instances that listened
    before they bid. A lease that isn't renewed lapses.
    """

    def listen(self, key: str) -> AbstractAsyncContextManager[Bell]: ...

    async def bid(self, key: str, token: str, lease: float) -> Lead: ...

    async def renew(self, key: str, token: str, lease: float) -> bool: ...

    async def settle(self, key: str, token: str, message: bytes) -> None: ...


class Spool(Protocol):
    """Frames on local disk: what `append` returned from survives the death of the process. Order is kept.

    `append` raises `TierBroken` where the disk refuses or the bound is reached; nothing is half-written then, and of the frames
    of an `append_all` none is kept. `read` answers
    the oldest frames, `commit` forgets those of the last `read`. Frames of a process that died are read first, as if they
    were this one's.
    """

    def append(self, frame: bytes) -> None: ...

    def append_all(self, frames: Sequence[bytes]) -> None: ...

    def read(self, most: int) -> Sequence[bytes]: ...

    def commit(self) -> None: ...

    def close(self) -> None: ...


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


class Bus(Protocol):
    """Tells every process that a data source, or one of its secrets, has changed; at most once, within milliseconds.

    `hear` calls `heard` with the id of what changed, and `listening` with True once nothing can be missed any more; it returns or
    raises `TierBroken` when that is over, and the caller begins anew. `publish` once the change is committed.
    """

    async def publish(self, data_source_id: UUID) -> None: ...

    async def hear(self, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None: ...


class Budgets(Protocol):
    """What sources spend in a day, shared by the fleet. Raises `TierBroken`: then nothing may be spent.

    `reserve` adds one call at `micros` unless the day's calls or cost would exceed `most_calls` or `most_micros` (None: no
    bound), atomically, and answers whether it did; `release` takes back a call that was not made after all. `spent` answers
    calls and micros of the day. `day` is a UTC date.
    """

    async def reserve(
        self,
        data_source_id: UUID,
        project: str | None,
        day: date,
        micros: int,
        *,
        most_calls: int | None,
        most_micros: int | None,
    ) -> bool: ...

    async def release(self, data_source_id: UUID, project: str | None, day: date, micros: int) -> None: ...

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
