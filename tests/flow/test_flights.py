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
from broker_edge.errors import EdgeError, UpstreamError
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


class Fleet:
    """One holder at a time; `settling` holds settlements back."""

    def __init__(self) -> None:
        self.settling = Gate()
        self.settled: list[bytes] = []
        self.renewals = 0
        self.renewed = asyncio.Event()
        self._bells = Bells()
        self._holders: dict[str, str] = {}

    def listen(self, key: str) -> LocalBell:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        won = self._holders.setdefault(key, token) == token
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
    def __init__(self, lease: float = 10.0) -> None:
        self.fleet = Fleet()
        self.background = Background(lambda *_: None)
        self.trails: list[FlightTrail] = []
        self.flights = Flights(
            self.fleet,
            self.background,
            lease=lease,
            wait=5,
            new_token=lambda: str(random.getrandbits(64)),
            on_end=self.trails.append,
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
