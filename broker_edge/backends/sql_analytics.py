"""Analytics over SQL: days from the sums that the rows keep up themselves, runs from the rows by index."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_errors import translated
from broker_edge.backends.tables import MONEY, run_data_request, run_data_request_daily
from broker_edge.core.analytics import Day, Money, Period, RunMoney

# Runs that an answer names are found among so many of the latest rows with money: a run that has them all to itself is the only
# one named, which is still better than an answer that takes as long as the table is large.
_RECENT_ROWS = 4000

Conditions = tuple[sa.ColumnElement[bool], ...]


class SqlAnalytics:
    """`ports.Analytics` for one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def by_day(self, data_source_id: UUID, project: UUID | None, over: Period) -> Sequence[Day]:
        rows = await self._rows(_days(data_source_id, project, over))
        return [
            Day(
                row.day,
                int(row.requests),
                int(row.from_cache),
                int(row.from_request),
                int(row.errors),
                int(row.timed_calls),
                float(row.call_seconds),
                _money(row),
            )
            for row in rows
        ]

    async def by_run(
        self, data_source_id: UUID, project: UUID | None, over: Period, run_id: UUID | None, most: int
    ) -> Sequence[RunMoney]:
        ours = _ours(data_source_id, project, over)
        # In two steps: joined, Postgres would rather read the whole period than look up so many runs by their index.
        runs = [run_id] if run_id else [row.run_id for row in await self._rows(_latest(ours, most))]
        rows = await self._rows(_summed(ours, runs)) if runs else ()
        order = {run: number for number, run in enumerate(runs)}
        return [RunMoney(row.run_id, _money(row)) for row in sorted(rows, key=lambda row: (order[row.run_id], row.currency))]

    async def _rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        async with translated(), self._engine.connect() as connection:
            return list(await connection.execute(statement))


def _money(row: sa.Row[Any]) -> Money:
    amounts = (row.calls, row.cost_micros, row.saved_cache_micros, row.saved_collapsed_micros)
    return Money(row.currency, *map(int, amounts))


def _days(data_source_id: UUID, project: UUID | None, over: Period) -> sa.Select[Any]:
    kept = run_data_request_daily.c
    sums = [sa.func.sum(column).label(column.name) for column in kept if not column.primary_key]
    return (
        sa.select(kept.day, kept.currency, *sums)
        .where(kept.data_source_id == data_source_id, kept.project == ("" if project is None else str(project)))
        .where(kept.day >= over.first, kept.day <= over.last)
        .group_by(kept.day, kept.currency)
        .order_by(kept.day, kept.currency)
    )


def _ours(data_source_id: UUID, project: UUID | None, over: Period) -> Conditions:
    row = run_data_request.c
    return (
        row.data_source_id == data_source_id,
        row.project_id.is_(None) if project is None else row.project_id == project,
        row.created_at >= _midnight(over.first),
        row.created_at < _midnight(over.last + timedelta(days=1)),
    )


def _latest(ours: Conditions, most: int) -> sa.Select[Any]:
    """As its text, the condition about money is that of the index, which both databases then use."""
    row = run_data_request.c
    recent = (
        sa.select(row.run_id, row.created_at)
        .where(*ours, row.run_id.is_not(None), sa.text(f"({MONEY})"))
        .order_by(row.created_at.desc())
        .limit(_RECENT_ROWS)
        .subquery()
    )
    latest = sa.func.max(recent.c.created_at)
    return sa.select(recent.c.run_id).group_by(recent.c.run_id).order_by(latest.desc(), recent.c.run_id).limit(most)


def _summed(ours: Conditions, runs: Sequence[UUID]) -> sa.Select[Any]:
    row = run_data_request.c
    currency = sa.func.coalesce(row.currency, "").label("currency")
    saved = sa.func.coalesce(row.saved_micros, 0)
    collapsed = sa.func.coalesce(row.outcome, "") == "collapsed"
    return (
        sa.select(
            row.run_id,
            currency,
            sa.func.sum(sa.func.coalesce(row.calls, 0)).label("calls"),
            sa.func.sum(sa.func.coalesce(row.cost_micros, 0)).label("cost_micros"),
            sa.func.sum(sa.case((collapsed, 0), else_=saved)).label("saved_cache_micros"),
            sa.func.sum(sa.case((collapsed, saved), else_=0)).label("saved_collapsed_micros"),
        )
        .where(row.run_id.in_(runs), *ours)
        .group_by(row.run_id, row.currency)
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
