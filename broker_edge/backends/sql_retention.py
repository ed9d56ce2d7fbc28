"""What is past its time, over SQL: counted, dropped by the partition, deleted in batches where there is none.

Each batch is a transaction of its own, so that nobody waits for many rows, and what is done stays done when the rest fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_errors import translated
from broker_edge.backends.sql_partitions import PostgresPartitions, midnight, part_of
from broker_edge.backends.tables import data_object, run_data_cache, run_data_request, secret_access
from broker_edge.core.retention import Partition, Removal, Table

_BATCH: Final = 2000
_MOST_IDS: Final = 50 * _BATCH  # that are looked for at a time, of objects that nobody names
_TABLES: Final = {table.name: table for table in (run_data_request, data_object, run_data_cache, secret_access)}
_CACHE: Final = run_data_cache.c
_REQUEST: Final = run_data_request.c


class SqlHousekeeping:
    """`ports.Housekeeping` for one engine; `writer` is held where the database has one writer at a time, which has no partitions
    either."""

    def __init__(
        self, engine: AsyncEngine, writer: contextlib.AbstractAsyncContextManager[Any] | None = None, *, batch: int = _BATCH
    ) -> None:
        self._engine = engine
        self._writer = writer or contextlib.nullcontext()
        self._batch = batch
        self._partitions = PostgresPartitions(engine) if engine.dialect.name == "postgresql" else None

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        if self._partitions is None:
            yield True
            return
        async with translated(), self._partitions.alone() as got:
            yield got

    async def make(self, partition: Partition) -> bool:
        async with translated():
            return self._partitions is not None and await self._partitions.make(partition)

    async def partitions(self, table: Table) -> Sequence[str] | None:
        async with translated():
            return await self._partitions.names(table) if self._partitions else None

    async def survey(self, removal: Removal) -> Removal:
        rows = _rows_of(removal)
        past = rows.c.created_at < midnight(removal.before)
        async with translated():
            old = await self._count(rows, past)
            if removal.table != "data_object":
                return msgspec.structs.replace(removal, rows=old)
            if removal.how == "drop" and await self._count(rows) > old:  # an id that says another time than its row
                removal = msgspec.structs.replace(removal, how="delete")
            free = old if removal.force or not old else await self._count(rows, past, *self._unnamed(rows, removal))
            how = "drop" if removal.how == "drop" and free == old else "delete"
            return msgspec.structs.replace(removal, how=how, rows=free, kept=old - free)

    async def remove(self, removal: Removal) -> int:
        async with translated():
            if self._partitions and removal.how == "drop" and removal.partition:
                if removal.force:
                    await self._forget(removal)
                await self._partitions.drop(removal.table, removal.partition)
                return removal.rows
            if removal.table == "data_object":
                return await self._delete_objects(removal)
            return await (self._delete_keys(removal) if removal.table == "run_data_cache" else self._delete_rows(removal))

    async def _count(self, rows: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
        async with self._engine.connect() as connection:
            return int((await connection.scalar(sa.select(sa.func.count()).select_from(rows).where(*conditions))) or 0)

    def _unnamed(self, rows: sa.Table, removal: Removal) -> Sequence[sa.ColumnElement[bool]]:
        """In Postgres anti-joins, which it hashes; SQLite has none, but makes a list once where Postgres would search it anew."""
        kept = _REQUEST.created_at >= midnight(removal.named_since)
        if self._partitions is None:
            named = sa.select(_REQUEST.data_object_id).where(_REQUEST.data_object_id.is_not(None), kept)
            return (
                rows.c.data_object_id.not_in(sa.select(_CACHE.data_object_id)),
                rows.c.data_object_id.not_in(named),
            )
        return (
            ~sa.exists().where(_CACHE.data_object_id == rows.c.data_object_id),
            ~sa.exists().where(_REQUEST.data_object_id == rows.c.data_object_id, kept),
        )

    async def _forget(self, removal: Removal) -> None:
        """The cache's rows that name what is to be dropped."""
        named = _CACHE.data_object_id.in_(sa.select(_rows_of(removal).c.data_object_id))
        async with self._engine.begin() as connection:
            await connection.execute(run_data_cache.delete().where(named))

    async def _delete_objects(self, removal: Removal) -> int:
        rows, gone = _rows_of(removal), 0
        unnamed = () if removal.force else self._unnamed(rows, removal)
        found = sa.select(rows.c.data_object_id).where(rows.c.created_at < midnight(removal.before), *unnamed).limit(_MOST_IDS)
        while True:
            async with self._engine.connect() as connection:
                ids = list(await connection.scalars(found))
            for start in range(0, len(ids), self._batch):
                gone += await self._delete_batch(rows, ids[start : start + self._batch], force=removal.force)
            if len(ids) < _MOST_IDS:
                return gone

    async def _delete_batch(self, rows: sa.Table, ids: Sequence[UUID], *, force: bool) -> int:
        async with self._writer, self._engine.begin() as connection:
            if force:
                await connection.execute(run_data_cache.delete().where(_CACHE.data_object_id.in_(ids)))
            still = sa.select(_CACHE.data_object_id).where(_CACHE.data_object_id.in_(ids))
            doomed = rows.delete().where(rows.c.data_object_id.in_(ids), rows.c.data_object_id.not_in(still))
            return (await connection.execute(doomed)).rowcount

    async def _delete_rows(self, removal: Removal) -> int:
        """The oldest first: there is an index on when rows were made."""
        rows, gone = _rows_of(removal), 0
        key: sa.ColumnElement[Any] = next(iter(rows.primary_key))
        past = rows.c.created_at < midnight(removal.before)
        oldest = sa.select(key).where(past).order_by(rows.c.created_at).limit(self._batch)
        while True:
            async with self._writer, self._engine.begin() as connection:
                batch = (await connection.execute(rows.delete().where(key.in_(oldest), past))).rowcount
            gone += batch
            if batch < self._batch:
                return gone

    async def _delete_keys(self, removal: Removal) -> int:
        """Page by page of the keys, of which there is no order in time: no page is read twice."""
        past, after, gone = _CACHE.created_at < midnight(removal.before), "", 0
        while True:
            page = sa.select(_CACHE.key).where(_CACHE.key > after).order_by(_CACHE.key).limit(self._batch).subquery()
            async with self._writer, self._engine.begin() as connection:
                last = await connection.scalar(sa.select(sa.func.max(page.c.key)))
                if last is None:
                    return gone
                within = _CACHE.key > after, _CACHE.key <= last
                gone += (await connection.execute(run_data_cache.delete().where(*within, past))).rowcount
            after = last


def _rows_of(removal: Removal) -> sa.Table:
    table = _TABLES[removal.table]
    return table if removal.partition is None else part_of(table, removal.partition)
