"""The contract of `ports.Budgets`, over SQLite and Postgres."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_budget import SqlBudgets
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.errors import TierBroken
from tests.contract.test_durable_tier import url_of

TODAY = date(2026, 11, 21)
PRICE = 2_500_000


@pytest.fixture(params=["sqlite", "postgres"])
async def budgets(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlBudgets]:
    engine = make_engine(url_of(request.param, request, tmp_path))
    await migrate(engine)
    durable = SqlDurable(engine)
    yield SqlBudgets(engine, durable.writer)
    await durable.aclose()


class Account:
    """One source's day."""

    def __init__(self, budgets: SqlBudgets, calls: int | None = None, micros: int | None = None) -> None:
        self.budgets = budgets
        self.calls, self.micros = calls, micros
        self.source, self.project, self.day = uuid.uuid4(), None, TODAY

    async def reserve(self, price: int = PRICE, *, project: str | None = None, day: date = TODAY) -> bool:
        return await self.reserve_many(1, price, project=project, day=day) == 1

    async def reserve_many(self, calls: int, price: int = PRICE, *, project: str | None = None, day: date = TODAY) -> int:
        bounds = {"most_calls": self.calls, "most_micros": self.micros}
        return await self.budgets.reserve(self.source, project, day, price, calls, **bounds)

    async def release(self, price: int = PRICE, calls: int = 1) -> None:
        await self.budgets.release(self.source, self.project, self.day, price, calls)

    async def spent(self, *, project: str | None = None, day: date = TODAY) -> tuple[int, int]:
        return await self.budgets.spent(self.source, project, day)


@pytest.mark.parametrize(
    ("calls", "micros", "granted"),
    [
        (3, None, 3),
        (None, 3 * PRICE, 3),
        (None, 3 * PRICE - 1, 2),
        (2, 3 * PRICE, 2),
        (3, 2 * PRICE, 2),
        (None, None, 5),
        (0, None, 0),
        (None, 0, 0),
        (None, PRICE - 1, 0),
        (5, 0, 0),
    ],
)
async def test_so_many_calls_are_granted_as_every_bound_allows(
    budgets: SqlBudgets, calls: int | None, micros: int | None, granted: int
) -> None:
    account = Account(budgets, calls, micros)
    assert [await account.reserve() for _ in range(5)] == [True] * granted + [False] * (5 - granted)
    assert await account.spent() == (granted, granted * PRICE)


@pytest.mark.parametrize("bounds", [{"calls": 10}, {"micros": 10 * PRICE}, {"calls": 10, "micros": 10 * PRICE}])
async def test_a_hundred_at_once_get_no_more_than_the_bound(budgets: SqlBudgets, bounds: dict[str, int]) -> None:
    account = Account(budgets, **bounds)
    answers = await asyncio.gather(*[account.reserve() for _ in range(100)])
    assert sum(answers) == 10
    assert await account.spent() == (10, 10 * PRICE)


@pytest.mark.parametrize(
    ("calls", "micros", "before", "granted"),
    [
        (10, None, 0, 7),
        (10, None, 3, 7),
        (10, None, 4, 6),
        (5, None, 0, 5),
        (None, 10 * PRICE, 4, 6),
        (None, 10 * PRICE - 1, 4, 5),
        (9, 10 * PRICE, 4, 5),
        (10, 9 * PRICE, 4, 5),
        (None, None, 4, 7),
        (4, None, 4, 0),
        (None, 4 * PRICE, 4, 0),
    ],
)
async def test_of_many_calls_as_many_are_granted_as_every_bound_allows(
    budgets: SqlBudgets, calls: int | None, micros: int | None, before: int, granted: int
) -> None:
    account = Account(budgets, calls, micros)
    if before:
        assert await account.reserve_many(before) == before
    assert await account.reserve_many(7) == granted
    assert await account.spent() == (before + granted, (before + granted) * PRICE)


@pytest.mark.parametrize("bounds", [{"calls": 150}, {"micros": 150 * PRICE}])
async def test_many_that_ask_for_many_at_once_get_the_bound_to_the_last_call(budgets: SqlBudgets, bounds: dict[str, int]) -> None:
    account = Account(budgets, **bounds)
    answers = await asyncio.gather(*[account.reserve_many(1 + number % 7) for number in range(100)])
    assert sum(answers) == 150
    assert await account.spent() == (150, 150 * PRICE)


async def test_what_many_take_and_give_back_at_once_adds_up(budgets: SqlBudgets) -> None:
    account = Account(budgets, calls=60)

    async def use(number: int) -> int:
        granted = await account.reserve_many(1 + number % 5)
        if granted > 1:
            await account.release(calls=granted - 1)
        return min(granted, 1)

    kept = sum(await asyncio.gather(*[use(number) for number in range(50)]))
    assert await account.spent() == (kept, kept * PRICE)
    assert await account.reserve_many(100) == 60 - kept


async def test_a_call_without_a_price_is_not_measured_by_the_amount_but_where_that_is_overrun(budgets: SqlBudgets) -> None:
    account = Account(budgets, micros=100)
    assert [await account.reserve_many(2, 50), await account.reserve_many(3, 0)] == [2, 3]
    account.micros = 99
    assert await account.reserve_many(3, 0) == 0


async def test_calls_of_different_prices_share_the_amount(budgets: SqlBudgets) -> None:
    account = Account(budgets, micros=100)
    assert [await account.reserve(price) for price in (60, 60, 40, 1, 0)] == [True, False, True, False, True]
    assert await account.spent() == (3, 100)


async def test_a_limit_that_was_raised_holds_at_once(budgets: SqlBudgets) -> None:
    account = Account(budgets, calls=1)
    assert [await account.reserve(), await account.reserve()] == [True, False]
    account.calls = 2
    assert [await account.reserve(), await account.reserve()] == [True, False]
    account.calls = 1
    assert not await account.reserve()


async def test_what_is_released_can_be_spent_again(budgets: SqlBudgets) -> None:
    account = Account(budgets, calls=2)
    assert [await account.reserve() for _ in range(3)] == [True, True, False]
    await account.release()
    assert await account.spent() == (1, PRICE)
    assert [await account.reserve(), await account.reserve()] == [True, False]


async def test_nothing_is_released_that_was_not_reserved(budgets: SqlBudgets) -> None:
    account = Account(budgets, calls=1)
    await account.release()
    assert await account.spent() == (0, 0)
    assert await account.reserve()
    await account.release()
    await account.release()
    assert await account.spent() == (0, 0)
    assert [await account.reserve(), await account.reserve()] == [True, False]
    await account.release(calls=2)
    assert await account.spent() == (1, PRICE)


async def test_days_projects_and_sources_have_accounts_of_their_own(budgets: SqlBudgets) -> None:
    account, project, tomorrow = Account(budgets, calls=1), str(uuid.uuid4()), TODAY + timedelta(days=1)
    assert await account.reserve()
    assert await account.reserve(project=project)
    assert await account.reserve(day=tomorrow)
    assert await Account(budgets, calls=1).reserve()
    assert not await account.reserve()
    assert not await account.reserve(project=project)
    assert not await account.reserve(day=tomorrow)
    assert await account.spent(project=str(uuid.uuid4())) == (0, 0)


async def test_a_million_calls_of_the_dearest_fit(budgets: SqlBudgets) -> None:
    account = Account(budgets)
    price = 10**15
    for _ in range(3):
        assert await account.reserve(price)
    assert await account.spent() == (3, 3 * price)


async def test_a_database_that_can_not_be_asked_is_no_yes(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite+aiosqlite:///{tmp_path / 'without-tables.sqlite3'}")
    account = Account(SqlBudgets(engine), calls=1)
    with pytest.raises(TierBroken):
        await account.reserve()
    with pytest.raises(TierBroken):
        await account.release()
    with pytest.raises(TierBroken):
        await account.spent()
    await engine.dispose()
