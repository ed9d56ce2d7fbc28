"""The durable tier and the journal's tables over SQLAlchemy Core: Postgres by psycopg 3, SQLite (WAL) by aiosqlite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import aiosqlite
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker_edge.backends.sql_direct import MOST_BYTES, Connection, PostgresDirect, copy_requests
from broker_edge.backends.sql_rows import (
    cache_row,
    newest_of_keys,
    object_of,
    object_row,
    request_frames,
    request_row,
    rollup_order,
)
from broker_edge.backends.tables import SCHEMA, data_object, run_data_cache, run_data_request
from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import PackedRows, RequestRow
from broker_edge.errors import TierBroken
from broker_edge.ports import Refused

_DIRECT_FROM = (
    2  # objects or keys; a lone one goes where SQLAlchemy's events show it, unless others are under way: it costs thrice
)

_LAST_CALL = 2.0  # seconds
_WAL_TRIES, _WAL_PAUSE = 50, 0.02  # seconds; only the very first opening of a file comes to that
_opened: WeakKeyDictionary[AsyncEngine, set[aiosqlite.Connection]] = WeakKeyDictionary()

# libpq's, in seconds but for the last: a server that vanished without a word is given up by the kernel.
_KEEPALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


def make_engine(url: str, pool_size: int = 8, timeout: float = 5.0) -> AsyncEngine:
    """An engine for either database; `timeout` seconds bound connecting, and waiting for a connection or a lock."""
    if url.startswith("sqlite"):
        opened: set[aiosqlite.Connection] = set()
        arguments = {"timeout": timeout, "async_creator_fn": partial(_sqlite, opened)}
        engine = create_async_engine(url, connect_args=arguments, pool_size=pool_size)
        sa.event.listen(engine.sync_engine, "connect", _sqlite_pragmas)
        engine = engine.execution_options(schema_translate_map={SCHEMA: None})
        _opened[engine] = opened
        return engine
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        connect_args={
            "connect_timeout": max(2, int(timeout)),
            "application_name": "broker-edge",
            "client_encoding": "utf8",  # whatever the environment says: that is what rows are packed in
            # psycopg prepares what it has seen five times, and drops all that is prepared, ours too, at the next ROLLBACK, with
            # which each SELECT of SQLAlchemy ends.
            "prepare_threshold": None,
            "async_creator_fn": Connection.connect,
            **_KEEPALIVE,
        },
    )


def _sqlite(opened: set[aiosqlite.Connection], *arguments: Any, **options: Any) -> aiosqlite.Connection:
    opened -= {one for one in opened if one._thread.ident is not None and not one._thread.is_alive()}
    connection = aiosqlite.connect(*arguments, **options)
    connection._thread.daemon = True  # as SQLAlchemy makes it
    opened.add(connection)
    return connection


async def close_engine(engine: AsyncEngine) -> None:
    """Close all connections, and wait for SQLite's threads: one whose call was cancelled has yet to tell its end to this loop.

    One that was cancelled while it was being opened may have been left open.
    """
    await engine.dispose()
    until = time.monotonic() + _LAST_CALL
    for thread in [one._thread for one in _opened.get(engine, ()) if one._thread.is_alive() and one.stop()]:
        await asyncio.to_thread(thread.join, max(0.0, until - time.monotonic()))


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    _to_wal(cursor)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _to_wal(cursor: Any) -> None:
    """Of processes that open a new file at once, all but one are refused, without the usual wait: it would be for each other."""
    for left in range(_WAL_TRIES, -1, -1):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(_WAL_PAUSE)


class SqlDurable:
    """`ports.DurableTier` for one engine; on Postgres batches go past SQLAlchemy, under the same rules."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        postgres = engine.dialect.name == "postgresql"
        self._direct = PostgresDirect(engine) if postgres else None
        insert = postgres_insert if postgres else sqlite_insert
        # SQLite has one writer at a time: queueing here is fairer than its busy handler, which sleeps.
        self.writer: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext() if postgres else asyncio.Lock()
        self._under_way = 0  # look-ups and stores
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
        with self._one_more() as others:
            async with self._translated():
                direct = self._direct if others or len(keys) >= _DIRECT_FROM else None
                found = await (direct.lookup(keys) if direct else self._found(keys))
        return [found.get(key) for key in keys]

    async def store(self, objects: Sequence[DataObject]) -> None:
        # Sorted: two transactions that insert the same rows in different orders would deadlock.
        objects = sorted(objects, key=lambda item: item.object_id.int)
        small = sum(len(item.body) for item in objects) <= MOST_BYTES
        with self._one_more() as others:
            if self._direct and small and (others or len(objects) >= _DIRECT_FROM):
                async with self._translated():
                    await self._direct.store(objects)
            else:
                await self.append((), objects)

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[int]:
        """Counts a call for as long as it lasts; gives how many others are under way as it begins."""
        others = self._under_way
        self._under_way += 1
        try:
            yield others
        finally:
            self._under_way -= 1

    async def append(self, rows: Sequence[RequestRow], objects: Sequence[DataObject]) -> None:
        objects = sorted(objects, key=lambda item: item.object_id)
        async with self._translated(), self.writer:
            if self._direct and rows:
                await self._append_frames(request_frames(rows), objects)
            elif rows or objects:
                await self._append_rows(sorted(rows, key=lambda row: row.run_data_request_id), objects)

    async def ping(self) -> None:
        async with self._translated(), self._engine.connect() as connection:
            await connection.execute(sa.select(1))

    async def aclose(self) -> None:
        await close_engine(self._engine)

    async def _found(self, keys: Sequence[str]) -> dict[str, DataObject]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(self._lookup, {"keys": list(keys)})
            return {row.key: object_of(row) for row in rows}

    async def _append_frames(self, frames: Sequence[bytes], objects: Sequence[DataObject]) -> None:
        """COPY is the fast way, and not for rows that are there already: a batch whose commit nobody heard of comes again."""
        try:
            async with self._engine.begin() as connection:
                await self._insert_objects(connection, objects)
                await copy_requests((await connection.get_raw_connection()).driver_connection, frames)
        except psycopg.errors.UniqueViolation:
            # Not by way of a temporary table: creating one is a privilege that a role may well lack.
            await self._append_rows(sorted(PackedRows(frames), key=rollup_order), objects)

    async def _append_rows(self, rows: Sequence[RequestRow], objects: Sequence[DataObject]) -> None:
        async with self._engine.begin() as connection:
            await self._insert_objects(connection, objects)
            if rows:
                await connection.execute(self._add_requests, [request_row(row) for row in rows])

    async def _insert_objects(self, connection: AsyncConnection, objects: Sequence[DataObject]) -> None:
        if not objects:
            return
        await connection.execute(self._add_objects, [object_row(item) for item in objects])
        if newest := newest_of_keys(objects):
            await connection.execute(self._point_cache, [cache_row(item) for item in newest.values()])

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
        except struct.error:  # a number that is too large for its column
            raise Refused("OverflowError") from None
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError):
            raise TierBroken("the database can't be reached") from None


def _lookup_statement() -> sa.Select[Any]:
    joined = run_data_cache.join(data_object)
    columns = [column for column in data_object.c if column.name != "key"]
    return (
        sa.select(run_data_cache.c.key, *columns, run_data_cache.c.created_at.label("validated_at"))
        .select_from(joined)
        .where(run_data_cache.c.key.in_(sa.bindparam("keys", expanding=True)))
    )
