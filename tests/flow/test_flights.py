"""One flight: who hears what in which order, and what a deadline, a departure or a shutdown may and may not end."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from broker_edge.backends.bells import Bells, LocalBell
from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import EdgeError, RememberedStatus, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.flights import Flights
from broker_edge.ports import Lead

NET = 30  # seconds: under every wait, on a machine that may be busy
ANSWER = Fetched(Entry(uuid.uuid4(), 1000.0, b"1"), "key", "REQUEST")


class Gate:
    """A place where work waits until it is opened; `reached` says that it does."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        if is_open:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._open.wait()


class Work:
    def __init__(self, *, paying: bool = True, keeping: bool = True, error: EdgeError | None = None) -> None:
        self.paying, self.keeping = Gate(is_open=paying), Gate(is_open=keeping)
        self.error = error
        self.bought = self.kept = 0
        self.heard: list[Fetched | EdgeError] = []
        self.terms: object = None

    async def recall(self, found: Entry | None, trail: FlightTrail) -> Fetched | None:
        return ANSWER if self.kept else None

    async def reread(self, trail: FlightTrail) -> Fetched | None:
        return await self.recall(None, trail)

    async def buy(self, trail: FlightTrail, remaining: Callable[[], float]) -> int:
        self.bought += 1
        await self.paying.pass_through()
        if self.error is not None:
            raise self.error
        return self.bought

    async def keep(self, bought: int, trail: FlightTrail) -> Fetched:
        await self.keeping.pass_through()
        self.kept += 1
        return ANSWER

    def landed(self, outcome: Fetched | EdgeError) -> None:
        self.heard.append(outcome)


class Fleet:
    """One holder at a time; `settling` holds settlements back."""

    def __init__(self) -> None:
        self.settling = Gate()
        self.settled: list[bytes] = []
        self.renewals = 0
        self.renewed = asyncio.Event()
        self._bells = Bells()
        self._holders: dict[str, str] = {}
        self.refused = asyncio.Event()

    def listen(self, key: str) -> LocalBell:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        won = self._holders.setdefault(key, token) == token
        if not won:
            self.refused.set()
        return Lead(won, lease_left=0.0 if won else lease)

    async def renew(self, key: str, token: str, lease: float) -> bool:
        self.renewals += 1
        self.renewed.set()
        return True

    async def settle(self, key: str, token: str, message: bytes) -> None:
        await self.settling.pass_through()
        if self._holders.get(key) == token:
            del self._holders[key]
        self.settled.append(message)
        self._bells.strike(key, message)


class Setup:
    def __init__(self, lease: float = 10.0, fleet: Fleet | None = None) -> None:
        self.fleet = fleet or Fleet()
        self.background = Background(lambda *_: None)
        self.trails: list[FlightTrail] = []
        self.charged: list[FlightTrail] = []
        self.flights = Flights(
            self.fleet,
            self.background,
            lease=lease,
            wait=5,
            new_token=lambda: str(random.getrandbits(64)),
            on_end=self.trails.append,
            on_charge=self.charged.append,
            on_failure=lambda *_: None,
        )

    async def join(self, work: Work, patience: float = NET, key: str = "key", trail: Trail | None = None) -> Fetched:
        deadline = asyncio.get_running_loop().time() + patience
        return await self.flights.join(key, {}, deadline, trail or new_trail(), work)


def new_trail() -> Trail:
    return Trail(TraceContext(1, 2), 1000.0, lambda: random.getrandbits(64))


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    yield setup
    assert await setup.background.drain(NET) == 0


async def within_net(waiting: Any) -> Any:
    async with asyncio.timeout(NET):
        return await waiting


async def test_what_is_paid_for_when_the_deadline_strikes_is_kept_and_served(setup: Setup) -> None:
    work, trail = Work(keeping=False), new_trail()
    with pytest.raises(UpstreamError, match="did not answer"):
        await setup.join(work, 0.05, trail=trail)
    assert trail.facts[-1].result == "timeout"
    async with asyncio.TaskGroup() as group:
        next_one = group.create_task(setup.join(work))
        await asyncio.sleep(0)
        work.keeping.open()
    assert next_one.result() is ANSWER
    assert (work.bought, work.kept) == (1, 1)
    assert await setup.background.drain(NET) == 0
    assert setup.fleet.settled == [b"stored"]
    assert [trail.result for trail in setup.trails] == ["ok"]


async def test_what_is_not_paid_for_ends_with_the_deadline(setup: Setup) -> None:
    work = Work(paying=False)
    with pytest.raises(UpstreamError, match="did not answer"):
        await setup.join(work, 0.05)
    assert await setup.background.drain(NET) == 0
    assert (work.bought, work.kept) == (1, 0)
    assert [trail.result for trail in setup.trails] == ["timeout"]
    assert b"TIMEOUT" in setup.fleet.settled[0]


async def test_each_passenger_waits_until_its_own_deadline_and_the_flight_for_the_most_patient(setup: Setup) -> None:
    work = Work(paying=False)
    async with asyncio.TaskGroup() as group:
        patient = group.create_task(setup.join(work))
        await work.paying.reached.wait()
        with pytest.raises(UpstreamError):
            await setup.join(work, 0.03)
        work.paying.open()
    assert patient.result() is ANSWER
    assert work.bought == 1


async def test_a_leader_that_runs_out_of_time_leaves_the_flight_to_a_more_patient_passenger(setup: Setup) -> None:
    work = Work(paying=False)

    async def impatient() -> EdgeError:
        with pytest.raises(UpstreamError) as caught:
            await setup.join(work, 0.3)
        return caught.value

    async with asyncio.TaskGroup() as group:
        first = group.create_task(impatient())
        await work.paying.reached.wait()
        patient = group.create_task(setup.join(work))
        assert (await first).code == "TIMEOUT"
        work.paying.open()
    assert patient.result() is ANSWER
    assert work.bought == 1


async def test_a_budget_decides_for_those_who_have_the_same_alone(setup: Setup) -> None:
    spent = EdgeError("BUDGET_EXHAUSTED", "what the data source may spend in a day (UTC) is spent")
    works = [Work(paying=False, error=spent), Work(error=spent), Work()]
    for work, terms in zip(works, ("small", "small", "large"), strict=True):
        work.terms = terms
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(refused(setup, works[0]))
        await works[0].paying.reached.wait()
        same = group.create_task(refused(setup, works[1]))
        other = group.create_task(setup.join(works[2]))
        await asyncio.sleep(0)
        works[0].paying.open()
    assert (leader.result(), same.result(), other.result()) == ("BUDGET_EXHAUSTED", "BUDGET_EXHAUSTED", ANSWER)
    assert [work.bought for work in works] == [1, 0, 1]


async def refused(setup: Setup, work: Work) -> str:
    with pytest.raises(EdgeError) as caught:
        await setup.join(work)
    return caught.value.code


async def test_a_budget_of_another_instance_s_caller_does_not_decide_for_ours(setup: Setup) -> None:
    there, ours = Setup(fleet=setup.fleet), Work()
    work = Work(paying=False, error=EdgeError("BUDGET_EXHAUSTED", "what the data source may spend in a day (UTC) is spent"))
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(refused(there, work))
        await work.paying.reached.wait()
        follower = group.create_task(setup.join(ours))
        await setup.fleet.refused.wait()
        work.paying.open()
    assert (leader.result(), follower.result()) == ("BUDGET_EXHAUSTED", ANSWER)
    assert await there.background.drain(NET) == 0


async def test_a_passenger_that_leaves_takes_nobody_along(setup: Setup) -> None:
    work = Work(paying=False)
    async with asyncio.TaskGroup() as group:
        leader, follower, stays = (group.create_task(setup.join(work)) for _ in range(3))
        await work.paying.reached.wait()
        leader.cancel()
        follower.cancel()
        await asyncio.wait([leader, follower])
        work.paying.open()
    assert leader.cancelled()
    assert follower.cancelled()
    assert stays.result() is ANSWER


async def test_an_answer_is_given_before_the_fleet_is_told(setup: Setup) -> None:
    setup.fleet.settling = Gate(is_open=False)
    work = Work()
    assert await within_net(setup.join(work)) is ANSWER
    await setup.fleet.settling.reached.wait()
    assert setup.fleet.settled == []
    setup.fleet.settling.open()
    assert await setup.background.drain(NET) == 0
    assert setup.fleet.settled == [b"stored"]


async def test_a_failure_is_given_after_the_fleet_was_told(setup: Setup) -> None:
    setup.fleet.settling = Gate(is_open=False)
    work = Work(error=UpstreamError("UPSTREAM_STATUS", "the upstream answered 500", upstream_status=500))

    async def failing() -> str:
        with pytest.raises(UpstreamError) as caught:
            await setup.join(work)
        return f"{caught.value.code} after {len(setup.fleet.settled)}"

    async with asyncio.TaskGroup() as group:
        failed = group.create_task(failing())
        await setup.fleet.settling.reached.wait()
        assert not failed.done()
        setup.fleet.settling.open()
    assert failed.result() == "UPSTREAM_STATUS after 1"


async def test_the_work_hears_what_came_of_it_before_anybody_else(setup: Setup) -> None:
    setup.fleet.settling = Gate(is_open=False)
    failure = UpstreamError("UPSTREAM_STATUS", "the upstream answered 500", upstream_status=500)
    work = Work(error=failure)
    async with asyncio.TaskGroup() as group:
        waits = group.create_task(caught(setup, work, "a"))
        await setup.fleet.settling.reached.wait()
        assert (work.heard, setup.fleet.settled, waits.done()) == ([failure], [], False)
        setup.fleet.settling.open()


async def test_the_work_hears_of_its_deadline_and_of_its_success(setup: Setup) -> None:
    hung, working = Work(paying=False), Work()
    assert await caught(setup, hung, "a", patience=0.05) is not None
    assert await setup.background.drain(NET) == 0
    assert [one.code for one in hung.heard if isinstance(one, EdgeError)] == ["TIMEOUT"]
    assert await within_net(setup.join(working)) is ANSWER
    assert working.heard == [ANSWER]


async def test_what_the_hot_tier_remembers_it_tells_whoever_waits(setup: Setup) -> None:
    remembered = RememberedStatus(404, retryable=False, age=1.0, remaining=9.0)
    work = Work(paying=False, error=remembered)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caught(setup, work, name)) for name in "abc"]
        await work.paying.reached.wait()
        work.paying.open()
    assert [task.result() for task in tasks] == [remembered] * 3
    assert work.bought == 1


async def caught(setup: Setup, work: Work, secret: str, *, patience: float = NET) -> EdgeError | None:
    deadline = asyncio.get_running_loop().time() + patience
    try:
        await setup.flights.join("key", {"key": secret}, deadline, new_trail(), work)
    except EdgeError as error:
        return error
    return None


async def test_a_fleet_that_hangs_holds_nobody_beyond_its_deadline(setup: Setup) -> None:
    setup.fleet.settling = Gate(is_open=False)
    work = Work(error=UpstreamError("UPSTREAM_STATUS", "the upstream answered 500", upstream_status=500))
    with pytest.raises(UpstreamError) as caught:
        await within_net(setup.join(work, 0.05))
    assert caught.value.code == "TIMEOUT"
    setup.fleet.settling.open()


async def test_a_flight_that_is_cancelled_with_the_process_cancels_who_waits_and_tells_the_fleet(setup: Setup) -> None:
    work = Work(paying=False)
    async with asyncio.TaskGroup() as group:
        leader = group.create_task(setup.join(work))
        await work.paying.reached.wait()
        assert await setup.background.drain(0) == 1
        await asyncio.wait([leader])
    assert leader.cancelled()
    assert b"TIMEOUT" in setup.fleet.settled[0]
    assert setup.trails == []


async def test_whatever_goes_wrong_is_an_answer(setup: Setup) -> None:
    work = Work()
    work.keep = None  # type: ignore[assignment, method-assign]
    with pytest.raises(EdgeError) as caught:
        await within_net(setup.join(work))
    assert caught.value.code == "INTERNAL"


async def test_a_lease_is_renewed_while_the_work_lasts_and_no_longer() -> None:
    setup, work = Setup(lease=0.03), Work(paying=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(setup.join(work))
        for _ in range(3):
            setup.fleet.renewed.clear()
            await within_net(setup.fleet.renewed.wait())
        work.paying.open()
    assert await setup.background.drain(NET) == 0  # a renewal that went on would be left


async def test_a_miss_costs_one_task(setup: Setup) -> None:
    spawned: list[str] = []
    spawn = setup.background.spawn

    def counted(name: str, work: Any) -> Any:
        spawned.append(name)
        return spawn(name, work)

    setup.background.spawn = counted  # type: ignore[method-assign]
    assert await setup.join(Work()) is ANSWER
    assert await setup.background.drain(NET) == 0
    assert spawned == ["flight"]


# Who accounts for what was spent


class Priced(Work):
    """Work that charges the flight before it waits."""

    async def buy(self, trail: FlightTrail, remaining: Callable[[], float]) -> int:
        trail.charge(5)
        return await super().buy(trail, remaining)


def accounts(setup: Setup, *trails: Trail) -> tuple[list[int], list[int]]:
    """Calls on the rows of these requests, and on rows that flights have of their own."""
    return [trail.calls for trail in trails], [flight.calls for flight in setup.charged]


async def test_what_a_flight_spent_is_on_its_leaders_row_alone(setup: Setup) -> None:
    work, trails = Priced(paying=False), [new_trail() for _ in range(100)]
    async with asyncio.TaskGroup() as group:
        for trail in trails:
            group.create_task(setup.join(work, trail=trail))
        await within_net(work.paying.reached.wait())
        work.paying.open()
    assert accounts(setup, *trails) == ([1] + 99 * [0], [])
    assert (trails[0].cost, setup.trails[0].calls) == (5, 0)


async def test_a_leader_hears_of_a_failure_and_of_its_cost(setup: Setup) -> None:
    work, trail = Priced(error=UpstreamError("UPSTREAM_STATUS", "no", upstream_status=500)), new_trail()
    with pytest.raises(UpstreamError):
        await setup.join(work, trail=trail)
    assert accounts(setup, trail) == ([1], [])


async def test_what_was_spent_when_nobody_leads_any_more_has_a_row_of_its_own(setup: Setup) -> None:
    work, leader, follower = Priced(paying=False), new_trail(), new_trail()
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(setup.join(work, trail=leader))
        await within_net(work.paying.reached.wait())
        following = group.create_task(setup.join(work, trail=follower))
        await asyncio.sleep(0)
        leading.cancel()
        work.paying.open()
    assert following.result() is ANSWER
    assert accounts(setup, leader, follower) == ([0, 0], [1])
    assert (setup.charged[0].fetched, setup.charged[0].opener) == (ANSWER, leader)


async def test_a_leader_that_timed_out_leaves_the_cost_to_the_flight(setup: Setup) -> None:
    work, leader = Priced(keeping=False), new_trail()
    with pytest.raises(UpstreamError, match="did not answer"):
        await setup.join(work, 0.05, trail=leader)
    assert accounts(setup, leader) == ([0], [])
    work.keeping.open()
    assert await setup.background.drain(NET) == 0
    assert accounts(setup, leader) == ([0], [1])
    assert setup.charged[0].fetched is ANSWER


async def test_a_call_that_is_given_up_at_the_deadline_is_accounted_for_once(setup: Setup) -> None:
    work, leader = Priced(paying=False), new_trail()
    with pytest.raises(UpstreamError, match="did not answer"):
        await setup.join(work, 0.05, trail=leader)
    assert await setup.background.drain(NET) == 0
    requests, flights = accounts(setup, leader)
    assert sum(requests) + sum(flights) == 1


async def test_a_refill_behind_a_reply_has_a_row_of_its_own(setup: Setup) -> None:
    work, trail = Priced(), new_trail()
    setup.flights.start("key", {}, asyncio.get_running_loop().time() + NET, trail, work)
    assert await setup.background.drain(NET) == 0
    assert accounts(setup, trail) == ([0], [1])


async def test_a_flight_that_spent_nothing_has_no_row(setup: Setup) -> None:
    setup.flights.start("key", {}, asyncio.get_running_loop().time() + NET, new_trail(), Work())
    assert await setup.background.drain(NET) == 0
    assert setup.charged == []


@pytest.mark.parametrize("waits", [True, False])
async def test_what_a_shutdown_cuts_off_is_accounted_for_once(setup: Setup, waits: bool) -> None:
    work, leader = Priced(paying=False), new_trail()
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(setup.join(work, trail=leader))
        await within_net(work.paying.reached.wait())
        if not waits:
            leading.cancel()
            await asyncio.sleep(0)
        assert await setup.background.drain(0) == 1
    assert leading.cancelled()
    assert accounts(setup, leader) == (([1], []) if waits else ([0], [1]))
    if not waits:
        assert setup.charged[0].error is not None


async def test_a_leader_who_leaves_in_the_moment_of_landing_does_not_pay_too(setup: Setup) -> None:
    work, leader = Priced(keeping=False), new_trail()
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(setup.join(work, trail=leader))
        await within_net(work.keeping.reached.wait())
        work.keeping.open()
        leading.cancel()  # its task goes on only after the flight's has landed
    assert await setup.background.drain(NET) == 0
    assert accounts(setup, leader) == ([0], [1])


async def test_one_request_that_leads_twice_has_both_costs(setup: Setup) -> None:
    trail = new_trail()
    for key in ("key", "key:refresh"):
        await setup.join(Priced(), key=key, trail=trail)
    assert (trail.calls, trail.cost) == (2, 10)
