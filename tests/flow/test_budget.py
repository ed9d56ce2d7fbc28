"""Reserving calls: what a refusal, a departure, a silent database or midnight may and may not do to the day's account."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any

import msgspec
import pytest

from broker_edge.core.money import Budget
from broker_edge.core.plan import Plan, make_plan
from broker_edge.core.source import parse_source
from broker_edge.core.trail import FlightTrail, TraceContext
from broker_edge.errors import NOT_SENT, CallerError, EdgeError, TargetDenied, TierBroken, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.budget import Purse, Purses

NET = 30  # seconds: under every wait, on a machine that may be busy
MIDNIGHT = 1_795_219_200.0  # 2026-11-21
PRICE = 2_500_000
SOURCE = uuid.uuid4()


class Accounts:
    """One account; `gate` holds its answers back."""

    def __init__(self) -> None:
        self.calls = self.asked = self.under_way = self.most_at_once = 0
        self.days: list[date] = []
        self.sizes: list[int] = []
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached, self.all_there = asyncio.Event(), asyncio.Event()  # one, and five at once
        self.granted = asyncio.Event()
        self.returning = asyncio.Event()
        self.returning.set()

    async def reserve(
        self,
        _source: uuid.UUID,
        _project: str | None,
        day: date,
        _micros: int,
        asked: int,
        *,
        most_calls: int | None,
        most_micros: int | None,
    ) -> int:
        self.asked += 1
        self.sizes.append(asked)
        self.days.append(day)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        self.reached.set()
        if self.under_way == 5:
            self.all_there.set()
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.broken:
            raise TierBroken("the database can't be reached")
        granted = asked if most_calls is None else max(0, min(asked, most_calls - self.calls))
        self.calls += granted
        if granted:
            self.granted.set()
        return granted

    async def release(self, _source: uuid.UUID, _project: str | None, _day: date, _micros: int, calls: int) -> None:
        await self.returning.wait()
        self.calls -= calls

    async def spent(self, _source: uuid.UUID, _project: str | None, _day: date) -> tuple[int, int]:
        return self.calls, self.calls * PRICE


class Setup:
    def __init__(self) -> None:
        self.crashes: list[str] = []
        self.background = Background(lambda name, _: self.crashes.append(name))
        self.accounts = Accounts()
        self.now = MIDNIGHT + 3600
        self.clock = 0.0
        self.record = FlightTrail(TraceContext(1, 2), 1000.0, lambda: 3)
        self.purses = self.over(30.0)

    def over(self, within: float) -> Purses:
        return Purses(self.accounts, self.background, within=within, now=lambda: self.now, monotonic=lambda: self.clock)

    def purse(self, calls: int | None = 1, source_id: uuid.UUID = SOURCE) -> Purse:
        purse = self.purses.of(plan(None if calls is None else {"calls": calls}, source_id), self.record)
        assert purse is not None
        return purse


def plan(budget: dict[str, Any] | None, source_id: uuid.UUID = SOURCE, *, price: str | None = "2.50") -> Plan:
    wire = {"data_source_id": source_id, "name": "sample", "source": {"url": "http://bureau.test/"}}
    return make_plan(parse_source(msgspec.json.encode({**wire, "cost_per_call": price, "budget": budget})), {}, {})


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    yield setup
    setup.accounts.gate.set()
    setup.accounts.returning.set()
    assert await setup.background.drain(NET) == 0
    assert setup.crashes == []


async def call(purse: Purse, ending: Callable[[], None] = lambda: None, *, sending: bool = True) -> None:
    """One attempt, which ends as `ending` does."""
    async with purse.paying():
        if not sending:
            ending()
            return
        with purse.sending():
            ending()


def failing(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


async def refused(purse: Purse) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        await call(purse)
    return caught.value


async def drained(setup: Setup) -> int:
    assert await setup.background.drain(NET) == 0
    return setup.accounts.calls


async def test_who_has_neither_price_nor_budget_has_no_purse(setup: Setup) -> None:
    assert setup.purses.of(plan(None, price=None), setup.record) is None


async def test_a_price_alone_needs_no_account(setup: Setup) -> None:
    setup.accounts.broken = True
    await call(setup.purse(None))
    assert (setup.record.calls, setup.record.cost, setup.accounts.asked) == (1, PRICE, 0)


async def test_a_budget_of_calls_needs_no_price(setup: Setup) -> None:
    purse = setup.purses.of(plan({"calls": 1}, price=None), setup.record)
    assert purse is not None
    await call(purse)
    assert (setup.record.calls, setup.record.cost, setup.accounts.calls) == (1, 0, 1)


def waiting_for_its_turn() -> asyncio.CancelledError:
    error = asyncio.CancelledError()
    error.add_note(NOT_SENT)
    return error


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (UpstreamError("CONNECT_ERROR", "no", sent=False), False),
        (UpstreamError("CONNECT_ERROR", "no", sent=True), True),
        (UpstreamError("TIMEOUT", "no"), True),
        (UpstreamError("UPSTREAM_STATUS", "no", upstream_status=500), True),
        (TargetDenied("no"), False),
        (CallerError("INVALID_VALUE", "no"), False),
        (EdgeError("INTERNAL", "no"), True),
        (RuntimeError("no"), True),
        (asyncio.CancelledError(), True),
        (waiting_for_its_turn(), False),
    ],
)
async def test_a_call_is_given_back_only_where_certainly_nothing_was_sent(setup: Setup, error: BaseException, kept: bool) -> None:
    with pytest.raises(type(error)):
        await call(setup.purse(), failing(error))
    assert await drained(setup) == kept
    assert (setup.record.calls, setup.record.cost) == (kept, kept * PRICE)


@pytest.mark.parametrize("error", [UpstreamError("DNS_ERROR", "no"), TargetDenied("no"), asyncio.CancelledError()])
async def test_what_ends_before_anything_is_handed_over_costs_nothing(setup: Setup, error: BaseException) -> None:
    with pytest.raises(type(error)):
        await call(setup.purse(), failing(error), sending=False)
    assert await drained(setup) == 0
    assert (setup.record.calls, setup.record.cost) == (0, 0)


async def test_a_retry_waits_for_what_its_first_try_gives_back(setup: Setup) -> None:
    purse = setup.purse()
    setup.accounts.returning.clear()
    with pytest.raises(UpstreamError):
        await call(purse, failing(UpstreamError("CONNECT_ERROR", "no", sent=False)))
    async with asyncio.TaskGroup() as group:
        again = group.create_task(call(purse))
        await asyncio.sleep(0)
        assert setup.accounts.asked == 1
        setup.accounts.returning.set()
    assert again.done()
    assert (setup.accounts.asked, setup.accounts.calls, setup.record.calls) == (2, 1, 1)


async def test_who_leaves_while_the_account_is_asked_gets_the_call_back(setup: Setup) -> None:
    setup.accounts.gate.clear()
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(call(setup.purse()))
        await setup.accounts.reached.wait()
        leaving.cancel()
    assert leaving.cancelled()
    assert (setup.record.calls, setup.accounts.calls) == (0, 0)
    setup.accounts.gate.set()
    assert await drained(setup) == 0
    assert setup.accounts.asked == 1


async def test_who_leaves_while_the_account_refuses_gives_nothing_back(setup: Setup) -> None:
    setup.accounts.calls = 1
    setup.accounts.gate.clear()
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(call(setup.purse()))
        await setup.accounts.reached.wait()
        leaving.cancel()
        setup.accounts.gate.set()
    assert leaving.cancelled()
    assert await drained(setup) == 1


async def test_while_one_asks_the_others_of_its_source_wait(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(refused(setup.purse(0))) for _ in range(50)]
    assert {task.result().code for task in tasks} == {"BUDGET_EXHAUSTED"}
    assert (setup.accounts.asked, setup.accounts.most_at_once) == (1, 1)


async def queued(setup: Setup, group: asyncio.TaskGroup, purses: list[Purse]) -> list[asyncio.Task[str]]:
    """The first asks, and the others come while it waits for the answer, which the test holds back."""
    setup.accounts.gate.clear()
    first = group.create_task(outcome(purses[0]))
    await setup.accounts.reached.wait()
    others = [group.create_task(outcome(purse)) for purse in purses[1:]]
    await asyncio.sleep(0)
    return [first, *others]


async def outcome(purse: Purse) -> str:
    try:
        await call(purse)
    except EdgeError as error:
        return error.code
    return "ok"


async def test_whoever_came_while_one_asked_is_asked_for_in_one_go(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = await queued(setup, group, [setup.purse(100) for _ in range(50)])
        setup.accounts.gate.set()
    assert [task.result() for task in tasks] == ["ok"] * 50
    assert (setup.accounts.sizes, setup.accounts.most_at_once) == ([1, 49], 1)
    assert (setup.record.calls, setup.accounts.calls) == (50, 50)


async def test_of_those_who_are_asked_for_together_the_first_get_what_is_left(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = await queued(setup, group, [setup.purse(5) for _ in range(20)])
        setup.accounts.gate.set()
    assert [task.result() for task in tasks] == ["ok"] * 5 + ["BUDGET_EXHAUSTED"] * 15
    assert (setup.accounts.sizes, setup.accounts.calls) == ([1, 19], 5)


async def test_who_leaves_the_line_leaves_its_call_to_the_next(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        leaving, *others = await queued(setup, group, [setup.purse() for _ in range(3)])
        leaving.cancel()
        await asyncio.wait([leaving])
        setup.accounts.gate.set()
    assert [task.result() for task in others] == ["ok", "BUDGET_EXHAUSTED"]
    assert (setup.accounts.sizes, await drained(setup)) == ([1, 1], 1)


async def test_who_left_before_its_turn_is_not_asked_for(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        first, *leaving = await queued(setup, group, [setup.purse(9) for _ in range(3)])
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        setup.accounts.gate.set()
    assert first.result() == "ok"
    assert (setup.accounts.sizes, await drained(setup)) == ([1], 1)


async def test_of_those_who_are_asked_for_together_the_calls_of_those_who_leave_are_given_back(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = await queued(setup, group, [setup.purse(9) for _ in range(5)])
        setup.accounts.reached.clear()
        setup.accounts.gate.set()
        setup.accounts.gate = asyncio.Event()
        async with asyncio.timeout(NET):
            await setup.accounts.reached.wait()
        for task in tasks[2:]:
            task.cancel()
        await asyncio.wait(tasks[2:])
        setup.accounts.gate.set()
    assert (setup.accounts.sizes, await drained(setup), setup.record.calls) == ([1, 4], 2, 2)


async def test_who_leaves_in_the_moment_of_the_grant_gives_it_back(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(call(setup.purse()))
        await setup.accounts.granted.wait()  # which goes on before it: it has its word then, and not heard it
        assert setup.accounts.calls == 1
        leaving.cancel()
    assert leaving.cancelled()
    assert (await drained(setup), setup.record.calls) == (0, 0)


async def test_callers_with_other_budgets_are_asked_for_by_themselves(setup: Setup) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = await queued(setup, group, [setup.purse(calls) for calls in (9, 1, 9, 1, 9)])
        setup.accounts.gate.set()
    assert [task.result() for task in tasks] == ["ok", "BUDGET_EXHAUSTED", "ok", "BUDGET_EXHAUSTED", "ok"]
    assert (setup.accounts.sizes, setup.accounts.most_at_once) == ([1, 2, 2], 1)


async def test_sources_do_not_wait_for_each_other(setup: Setup) -> None:
    setup.accounts.gate.clear()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(call(setup.purse(5, uuid.UUID(int=number))))
        async with asyncio.timeout(NET):
            await setup.accounts.all_there.wait()
        setup.accounts.gate.set()


async def test_a_refusal_is_remembered_for_a_second(setup: Setup) -> None:
    await call(setup.purse())
    for clock, asked in ((0.0, 2), (0.99, 2), (1.0, 3), (1.5, 3)):
        setup.clock = clock
        assert (await refused(setup.purse())).code == "BUDGET_EXHAUSTED"
        assert setup.accounts.asked == asked


async def test_another_limit_is_asked_for_at_once(setup: Setup) -> None:
    await call(setup.purse())
    await refused(setup.purse())
    await call(setup.purse(2))
    assert setup.accounts.calls == 2


async def test_another_day_is_asked_for_at_once(setup: Setup) -> None:
    setup.now = MIDNIGHT - 0.5
    error = await refused(setup.purse(0))
    assert error.retry_after == 0.5
    setup.now = MIDNIGHT
    error = await refused(setup.purse(0))
    assert error.retry_after == 86_400
    assert setup.accounts.days == [date(2026, 11, 20), date(2026, 11, 21)]


async def test_what_is_given_back_can_be_spent_at_once(setup: Setup) -> None:
    first = setup.purse()
    async with first.paying():
        await refused(setup.purse())
    assert await drained(setup) == 0
    await call(setup.purse())
    assert setup.accounts.calls == 1


async def test_refusals_are_remembered_within_bounds(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_edge.flow.budget._MOST", 3)
    for number in range(10):
        await refused(setup.purse(0, uuid.UUID(int=number)))
    assert len(setup.purses._exhausted) <= 3
    gc.collect()  # what was raised holds the frames that it passed
    assert len(setup.purses._lines) == 0


@pytest.mark.parametrize("silent", [False, True])
async def test_an_account_that_can_not_be_asked_stops_the_call_and_is_asked_again(setup: Setup, silent: bool) -> None:
    setup.accounts.broken = True
    if silent:
        setup.purses = setup.over(0.01)
        setup.accounts.gate.clear()
    error = await refused(setup.purse())
    assert (error.code, error.retryable, error.retry_after) == ("STORAGE_UNAVAILABLE", True, 1.0)
    assert setup.record.calls == 0
    setup.accounts.broken = False
    setup.accounts.gate.set()
    await call(setup.purse())


async def test_while_the_account_is_silent_everybody_in_line_waits_for_the_same_answer(setup: Setup) -> None:
    setup.accounts.broken = True
    async with asyncio.TaskGroup() as group:
        tasks = await queued(setup, group, [setup.purse(calls) for calls in (9, 9, 5)])
        setup.accounts.gate.set()
    assert [task.result() for task in tasks] == ["STORAGE_UNAVAILABLE"] * 3
    assert setup.accounts.asked == 1


async def test_a_database_that_is_silent_again_and_again_is_left_alone_for_a_second(setup: Setup) -> None:
    setup.accounts.broken = True
    for number in range(6):
        assert await outcome(setup.purse(1, uuid.UUID(int=number))) == "STORAGE_UNAVAILABLE"
    assert setup.accounts.asked == 3
    setup.clock = 1.0
    async with asyncio.TaskGroup() as group:
        probe, *others = await queued(setup, group, [setup.purse(9) for _ in range(5)])
        await asyncio.wait(others)  # while the probe still waits
        assert not probe.done()
        setup.accounts.broken = False
        setup.accounts.gate.set()
    assert probe.result() == "ok"
    assert {task.result() for task in others} == {"STORAGE_UNAVAILABLE"}
    assert await outcome(setup.purse(9)) == "ok"
    assert setup.accounts.calls == 2


def test_budgets_tell_refusals_apart() -> None:
    assert hash(Budget(1, None)) != hash(Budget(None, 1))
