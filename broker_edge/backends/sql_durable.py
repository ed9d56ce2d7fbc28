"""The durable tier and the journal's tables over SQLAlchemy Core: Postgres by psycopg 3, SQLite (WAL) by aiosqlite."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker_edge.backends.sql_rows import REQUEST_COLUMNS, cache_row, object_of, object_row, request_row
from broker_edge.backends.tables import SCHEMA, data_object, run_data_cache, run_data_request
from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import RequestRow
from broker_edge.errors import TierBroken
from broker_edge.ports import Refused

_COPY_FROM = 8  # below this a plain multi-row INSERT costs less than COPY by way of a temporary table


def make_engine(url: str, pool_size: int = 8, timeout: float = 5.0) -> AsyncEngine:
    """An engine for either database; `timeout` seconds bound connecting, and waiting for a connection or a lock."""
    if url.startswith("sqlite"):
        engine = create_async_engine(url, connect_args={"timeout": timeout}, pool_size=pool_size)
        sa.event.listen(engine.sync_engine, "connect", _sqlite_pragmas)
        return engine.execution_options(schema_translate_map={SCHEMA: None})
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        connect_args={"connect_timeout": max(2, int(timeout)), "application_name": "broker-edge"},
    )


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class SqlDurable:
    """`ports.DurableTier` for one engine; the dialects differ in how they insert and in nothing else."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._postgres = engine.dialect.name == "postgresql"
        insert = postgres_insert if self._postgres else sqlite_insert
        # SQLite has one writer at a time: queueing here is fairer than its busy handler, which sleeps.
        self._writer: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext() if self._postgres else asyncio.Lock()
        self._lookup = _lookup_statement()
        self._add_objects = insert(data_object).on_conflict_do_nothing()
        self._add_requests = insert(run_data_request).on_conflict_do_nothing()
        upsert = insert(run_data_cache)
        self._point_cache = upsert.on_conflict_do_update(
            index_elements=["key"],
            set_={"data_object_id": upsert.excluded.data_object_id, "created_at": upsert.excluded.created_at},
            where=upsert.excluded.created_at > run_data_cache.c.created_at,
        )

    async def lookup(self, keys: Sequence[str]) -> Sequence[DataObject | None]:
        async with self._translated(), self._engine.connect() as connection:
            rows = await connection.execute(self._lookup, {"keys": list(keys)})
            found = {row.key: object_of(row) for row in rows}
        return [found.get(key) for key in keys]

    async def store(self, objects: Sequence[DataObject]) -> None:
        await self.append((), objects)

    async def append(self, rows: Sequence[RequestRow], objects: Sequence[DataObject]) -> None:
        # Sorted: two transactions that insert the same rows in different orders would deadlock.
        objects = sorted(objects, key=lambda item: item.object_id)
        rows = sorted(rows, key=lambda row: row.run_data_request_id)
        async with self._translated(), self._writer, self._engine.begin() as connection:
            if objects:
                await self._insert_objects(connection, objects)
            if rows:
                await self._insert_requests(connection, rows)

    async def ping(self) -> None:
        async with self._translated(), self._engine.connect() as connection:
            await connection.execute(sa.select(1))

    async def aclose(self) -> None:
        await self._engine.dispose()

    async def _insert_objects(self, connection: AsyncConnection, objects: Sequence[DataObject]) -> None:
        await connection.execute(self._add_objects, [object_row(item) for item in objects])
        # One row a key, and sorted anew: by key this time.
        newest: dict[str, DataObject] = {}
        for item in sorted((item for item in objects if item.reusable), key=lambda item: (item.key, item.created_at)):
            newest[item.key] = item
        if newest:
            await connection.execute(self._point_cache, [cache_row(item) for item in newest.values()])

    async def _insert_requests(self, connection: AsyncConnection, rows: Sequence[RequestRow]) -> None:
        if self._postgres and len(rows) >= _COPY_FROM:
            await _copy_requests(connection, rows)
        else:
            await connection.execute(self._add_requests, [request_row(row) for row in rows])

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except (DataError, IntegrityError) as error:
            raise Refused(type(error).__name__) from None
        except InterfaceError:
            raise TierBroken("the database can't be reached") from None
        except StatementError as error:
            if type(error) is StatementError:  # a value that the driver can't even send
                raise Refused("StatementError") from None
            raise TierBroken("the database failed") from None
        except (psycopg.DataError, psycopg.IntegrityError) as error:  # COPY goes past SQLAlchemy, so its errors do too
            raise Refused(type(error).__name__) from None
        except (ValueError, TypeError, OverflowError) as error:  # drivers let these through as they are
            raise Refused(type(error).__name__) from None
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError):
            raise TierBroken("the database can't be reached") from None


def _lookup_statement() -> sa.Select[Any]:
    joined = run_data_cache.join(data_object)
    columns = [column for column in data_object.c if column.name != "key"]
    return (
        sa.select(run_data_cache.c.key, *columns)
        .select_from(joined)
        .where(run_data_cache.c.key.in_(sa.bindparam("keys", expanding=True)))
    )


_TEMPORARY = sql.SQL(
    "CREATE TEMPORARY TABLE IF NOT EXISTS incoming_request (LIKE {} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
).format(sql.Identifier(SCHEMA, "run_data_request"))
_COPY = sql.SQL("COPY incoming_request ({}) FROM STDIN").format(sql.SQL(", ").join(map(sql.Identifier, REQUEST_COLUMNS)))
_MOVE = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM incoming_request ON CONFLICT DO NOTHING").format(
    table=sql.Identifier(SCHEMA, "run_data_request"), columns=sql.SQL(", ").join(map(sql.Identifier, REQUEST_COLUMNS))
)


async def _copy_requests(connection: AsyncConnection, rows: Sequence[RequestRow]) -> None:
    """COPY has no ON CONFLICT: rows go by way of a temporary table, in the transaction that SQLAlchemy has open."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with driver.cursor() as cursor:
        await cursor.execute(_TEMPORARY)
        async with cursor.copy(_COPY) as copy:
            for row in rows:
                values = request_row(row)
                if values["error"] is not None:
                    values["error"] = Jsonb(values["error"])
                await copy.write_row([values[name] for name in REQUEST_COLUMNS])
        await cursor.execute(_MOVE)
