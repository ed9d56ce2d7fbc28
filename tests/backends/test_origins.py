"""Places at an origin: who waits, in which order, what is given up, without a socket."""

from __future__ import annotations

import asyncio

import pytest

from broker_edge.backends.origins import UNUSED_SECONDS, Origins
from broker_edge.core.exchange import Target

TARGET = Target("http", "bureau.test", 80, "8.8.8.8")


class Kept:
    """Origins whose entries are their addresses, with what was closed and a clock."""

    def __init__(self, limit: int = 10, most: int = 2) -> None:
        self.closed: list[str] = []
        self.at = 0.0
        self.origins = Origins(lambda target: target.address, self._close, limit, most, now=lambda: self.at)

    async def _close(self, name: str) -> None:
        self.closed.append(name)
        await asyncio.sleep(0)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_places_are_handed_over_in_the_order_of_asking() -> None:
    origins, order = Kept().origins, []
    held = [await origins.take(TARGET) for _ in range(2)]

    async def visit(number: int) -> None:
        async with origins.lease(TARGET):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(visit(number))
        await turns()
        assert not order
        for one in held:
            one.leave()
    assert order == list(range(20))
    assert held[0].users == 0


@pytest.mark.parametrize("leave_first", [True, False])
async def test_whoever_gives_up_waiting_costs_nobody_a_place(leave_first: bool) -> None:
    origins = Kept(most=1).origins
    held = await origins.take(TARGET)
    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(origins.take(TARGET)) for _ in range(2))
        await turns()
        for step in (held.leave, first.cancel) if leave_first else (first.cancel, held.leave):
            step()
        await turns()
        assert first.cancelled()
        assert second.done()
    assert (held.users, len(held.waiting)) == (1, 0)
    second.result().leave()
    assert held.users == 0


async def test_an_address_that_is_no_longer_used_is_given_up_once_idle() -> None:
    kept = Kept()
    old, new = (Target("http", "bureau.test", 80, address) for address in ("8.8.8.8", "1.1.1.1"))
    busy = await kept.origins.take(old)
    for kept.at in range(0, int(3 * UNUSED_SECONDS), 20):
        async with kept.origins.lease(new):
            assert not kept.closed
    busy.leave()
    kept.at += UNUSED_SECONDS / 2
    async with kept.origins.lease(new):
        pass
    assert (kept.closed, len(kept.origins)) == (["8.8.8.8"], 1)


async def test_nobody_is_given_an_entry_that_is_being_closed() -> None:
    closed: list[object] = []

    async def close(value: object) -> None:
        closed.append(value)
        await asyncio.sleep(0)

    origins: Origins[object] = Origins(lambda _: object(), close, 1)
    names = [Target("http", "bureau.test", 80, f"8.8.8.{number}") for number in range(4)]
    for lease in [await origins.take(name) for name in names[:3]]:
        lease.leave()
    async with asyncio.TaskGroup() as group:
        taking = [group.create_task(origins.take(name)) for name in (names[3], names[2], names[1])]
    assert closed
    assert all(task.result().value not in closed for task in taking)
