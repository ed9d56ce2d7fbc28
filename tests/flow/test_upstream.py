"""How long the engine may go on with a call: as long as anybody is likely to wait, but not where the abandoned are many."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from broker_edge.core.exchange import Outbound, Target
from broker_edge.core.source import MAX_TIMEOUT, RetryPolicy
from broker_edge.flow.upstream import Upstream
from broker_edge.guard.addresses import AddressGuard
from broker_edge.ports import RawReply
from tests.flow.doubles import record

REQUEST = Outbound("GET", "http://8.8.8.8/", (), None)
ONCE = RetryPolicy(max_retries=0)


class Resolver:
    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        return (host,)

    async def aclose(self) -> None:
        return None


class Silence:
    """A transport that never answers, and notes what time it was given."""

    def __init__(self) -> None:
        self.within: list[float] = []
        self.expected = 0
        self.arrived = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self, request: Outbound, target: Target, *, within: float) -> AsyncIterator[RawReply]:
        self.within.append(within)
        if len(self.within) == self.expected:
            self.arrived.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")
        yield

    async def aclose(self) -> None:
        return None


class Setup:
    def __init__(self) -> None:
        self.now = 1000.0
        self.transport = Silence()
        self.upstream = Upstream(
            self.transport,
            AddressGuard(Resolver()),
            max_encoded=1000,
            max_decoded=1000,
            now=lambda: self.now,
            random=lambda: 0.0,
        )

    async def abandon(self, calls: int, policy: RetryPolicy = ONCE) -> list[float]:
        """The times that calls get whose callers have a second, and leave."""
        before = len(self.transport.within)
        self.transport.expected = before + calls
        self.transport.arrived.clear()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.upstream.send(REQUEST, policy, lambda: 1.0, record())) for _ in range(calls)]
            async with asyncio.timeout(30):
                await self.transport.arrived.wait()
            for task in tasks:
                task.cancel()
        return self.transport.within[before:]


async def test_a_call_outlives_the_longest_time_out_that_anybody_had() -> None:
    setup = Setup()
    for patience in (30.0, MAX_TIMEOUT, 30.0):
        setup.upstream.expect(patience)
    assert [within > MAX_TIMEOUT for within in await setup.abandon(1)] == [True]


async def test_a_call_that_only_the_impatient_may_wait_for_does_not_last() -> None:
    setup = Setup()
    setup.upstream.expect(1.0)
    assert max(await setup.abandon(1)) < 10


async def test_an_attempt_with_a_time_out_of_its_own_keeps_that() -> None:
    assert await Setup().abandon(1, RetryPolicy(max_retries=0, attempt_timeout=3.0)) == [3.0]


async def test_while_the_abandoned_are_many_calls_get_little_more_than_their_time() -> None:
    setup = Setup()
    setup.upstream.expect(MAX_TIMEOUT)
    times = await setup.abandon(600)
    patient = sum(within > MAX_TIMEOUT for within in times)
    assert 0 < patient < 600
    assert max(await setup.abandon(50)) < 10
    setup.now += MAX_TIMEOUT / 2
    assert max(await setup.abandon(50)) < 10
    setup.now += MAX_TIMEOUT
    assert min(await setup.abandon(50)) > MAX_TIMEOUT
