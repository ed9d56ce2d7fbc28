"""What sources spend in a day: each word is one statement and its own transaction, on Postgres and SQLite alike.

Nothing is read and then written. The condition stands in the statement that counts, and the database decides row by row: of two
that come at once the second sees what the first has left.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import date
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends import sql_binary as binary
from broker_edge.backends.sql_direct import PostgresDirect, statement
from broker_edge.backends.sql_errors import translated
from broker_edge.backends.tables import data_source_budget as table

_NO_BOUND: Final = 2**63 - 1

# `account` waits for the row's lock and then sees what whoever held it has left; nobody changes it before this statement ends.
# On a day's first calls there is no row. Where somebody else makes it meanwhile nothing comes back, and is asked for again.
_RESERVE: Final = statement(
    "reserve",
    b"""
    WITH account AS MATERIALIZED (
        SELECT greatest(0, least($5::int8, $6::int8 - calls, CASE
            WHEN $4::int8 > 0 THEN ($7::int8 - cost_micros) / $4::int8
            WHEN cost_micros <= $7::int8 THEN $5::int8
            ELSE 0 END)) AS granted
        FROM data_broker.data_source_budget
        WHERE data_source_id = $1::uuid AND project = $2::text AND day = $3::date FOR UPDATE
    ), counted AS (
        UPDATE data_broker.data_source_budget AS kept
        SET calls = kept.calls + account.granted, cost_micros = kept.cost_micros + account.granted * $4::int8
        FROM account WHERE kept.data_source_id = $1::uuid AND kept.project = $2::text AND kept.day = $3::date
        RETURNING account.granted
    ), opened AS (
        INSERT INTO data_broker.data_source_budget AS made (data_source_id, project, day, calls, cost_micros)
        SELECT $1::uuid, $2::text, $3::date, $8::int8, $8::int8 * $4::int8 WHERE NOT EXISTS (SELECT FROM account)
        ON CONFLICT DO NOTHING RETURNING made.calls
    )
    SELECT granted FROM counted UNION ALL SELECT calls FROM opened
    """,
    8,
)

_RELEASE: Final = statement(
    "release",
    b"""
    UPDATE data_broker.data_source_budget SET calls = calls - $5::int8, cost_micros = cost_micros - $5::int8 * $4::int8
    WHERE data_source_id = $1::uuid AND project = $2::text AND day = $3::date AND calls >= $5::int8
    """,
    5,
)


class SqlBudgets:
    """`ports.Budgets` for one engine; `writer` is held where the database has one writer at a time."""

    def __init__(self, engine: AsyncEngine, writer: AbstractAsyncContextManager[Any] | None = None) -> None:
        self._direct = PostgresDirect(engine) if engine.dialect.name == "postgresql" else None
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = writer or contextlib.nullcontext()
        self._reserve = _reserve_one_by_one()
        calls = sa.bindparam("released", type_=sa.BigInteger)
        cost = calls * sa.bindparam("micros", type_=sa.BigInteger)
        spent = sa.update(table).where(*_account(), table.c.calls >= calls)
        self._release = spent.values(calls=table.c.calls - calls, cost_micros=table.c.cost_micros - cost)
        self._spent = sa.select(table.c.calls, table.c.cost_micros).where(*_account())

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
    ) -> int:
        calls, cost = (_NO_BOUND if bound is None else bound for bound in (most_calls, most_micros))
        at_first = min(asked, calls, cost // micros if micros else asked)  # where the day has no row to be measured by
        if at_first < 1:
            return 0
        if self._direct is not None:
            numbers = binary.whole_numbers(micros, asked, calls, cost, at_first)
            return await _granted(self._direct, (*_key(data_source_id, project, day), *numbers))
        named = {**_named(data_source_id, project, day), "micros": micros, "asked": asked}
        async with self._connected() as connection:
            return len((await connection.execute(self._reserve, {**named, "most_calls": calls, "most_micros": cost})).all())

    async def release(self, data_source_id: UUID, project: str | None, day: date, micros: int, calls: int) -> None:
        if self._direct is not None:
            async with translated():
                await self._direct.run(_RELEASE, *_key(data_source_id, project, day), *binary.whole_numbers(micros, calls))
            return
        async with self._connected() as connection:
            named = _named(data_source_id, project, day)
            await connection.execute(self._release, {**named, "micros": micros, "released": calls})

    async def spent(self, data_source_id: UUID, project: str | None, day: date) -> tuple[int, int]:
        async with self._connected() as connection:
            found = (await connection.execute(self._spent, _named(data_source_id, project, day))).first()
        return (0, 0) if found is None else (found.calls, found.cost_micros)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        async with translated(), self._writer, self._engine.connect() as connection:
            yield connection


async def _granted(direct: PostgresDirect, parameters: tuple[bytes, ...]) -> int:
    async with translated():
        while True:
            result = await direct.run(_RESERVE, *parameters)
            if result.ntuples:
                return binary.read_whole_number(result.get_value(0, 0) or b"")


def _reserve_one_by_one() -> sa.Executable:
    """SQLite's: so many rows of one call each, of which those go in that the bounds allow; a row comes back for each.

    SQLite takes a row that meets one of the same statement as it takes any other, and knows no RETURNING of what was before.
    """
    asked = sa.bindparam("asked", type_=sa.BigInteger)
    counting = sa.select(sa.literal(1).label("number")).cte("counting", recursive=True)
    counting = counting.union_all(sa.select(counting.c.number + 1).where(counting.c.number < asked))
    micros = sa.bindparam("micros", type_=sa.BigInteger)
    account = [sa.bindparam(f"of_{column.name}", type_=column.type) for column in table.primary_key]
    names = [column.name for column in table.c]
    one_each = sa.select(*account, sa.literal(1), micros).select_from(counting).where(counting.c.number <= asked)
    added = insert(table).from_select(names, one_each)
    calls, cost = table.c.calls + added.excluded.calls, table.c.cost_micros + added.excluded.cost_micros
    return added.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={"calls": calls, "cost_micros": cost},
        where=sa.and_(
            calls <= sa.bindparam("most_calls", type_=sa.BigInteger),
            cost <= sa.bindparam("most_micros", type_=sa.BigInteger),
        ),
    ).returning(table.c.calls)


def _key(data_source_id: UUID, project: str | None, day: date) -> tuple[bytes, bytes, bytes]:
    return data_source_id.bytes, (project or "").encode(), binary.day(day)


def _account() -> list[sa.ColumnElement[bool]]:
    """Parameters by names of their own: those of the columns are SQLAlchemy's in an UPDATE."""
    return [column == sa.bindparam(f"of_{column.name}", type_=column.type) for column in table.primary_key]


def _named(data_source_id: UUID, project: str | None, day: date) -> dict[str, Any]:
    return {"of_data_source_id": data_source_id, "of_project": project or "", "of_day": day}
