"""The values that travel through one fetch: what is asked, what is sent, what came back, what is kept.

Those that every request makes are msgspec Structs: a tenth of the cost of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec

Mode = Literal["live", "refresh", "cache_only"]


class Outbound(msgspec.Struct, frozen=True):
    """One rendered request. It holds secrets, so nothing of it is shown by repr or kept anywhere.

    `url` is absolute, pure ASCII and already normalised, so that every engine sends the same bytes. Header names are
    unique without regard to case; Host, Content-Length and hop-by-hop headers are never among them. `conditions` are headers too,
    for the first hop alone: they make the request conditional on what a cache holds (RFC 9110 sections 13.1 and 15.4).

    `bound_headers` (lower case) and `bound_params` name what proves who we are, or was filled in and may be a secret: like the
    identity of `tls` it is for this origin alone. `any_status`: the answer is wanted whatever its status, with its body.
    `follows`: whether a redirect is followed.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    tls: TlsOptions | None = None
    bound_headers: frozenset[str] = frozenset()
    bound_params: frozenset[str] = frozenset()
    any_status: bool = False
    follows: bool = True

    def __repr__(self) -> str:
        return f"Outbound({self.method!r})"


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Trust and identity of a TLS connection, as PEM; `ca` is trusted beside the public roots."""

    ca: bytes | None = field(default=None, repr=False)
    identity: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """Where an `Outbound` is dialled: `address` is the one IP literal to connect to, `host` stays in Host and SNI."""

    scheme: str
    host: str
    port: int
    address: str
    tls: TlsOptions = TlsOptions()


class Reply(msgspec.Struct, frozen=True):
    """A whole upstream answer: body decoded, within bounds, complete. Header names are lower case.

    `redirected`: another URL than the one that was asked gave it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    http_version: str = "1.1"
    redirected: bool = False


class Entry(msgspec.Struct, frozen=True):
    """What a tier holds under a key: the shaped value as UTF-8 JSON and where it came from.

    `created_at` (epoch seconds) is when the upstream answered, or last confirmed its answer with a 304: age and freshness count
    from it (RFC 9111 section 4.2.3). Where `status` is an error's, the entry is negative: it holds no value and no object.
    """

    object_id: UUID
    created_at: float
    value: bytes | memoryview
    status: int = 200

    def __repr__(self) -> str:
        return f"Entry({self.object_id!r}, {self.created_at!r})"


class DataObject(msgspec.Struct, frozen=True):
    """One immutable upstream answer, as the durable tier keeps it: body as received, content coding removed.

    `reusable` says whether a `run_data_cache` row points at it. `validated_at` (epoch seconds): when the upstream last confirmed
    it; None: never since `created_at`. `etag` and `last_modified` are the validators that it came with (RFC 9110 section 8.8).
    """

    object_id: UUID
    data_source_id: UUID
    key: str
    body: bytes
    created_at: float
    content_type: str | None
    response_type: str
    status: int
    reusable: bool
    project_id: UUID | None = None
    etag: str | None = None
    last_modified: str | None = None
    validated_at: float | None = None

    @property
    def confirmed_at(self) -> float:
        """When the upstream last said so: what its age counts from."""
        return self.created_at if self.validated_at is None else max(self.created_at, self.validated_at)

    def __repr__(self) -> str:
        return f"DataObject({self.object_id!r}, {self.key!r}, {self.created_at!r})"


class SecretRef(NamedTuple):
    """Names a secret that the registry keeps, in the place of its value; `version` grows with every change of it."""

    data_source_id: UUID
    kind: Literal["variable", "credential"]
    name: str
    version: int


class Fetched(msgspec.Struct, frozen=True):
    """The outcome of a request or flight; times are epoch seconds, set, with the upstream's status, only where it was called.

    Of what the cache answered: `forwarded` where the upstream was asked all the same, `revalidated` where it answered 304.
    `stale`: past its ttl. `replaced_stale`: a stale entry was met on the way.
    """

    entry: Entry
    key: str
    origin: Literal["REQUEST", "CACHE"]
    started_at: float | None = None
    ended_at: float | None = None
    upstream_status: int | None = None
    stale: bool = False
    replaced_stale: bool = False
    forwarded: bool = False
    revalidated: bool = False


class Freshness(msgspec.Struct, frozen=True):
    """What one request accepts from a cache (RFC 9111 section 5.2.1); ages in seconds."""

    mode: Mode = "live"
    max_age: float | None = None
    max_stale: float = 0.0


Variables = Mapping[str, Any]
