"""Postgres past SQLAlchemy and past psycopg's adaptation: one prepared statement and one round trip for a batch.

Used by `SqlDurable` from two objects or keys on, and by `SqlBudgets`. Connections are those of the engine's pool, out of it for
one statement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from broker_edge.backends import sql_binary as binary
from broker_edge.backends.sql_rows import REQUEST_COLUMNS
from broker_edge.backends.tables import SCHEMA
from broker_edge.core.exchange import DataObject
from broker_edge.core.row_packing import plain_text

_LAST_WORD = 1.0  # seconds
MOST_BYTES = 8 * 2**20  # of bodies in one statement: a value of Postgres ends at 1 GB, and each is copied on its way


class Statement(NamedTuple):
    name: bytes
    text: bytes
    parameters: int


def statement(name: str, text: bytes, parameters: int) -> Statement:
    """Named after its text too: behind a pooler that shares sessions, what another version prepared must not run in its place."""
    return Statement(f"broker_edge_{name}_{hashlib.sha256(text).hexdigest()[:16]}".encode(), text, parameters)


# One statement is one transaction: there is no BEGIN and no COMMIT to wait for. Reading `stored` makes Postgres insert all
# objects, by id, before the first cache row, by key: in the order of all other writers, so that there are no deadlocks.
_STORE = statement(
    "store",
    b"""
    WITH incoming AS MATERIALIZED (
        SELECT * FROM unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::timestamptz[], $6::text[], $7::text[], $8::int4[], $9::uuid[],
            $10::text[], $11::text[], $12::timestamptz[], $13::bool[]
        ) AS _ (data_object_id, data_source_id, key, value, created_at, content_type, response_type, status_code, project_id,
                etag, last_modified, confirmed_at, newest)
    ), stored AS (
        INSERT INTO data_broker.data_object
            (data_object_id, data_source_id, key, value, created_at, content_type, response_type, status_code, project_id, etag,
             last_modified)
        SELECT data_object_id, data_source_id, key, value, created_at, content_type, response_type, status_code, project_id, etag,
               last_modified
        FROM incoming ON CONFLICT DO NOTHING RETURNING 1
    )
    INSERT INTO data_broker.run_data_cache AS kept (key, data_object_id, created_at)
    SELECT key, data_object_id, confirmed_at FROM (SELECT count(*) FROM stored) AS _, incoming WHERE newest ORDER BY key
    ON CONFLICT (key) DO UPDATE SET data_object_id = excluded.data_object_id, created_at = excluded.created_at
    WHERE excluded.created_at > kept.created_at
    """,
    13,
)

_LOOKUP = statement(
    "lookup",
    b"""
    SELECT kept.key, found.data_object_id, found.data_source_id, found.value, found.created_at, found.content_type,
           found.response_type, found.status_code, found.project_id, found.etag, found.last_modified, kept.created_at
    FROM data_broker.run_data_cache AS kept JOIN data_broker.data_object AS found USING (data_object_id)
    WHERE kept.key = ANY($1::text[])
    """,
    1,
)


class Connection(psycopg.AsyncConnection[Any]):
    """A cancelled call asks the server to stop, as psycopg wants it; one that does not even hear that is hung up on."""

    async def cancel_safe(self, *, timeout: float = _LAST_WORD) -> None:
        try:
            await super().cancel_safe(timeout=min(timeout, _LAST_WORD))
        except BaseException:  # psycopg would wait for the call's end all the same
            self.pgconn.finish()
            raise


class PostgresDirect:
    """Raises psycopg's and SQLAlchemy's errors; whatever ends a call early ends its connection too."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def store(self, objects: Sequence[DataObject]) -> None:
        """All of them, which are sorted by id, or none."""
        await self.run(
            _STORE,
            binary.uuids([item.object_id.bytes for item in objects]),
            binary.uuids([item.data_source_id.bytes for item in objects]),
            binary.texts([item.key for item in objects]),
            binary.byteas([item.body for item in objects]),
            binary.times([item.created_at for item in objects]),
            binary.texts([None if item.content_type is None else plain_text(item.content_type) for item in objects]),
            binary.texts([item.response_type for item in objects]),
            binary.integers([item.status for item in objects]),
            binary.uuids([None if item.project_id is None else item.project_id.bytes for item in objects]),
            binary.texts([item.etag for item in objects]),
            binary.texts([item.last_modified for item in objects]),
            binary.times([item.confirmed_at for item in objects]),
            binary.booleans(_newest_of_keys(objects)),
        )

    async def lookup(self, keys: Sequence[str]) -> dict[str, DataObject]:
        result = await self.run(_LOOKUP, binary.texts(keys))
        return {item.key: item for item in (_object(result, number) for number in range(result.ntuples))}

    async def run(self, statement: Statement, *parameters: bytes) -> PGresult:
        """Parameters and result in binary."""
        lease = await self._checked_out()
        try:
            result = await _exchange(lease, statement, parameters)
        except (psycopg.DataError, psycopg.IntegrityError):  # an answer: the connection is as good as before
            await greenlet_spawn(lease.close)
            raise
        except BaseException:
            await greenlet_spawn(lease.invalidate)
            raise
        await greenlet_spawn(lease.close)
        return result

    async def _checked_out(self) -> PoolProxiedConnection:
        """A connection whose other side was there a moment ago: asking its socket costs less than a round trip."""
        while True:
            lease = await self._engine.raw_connection()
            if _alive(lease.driver_connection):
                return lease
            await greenlet_spawn(lease.invalidate)


def _newest_of_keys(objects: Sequence[DataObject]) -> list[bool]:
    """Of each key one object at most, even of one that comes twice: Postgres refuses to update a row twice in a statement."""
    newest: dict[str, int] = {}
    for number, item in enumerate(objects):
        if item.reusable and (item.key not in newest or item.confirmed_at >= objects[newest[item.key]].confirmed_at):
            newest[item.key] = number
    chosen = [False] * len(objects)
    for number in newest.values():
        chosen[number] = True
    return chosen


def _alive(driver: Any) -> bool:
    try:
        driver.pgconn.consume_input()  # the server's last words, if there are any
        driver.pgconn.consume_input()  # the end of the stream behind them
    except psycopg.OperationalError:
        return False
    return bool(driver.pgconn.status == ConnStatus.OK)


async def _exchange(lease: PoolProxiedConnection, statement: Statement, parameters: Sequence[bytes]) -> PGresult:
    driver: Any = lease.driver_connection
    formats = [Format.BINARY] * statement.parameters
    if lease.info.get(statement.name, True):
        try:
            if statement.name not in lease.info:
                driver.pgconn.send_prepare(statement.name, statement.text)
                await _answer(driver)
                lease.info[statement.name] = True  # a dictionary that goes with the connection
            driver.pgconn.send_query_prepared(statement.name, parameters, formats, Format.BINARY)
            return await _answer(driver)
        except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement):
            lease.info[statement.name] = False  # a pooler between us and the server deals its sessions out anew each time
    driver.pgconn.send_query_params(statement.text, parameters, None, formats, Format.BINARY)
    return await _answer(driver)


async def _answer(driver: Any) -> PGresult:
    result: PGresult = (await driver.wait(execute(driver.pgconn)))[-1]
    if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)
    return result


def _object(result: PGresult, row: int) -> DataObject:
    value = result.get_value
    created, confirmed = binary.read_time(value(row, 4) or b""), binary.read_time(value(row, 11) or b"")
    return DataObject(
        binary.read_uuid(value(row, 1) or b""),
        binary.read_uuid(value(row, 2) or b""),
        (value(row, 0) or b"").decode(),
        value(row, 3) or b"",
        created,
        _text(value(row, 5)),
        (value(row, 6) or b"").decode(),
        binary.read_integer(value(row, 7) or b""),
        reusable=True,
        project_id=None if (project := value(row, 8)) is None else binary.read_uuid(project),
        etag=_text(value(row, 9)),
        last_modified=_text(value(row, 10)),
        validated_at=confirmed if confirmed > created else None,
    )


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


_COPY = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
    sql.Identifier(SCHEMA, "run_data_request"), sql.SQL(", ").join(map(sql.Identifier, REQUEST_COLUMNS))
)


async def copy_requests(driver: Any, frames: Sequence[bytes]) -> None:
    """Packed rows into `run_data_request`, in the transaction that is open. COPY knows no ON CONFLICT: where a row is there
    already it raises UniqueViolation."""
    async with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        await copy.write(binary.copy_stream(frames))
