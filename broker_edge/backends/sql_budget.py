"""What sources spend in a day, over SQLAlchemy: each word is one statement and its own transaction, on Postgres and SQLite alike.

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

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends.tables import data_source_budget as table
from broker_edge.errors import TierBroken

_NO_BOUND: Final = 2**63 - 1


class SqlBudgets:
    """`ports.Budgets` for one engine; `writer` is held where the database has one writer at a time."""

    def __init__(self, engine: AsyncEngine, writer: AbstractAsyncContextManager[Any] | None = None) -> None:
        # A transaction of its own by each statement: no round trips for BEGIN and COMMIT, during which the row would stay locked.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = writer or contextlib.nullcontext()
        insert = postgres_insert if engine.dialect.name == "postgresql" else sqlite_insert
        added = insert(table)
        calls, micros = table.c.calls + added.excluded.calls, table.c.cost_micros + added.excluded.cost_micros
        self._reserve = added.on_conflict_do_update(
            index_elements=[table.c.data_source_id, table.c.project, table.c.day],
            set_={"calls": calls, "cost_micros": micros},
            where=sa.and_(
                calls <= sa.bindparam("most_calls", type_=sa.BigInteger),
                micros <= sa.bindparam("most_micros", type_=sa.BigInteger),
            ),
        ).returning(table.c.calls)
        self._release = (
            sa.update(table)
            .where(*_account(), table.c.calls > 0)
            .values(
                calls=table.c.calls - 1,
                cost_micros=table.c.cost_micros - sa.bindparam("micros", type_=sa.BigInteger),
            )
        )
        self._spent = sa.select(table.c.calls, table.c.cost_micros).where(*_account())

    async def reserve(
        self,
        data_source_id: UUID,
        project: str | None,
        day: date,
        micros: int,
        *,
        most_calls: int | None,
        most_micros: int | None,
    ) -> bool:
        bounds = {
            "most_calls": _NO_BOUND if most_calls is None else most_calls,
            "most_micros": _NO_BOUND if most_micros is None else most_micros,
        }
        if bounds["most_calls"] < 1 or bounds["most_micros"] < micros:
            return False  # not even the day's first, which finds no row to be measured by
        row = {"data_source_id": data_source_id, "project": project or "", "day": day, "calls": 1, "cost_micros": micros}
        async with self._connected() as connection:
            return (await connection.execute(self._reserve, {**row, **bounds})).first() is not None

    async def release(self, data_source_id: UUID, project: str | None, day: date, micros: int) -> None:
        async with self._connected() as connection:
            await connection.execute(self._release, {**_named(data_source_id, project, day), "micros": micros})

    async def spent(self, data_source_id: UUID, project: str | None, day: date) -> tuple[int, int]:
        async with self._connected() as connection:
            found = (await connection.execute(self._spent, _named(data_source_id, project, day))).first()
        return (0, 0) if found is None else (found.calls, found.cost_micros)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._writer, self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError):
            raise TierBroken("the database can't be reached") from None


def _account() -> tuple[sa.ColumnElement[bool], ...]:
    """Parameters by names of their own: those of the columns are SQLAlchemy's in an UPDATE."""
    return (
        table.c.data_source_id == sa.bindparam("of_source"),
        table.c.project == sa.bindparam("of_project"),
        table.c.day == sa.bindparam("of_day"),
    )


def _named(data_source_id: UUID, project: str | None, day: date) -> dict[str, Any]:
    return {"of_source": data_source_id, "of_project": project or "", "of_day": day}
