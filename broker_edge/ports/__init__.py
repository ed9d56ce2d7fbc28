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
    Seals,
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
    "Seals",
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
    Deadlines are the caller's: cancelling the context at any await gives the connection up, and the cancellation carries the note
    NOT_SENT where the request was still waiting for its turn. `within` seconds the caller will
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
