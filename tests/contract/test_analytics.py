"""The contract of `ports.Analytics`, over SQLite and Postgres: what it tells is what the rows say, however they came."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_analytics import SqlAnalytics
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.tables import run_data_request_daily
from broker_edge.core.analytics import Day, Money, Period
from broker_edge.core.journal_row import PackedRows, RequestRow, pack_row
from broker_edge.errors import TierBroken
from broker_edge.settings import load

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
MARCH = Period(date(2026, 3, 1), date(2026, 3, 31))
ERROR = {"code": "TIMEOUT", "message": "late", "source": "upstream", "retryable": True}


def row(source: uuid.UUID, **members: Any) -> RequestRow:
    values: dict[str, Any] = {
        "run_data_request_id": uuid.uuid4(),
        "created_at": NOON,
        "run_id": uuid.uuid4(),
        "data_object_id": uuid.uuid4(),
        "data_source_id": source,
        "data_origin": "CACHE",
        "start_time": None,
        "end_time": None,
        "error": None,
        "project_id": None,
        "key": uuid.uuid4().hex,
        "outcome": "hit",
        "status_code": 200,
        "trace_id": "0" * 32,
    }
    return RequestRow(**{**values, **members})


def call(source: uuid.UUID, seconds: float, **members: Any) -> RequestRow:
    times = {"start_time": NOON, "end_time": NOON + seconds}
    return row(source, **{"data_origin": "REQUEST", "outcome": "fetched", "calls": 1, **times, **members})


@pytest.fixture
def tier(engine: AsyncEngine) -> SqlDurable:
    return SqlDurable(engine)


@pytest.fixture
def analytics(engine: AsyncEngine) -> SqlAnalytics:
    return SqlAnalytics(engine)


async def test_a_source_that_nobody_asked_has_no_days(analytics: SqlAnalytics) -> None:
    assert list(await analytics.by_day(uuid.uuid4(), None, MARCH)) == []
    assert list(await analytics.by_run(uuid.uuid4(), None, MARCH, None, 100)) == []


async def test_a_day_is_the_sum_of_its_rows(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source = uuid.uuid4()
    rows = [
        row(source),
        row(source, outcome="stale"),
        call(source, 0.5),
        call(source, 1.5),
        row(source, data_origin=None, outcome="timeout", error=ERROR, start_time=NOON, end_time=NOON + 4, calls=2),
        row(source, data_origin=None, outcome="missing_variable", error=ERROR, start_time=NOON, end_time=NOON + 9),
    ]
    await tier.append(rows, [])
    (day,) = await analytics.by_day(source, None, MARCH)
    assert day == Day(date(2026, 3, 10), 6, 2, 2, 2, 3, 6.0, Money("", 4))


async def test_who_boards_another_s_call_is_a_request_whose_time_counts_once(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source = uuid.uuid4()
    await tier.append([call(source, 2.0), *(call(source, 2.0, outcome="collapsed", calls=0) for _ in range(3))], [])
    (day,) = await analytics.by_day(source, None, MARCH)
    assert (day.requests, day.from_request, day.timed_calls, day.call_seconds) == (4, 4, 1, 2.0)


@pytest.mark.parametrize("outcome", ["refill", "test"])
async def test_what_nobody_asked_for_is_no_request_and_yet_costs(tier: SqlDurable, analytics: SqlAnalytics, outcome: str) -> None:
    source = uuid.uuid4()
    await tier.append([call(source, 2.0, outcome=outcome, error=ERROR, cost_micros=350_000, currency="BRL")], [])
    (day,) = await analytics.by_day(source, None, MARCH)
    assert (day.requests, day.from_cache, day.from_request, day.errors) == (0, 0, 0, 0)
    assert day.money == Money("BRL", 1, 350_000)
    assert day.timed_calls == (1 if outcome == "refill" else 0)


async def test_the_period_s_days_are_utc_and_both_ends_count(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source = uuid.uuid4()
    midnight = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    moments = [midnight - 0.000001, midnight, midnight + 31 * DAY - 0.000001, midnight + 31 * DAY]
    await tier.append([row(source, created_at=moment, saved_micros=1, currency="EUR") for moment in moments], [])
    found = await analytics.by_day(source, None, MARCH)
    assert [(one.day, one.requests) for one in found] == [(date(2026, 3, 1), 1), (date(2026, 3, 31), 1)]
    assert len(await analytics.by_run(source, None, MARCH, None, 100)) == 2


async def test_another_project_s_rows_under_the_same_id_do_not_count(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source, project, other = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    priced = {"cost_micros": 5, "currency": "EUR"}
    rows = [row(source, project_id=owner, **priced) for owner in (project, project, other, None)]
    await tier.append(rows, [])
    for owner, count in ((project, 2), (other, 1), (None, 1), (uuid.uuid4(), 0)):
        days = await analytics.by_day(source, owner, MARCH)
        assert sum(day.requests for day in days) == count
        assert len(await analytics.by_run(source, owner, MARCH, None, 100)) == count
    assert list(await analytics.by_run(source, project, MARCH, rows[2].run_id, 100)) == []


async def test_currencies_are_told_apart_and_so_are_savings(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source = uuid.uuid4()
    rows = [
        call(source, 1.0, cost_micros=700, currency="BRL"),
        call(source, 1.0, cost_micros=2**40, currency="EUR"),
        row(source, saved_micros=350, currency="BRL"),
        call(source, 1.0, outcome="collapsed", calls=0, saved_micros=70, currency="BRL"),
        row(source),
    ]
    await tier.append(rows, [])
    found = {day.money.currency: day for day in await analytics.by_day(source, None, MARCH)}
    assert {name: day.requests for name, day in found.items()} == {"": 1, "BRL": 3, "EUR": 1}
    assert found["BRL"].money == Money("BRL", 1, 700, 350, 70)
    assert found["EUR"].money == Money("EUR", 1, 2**40)


async def test_a_run_s_money_is_the_sum_of_its_rows(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source, run = uuid.uuid4(), uuid.uuid4()
    rows = [
        call(source, 1.0, run_id=run, cost_micros=700, currency="BRL"),
        row(source, run_id=run, saved_micros=350, currency="BRL", created_at=NOON - DAY),
        call(source, 1.0, run_id=run, outcome="collapsed", calls=0, saved_micros=70, currency="BRL"),
        call(uuid.uuid4(), 1.0, run_id=run, cost_micros=9, currency="BRL"),
        call(source, 1.0, run_id=run, cost_micros=9, currency="BRL", created_at=NOON - 40 * DAY),
        row(source),
    ]
    await tier.append(rows, [])
    for asked in (None, run):
        (one,) = await analytics.by_run(source, None, MARCH, asked, 100)
        assert (one.run_id, one.money) == (run, Money("BRL", 1, 700, 350, 70))


async def test_the_latest_runs_come_first_and_no_more_than_asked(tier: SqlDurable, analytics: SqlAnalytics) -> None:
    source = uuid.uuid4()
    rows = [call(source, 1.0, cost_micros=1, currency="BRL", created_at=NOON + 60 * number) for number in range(30)]
    await tier.append(random.Random(1).sample(rows, 30), [])
    found = await analytics.by_run(source, None, MARCH, None, 7)
    assert [one.run_id for one in found] == [one.run_id for one in reversed(rows)][:7]


def drawn(chance: random.Random, sources: Sequence[uuid.UUID], projects: Sequence[uuid.UUID | None]) -> RequestRow:
    outcome = chance.choice(["hit", "stale", "fetched", "collapsed", "refill", "test", "timeout", "missing_variable"])
    failed = outcome in ("timeout", "missing_variable")
    paid = chance.random() < 0.5
    return row(
        chance.choice(sources),
        project_id=chance.choice(projects),
        created_at=NOON + chance.randrange(-3, 3) * DAY + chance.random(),
        outcome=outcome,
        data_origin=None if failed else "CACHE" if outcome in ("hit", "stale") else "REQUEST",
        error=ERROR if failed else None,
        start_time=None if outcome in ("hit", "stale") else NOON,
        end_time=None if outcome in ("hit", "stale") else NOON + chance.randrange(8) / 8,
        calls=chance.choice([None, 0, 1, 3]),
        cost_micros=chance.randrange(10**6) if paid else None,
        saved_micros=chance.randrange(10**6) if paid else None,
        currency=chance.choice(["BRL", "EUR"]) if paid else None,
    )


def added_up(rows: Sequence[RequestRow]) -> dict[Any, Counter[str]]:
    sums: dict[Any, Counter[str]] = {}
    for one in rows:
        day = datetime.fromtimestamp(one.created_at, UTC).date()
        key = (one.data_source_id, str(one.project_id or ""), day, one.currency or "")
        asked = one.outcome not in ("refill", "test")
        reached = one.data_origin == "REQUEST" or bool(one.calls)
        timed = one.start_time is not None and reached and one.outcome not in ("collapsed", "test")
        saved = one.saved_micros or 0
        figures = {
            "requests": asked,
            "from_cache": asked and one.data_origin == "CACHE",
            "from_request": asked and one.data_origin == "REQUEST",
            "errors": asked and one.error is not None,
            "timed_calls": timed,
            "call_seconds": (one.end_time or 0) - (one.start_time or 0) if timed else 0,
            "calls": one.calls or 0,
            "cost_micros": one.cost_micros or 0,
            "saved_cache_micros": 0 if one.outcome == "collapsed" else saved,
            "saved_collapsed_micros": saved if one.outcome == "collapsed" else 0,
        }
        sums.setdefault(key, Counter()).update({name: value + 0 for name, value in figures.items()})
    return sums


async def told(engine: AsyncEngine, sources: Sequence[uuid.UUID]) -> dict[Any, Counter[str]]:
    kept = run_data_request_daily.c
    async with engine.connect() as connection:
        rows = await connection.execute(sa.select(run_data_request_daily).where(kept.data_source_id.in_(sources)))
        sums: dict[Any, Counter[str]] = {}
        for one in rows.mappings():
            key = (one["data_source_id"], one["project"], one["day"], one["currency"])
            sums.setdefault(key, Counter()).update({c.name: one[c.name] for c in kept if not c.primary_key})
        return sums


@pytest.mark.parametrize("seed", range(6))
async def test_the_sums_are_those_of_the_rows_whatever_comes_twice(tier: SqlDurable, engine: AsyncEngine, seed: int) -> None:
    chance = random.Random(seed)
    sources, projects = [uuid.uuid4() for _ in range(3)], [None, uuid.uuid4()]
    rows: list[RequestRow] = []
    for _ in range(12):
        fresh = [drawn(chance, sources, projects) for _ in range(chance.randrange(40))]
        again = chance.sample(rows, min(len(rows), chance.choice([0, 0, 1, 25])))
        batch = chance.sample([*fresh, *again, *fresh[:2]], len(fresh) + len(again) + len(fresh[:2]))
        await tier.append(PackedRows([pack_row(one) for one in batch]) if chance.random() < 0.5 else batch, [])
        rows += fresh
    assert await told(engine, sources) == added_up(rows)


async def test_the_sums_hold_when_batches_overlap_at_the_same_time(database: str, engine: AsyncEngine) -> None:
    chance = random.Random(7)
    sources = [uuid.uuid4() for _ in range(3)]
    rows = [drawn(chance, sources, [None]) for _ in range(120)]
    tiers = [SqlDurable(make_engine(database)) for _ in range(3)]

    async def ship(tier: SqlDurable, batch: list[RequestRow]) -> None:
        while True:  # as the journal does: what could not be written is written again
            try:
                return await tier.append(batch, [])
            except TierBroken:
                continue

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(ship(tiers[number % 3], chance.sample(rows, 80)))
        group.create_task(ship(tiers[0], rows))
    for tier in tiers:
        await tier.aclose()
    assert await told(engine, sources) == added_up(rows)


async def test_rows_of_a_refused_batch_are_in_no_sum(tier: SqlDurable, engine: AsyncEngine) -> None:
    source = uuid.uuid4()
    with pytest.raises(Exception, match="Error"):
        await tier.append([row(source), row(source, status_code=2**80)], [])
    assert await told(engine, [source]) == {}


async def test_a_row_that_names_no_source_is_in_no_sum(tier: SqlDurable, engine: AsyncEngine) -> None:
    before = await counted(engine)
    await tier.append([row(uuid.uuid4(), data_source_id=None, outcome="invalid_request") for _ in range(3)], [])
    assert await counted(engine) == before


async def counted(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(run_data_request_daily.c.requests), 0))) or 0)


async def test_a_database_without_tables_is_broken(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> None:
    sqlite = database.startswith("sqlite")
    url = f"sqlite:///{tmp_path / 'empty.sqlite3'}" if sqlite else request.getfixturevalue("postgres_server").create()
    engine = make_engine(load({}, database_url=url).database)
    with pytest.raises(TierBroken):
        await SqlAnalytics(engine).by_day(uuid.uuid4(), None, MARCH)
    with pytest.raises(TierBroken):
        await SqlAnalytics(engine).by_run(uuid.uuid4(), None, MARCH, None, 100)
    await engine.dispose()
