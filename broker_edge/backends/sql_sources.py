"""The registry's rows over SQLAlchemy Core, SQLite and Postgres: `ports.SourceStore`."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NoReturn
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends.bus_postgres import announce
from broker_edge.backends.sql_errors import epoch_of, time_of, translated
from broker_edge.backends.sql_secret_rows import metas_of
from broker_edge.backends.tables import data_source
from broker_edge.core.lifecycle import compiled
from broker_edge.core.record import SecretMeta, SourceRecord
from broker_edge.errors import CallerError

_SLICE: Final = 500  # ids in one statement
_ID: Final[sa.ColumnElement[UUID]] = data_source.c.data_source_id


class SqlSources:
    """`writer` is held where the database has one writer at a time."""

    def __init__(self, engine: AsyncEngine, writer: contextlib.AbstractAsyncContextManager[Any] | None = None) -> None:
        self._engine = engine
        self._summary = _summary(postgres=engine.dialect.name == "postgresql")
        self._text, self._pairs = "", frozenset[str]()
        self._told: Mapping[UUID, int] = {}
        self._writer = writer or contextlib.nullcontext()

    async def revisions(self) -> Mapping[UUID, int]:
        """The same object while nothing changes: thousands of rows then cost no more than one."""
        async with translated(), self._engine.connect() as connection:
            text: str = (await connection.execute(self._summary)).scalar_one() or ""
        if text != self._text:
            self._text, self._told, self._pairs = text, *_told(text, self._told, self._pairs)
        return self._told

    async def read(self, ids: Collection[UUID]) -> Sequence[SourceRecord]:
        wanted, records = list(ids), []
        async with translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _SLICE):
                records += await _read(connection, wanted[start : start + _SLICE])
        return records

    async def create(self, record: SourceRecord) -> None:
        async with translated(), self._writer:
            try:
                async with self._engine.begin() as connection:
                    await connection.execute(data_source.insert(), _row(record))
                    await announce(connection, record.data_source_id)
            except IntegrityError as error:
                _refuse(error)

    async def replace(self, record: SourceRecord, *, expected: int) -> bool:
        statement = data_source.update().where(_is(record.data_source_id), data_source.c.revision == expected)
        return await self._changed(statement.values(_row(record)), record.data_source_id)

    async def remove(self, data_source_id: UUID, *, expected: int) -> bool:
        """Its secrets go with it, by their foreign keys."""
        statement = data_source.delete().where(_is(data_source_id), data_source.c.revision == expected)
        return await self._changed(statement, data_source_id)

    async def _changed(self, statement: sa.Update | sa.Delete, data_source_id: UUID) -> bool:
        async with translated(), self._writer:
            try:
                async with self._engine.begin() as connection:
                    done = (await connection.execute(statement)).rowcount == 1
                    if done:
                        await announce(connection, data_source_id)
            except IntegrityError as error:
                _refuse(error)
        return done


def _told(text: str, told: Mapping[UUID, int], known: frozenset[str]) -> tuple[Mapping[UUID, int], frozenset[str]]:
    """The revisions that `text` tells of, and its pairs; only those that are not `known` are read."""
    pairs = frozenset(text.split())
    revisions = dict(told)
    for gone in known - pairs:
        del revisions[UUID(gone.partition("=")[0])]
    for pair in pairs - known:
        data_source_id, _, revision = pair.partition("=")
        revisions[UUID(data_source_id)] = int(revision)
    return revisions, pairs


def _is(data_source_id: UUID) -> sa.ColumnElement[bool]:
    return _ID == data_source_id  # noqa: SIM300 a column, not a constant


def _summary(*, postgres: bool) -> sa.Select[Any]:
    """All ids and revisions as one text, which most times is the text of the last time."""
    pair = sa.cast(_ID, sa.String) + "=" + sa.cast(data_source.c.revision, sa.String)
    if postgres:
        return sa.select(sa.func.string_agg(pair, aggregate_order_by(sa.literal(" "), _ID)))
    pairs = sa.select(pair.label("pair")).order_by(_ID).subquery()
    return sa.select(sa.func.group_concat(pairs.c.pair, " "))


async def _read(connection: AsyncConnection, ids: Sequence[UUID]) -> list[SourceRecord]:
    # The sources before their secrets: a change in between is then found by the revision; the other way round a new revision
    # would stand beside old secrets for ever.
    rows = list(await connection.execute(sa.select(data_source).where(_ID.in_(ids))))
    secrets: defaultdict[UUID, list[SecretMeta]] = defaultdict(list)
    for data_source_id, meta in await metas_of(connection, ids):
        secrets[data_source_id].append(meta)
    return [_record(row, secrets[row.data_source_id]) for row in rows]


def _record(row: sa.Row[Any], secrets: Sequence[SecretMeta]) -> SourceRecord:
    return SourceRecord(
        data_source_id=row.data_source_id,
        project_id=row.project_id,
        name=row.name,
        source=row.source,
        caching=row.caching,
        terms=row.terms,
        description=row.description,
        metadata=row.config_metadata,
        status=row.status,
        runtime_params=tuple(row.runtime_params),
        variables=tuple(row.variables),
        generation=row.generation,
        revision=row.revision,
        created_at=epoch_of(row.created_at),
        last_updated_at=epoch_of(row.last_updated_at),
        secrets=tuple(secrets),
    )


def _row(record: SourceRecord) -> dict[str, Any]:
    enabled, ttl = _caching(record)
    return {
        "data_source_id": record.data_source_id,
        "project_id": record.project_id,
        "name": record.name,
        "description": record.description,
        "source": record.source,
        "caching_enabled": enabled,
        "caching_ttl": ttl,
        "config_metadata": record.metadata,
        "runtime_params": list(record.runtime_params),
        "variables": list(record.variables),
        "status": record.status,
        "created_at": time_of(record.created_at),
        "last_updated_at": time_of(record.last_updated_at),
        "caching": record.caching,
        "terms": record.terms,
        "generation": record.generation,
        "revision": record.revision,
    }


def _caching(record: SourceRecord) -> tuple[bool, int | None]:
    """For who reads the table: is it cached, and for how many seconds, rounded up; None never expires."""
    try:
        policy = compiled(record).caching
    except CallerError:  # stored by another version, and archived by this one
        return bool(record.caching.get("enabled")), None
    return policy.enabled, None if policy.ttl is None else math.ceil(policy.ttl)


def _refuse(error: IntegrityError) -> NoReturn:
    told = str(error.orig)  # which names the index or the columns
    taken = "id" if "pk_data_source" in told or "data_source.data_source_id" in told else "name"
    raise CallerError("DATA_SOURCE_ALREADY_EXISTS", f"the {taken} is taken by another data source") from None
