"""Partitions in Postgres: made, listed and dropped without ever making traffic wait for more than a moment.

A lock on a table that is asked for stands before all who come later, so that it is waited for only briefly; who does not get it
says so, and tries another time. Partitions are made as tables of their own and then attached: that locks the table against
nothing but its like, where CREATE TABLE ... PARTITION OF would lock it altogether.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends.tables import SCHEMA, run_data_request
from broker_edge.core.retention import Partition
from broker_edge.errors import TierBroken

_PREPARING = 0x65646765_0001  # of advisory locks: one process at a time prepares, and one removes
_REMOVING = 0x65646765_0002
_LOCK = "300ms"  # for a lock on a table with traffic
_WORK = "5s"  # for what is done under it
_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected)
_KEYS: dict[str, sa.types.TypeEngine[Any]] = {"run_data_request": sa.DateTime(timezone=True), "data_object": sa.Uuid()}
_NAMES = text(
    """
    SELECT part.relname FROM pg_inherits
    JOIN pg_class AS part ON part.oid = pg_inherits.inhrelid
    JOIN pg_class AS whole ON whole.oid = pg_inherits.inhparent
    JOIN pg_namespace AS room ON room.oid = whole.relnamespace
    WHERE room.nspname = :schema AND whole.relname = :table ORDER BY part.relname
    """
)


class PostgresPartitions:
    """Raises `TierBroken` where a lock was not to be had; else SQLAlchemy's errors, which the caller translates."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """The lock is a transaction's, not a session's: poolers in between deal sessions out anew each time."""
        async with self._engine.begin() as connection:
            yield await _got(connection, _REMOVING)

    async def names(self, table: str) -> Sequence[str]:
        async with self._engine.connect() as connection:
            return await _names(connection, table)

    async def make(self, partition: Partition) -> bool:
        """Whether it was missing; of several processes that find so the first makes it."""
        table, name = f"{SCHEMA}.{partition.table}", f"{SCHEMA}.{partition.name}"
        first, until = partition.bounds
        async with self._changing() as connection:
            if not await _got(connection, _PREPARING) or partition.name in await _names(connection, partition.table):
                return False
            if await _covered(connection, partition):
                return False
            await connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
            await _move(connection, partition)
            await connection.execute(
                text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{until}')")
            )
        return True

    async def drop(self, table: str, partition: str) -> None:
        """The foreign key of the cache's rows is checked as the partition is detached: what they name can't go this way."""
        quoted = partition.replace('"', '""')
        name = f'{SCHEMA}."{quoted}"'
        async with self._changing() as connection:
            await connection.execute(text(f"ALTER TABLE {SCHEMA}.{table} DETACH PARTITION {name}"))
            await connection.execute(text(f"DROP TABLE {name}"))

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK}'"))
                await connection.execute(text(f"SET LOCAL statement_timeout = '{_WORK}'"))
                yield connection
        except DBAPIError as error:
            if isinstance(error.orig, _BUSY):
                raise TierBroken("the table is in use") from None
            if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise TierBroken("the role does not own the table") from None
            if isinstance(error.orig, psycopg.errors.CheckViolation):
                raise TierBroken("the default partition holds what belongs there") from None
            raise


async def _got(connection: AsyncConnection, lock: int) -> bool:
    return bool(await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": lock}))


async def _names(connection: AsyncConnection, table: str) -> Sequence[str]:
    return list(await connection.scalars(_NAMES, {"schema": SCHEMA, "table": table}))


async def _covered(connection: AsyncConnection, partition: Partition) -> bool:
    """`_before` ends where the first day and month of the migration ended: of those there is no partition of their own."""
    bounds = await connection.scalar(
        text("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = to_regclass(:name)"),
        {"name": f"{SCHEMA}.{partition.table}_before"},
    )
    if bounds is None:
        return False
    kind, end = _KEYS[partition.table], str(bounds).rpartition("TO ('")[2].removesuffix("')")
    first = sa.literal(partition.bounds[0], sa.String)
    return bool(await connection.scalar(sa.select(sa.cast(first, kind) < sa.cast(sa.literal(end, sa.String), kind))))


async def _move(connection: AsyncConnection, partition: Partition) -> None:
    """What came while the partition was missing lies in the default one, which nobody may write to until it has moved.

    Objects stay: the cache's rows name them, and a foreign key knows no moment in between. Their partition can't be attached
    then, which says so.
    """
    await connection.execute(text(f"LOCK TABLE {SCHEMA}.{partition.table}_default IN SHARE ROW EXCLUSIVE MODE"))
    if partition.table == "run_data_request":
        default, part = (part_of(run_data_request, name) for name in ("run_data_request_default", partition.name))
        within = default.c.created_at >= midnight(partition.first), default.c.created_at < midnight(partition.until)
        moved = default.delete().where(*within).returning(*default.c).cte("moved")
        await connection.execute(part.insert().from_select(list(default.c.keys()), sa.select(moved)))


def part_of(table: sa.Table, name: str) -> sa.Table:
    """A partition as a table by itself."""
    return table.to_metadata(sa.MetaData(schema=SCHEMA), name=name)


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
