"""Tasks that outlive a call are held, waited for, restarted, and their exceptions heard."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from broker_edge.flow.background import Background


class Crashes:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.one = asyncio.Event()

    def __call__(self, name: str, error: BaseException) -> None:
        self.heard.append((name, repr(error)))
        self.one.set()


@pytest.fixture
def crashes() -> Crashes:
    return Crashes()


@pytest.fixture
def background(crashes: Crashes) -> Background:
    return Background(crashes)


async def failing() -> NoReturn:
    raise LookupError("gone")


async def test_work_hands_its_result_to_whoever_waits(background: Background) -> None:
    async def work() -> int:
        return 7

    task = background.spawn("work", work())
    assert task.get_name() == "work"
    assert await task == 7


async def test_the_failure_of_work_that_nobody_waits_for_is_heard(background: Background, crashes: Crashes) -> None:
    background.spawn("work", failing())
    await background.drain(10)
    assert crashes.heard == [("work", "LookupError('gone')")]


async def test_cancelled_work_is_no_failure(background: Background, crashes: Crashes) -> None:
    task = background.spawn("work", asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await background.drain(10)
    assert crashes.heard == []


async def test_draining_waits_for_work_in_hand(background: Background) -> None:
    gate, done = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        done.append(True)

    for _ in range(3):
        background.spawn("work", work())
    asyncio.get_running_loop().call_later(0.01, gate.set)
    assert await background.drain(30) == 0
    assert done == [True] * 3


async def test_draining_waits_for_what_the_work_in_hand_begins(background: Background) -> None:
    gate, done = asyncio.Event(), []

    async def last() -> None:
        await asyncio.sleep(0.001)
        done.append("last")

    async def first() -> None:
        await gate.wait()
        background.spawn("last", last())

    background.spawn("first", first())
    asyncio.get_running_loop().call_later(0.01, gate.set)
    assert await background.drain(30) == 0
    assert done == ["last"]


async def test_draining_cancels_and_counts_what_is_late(background: Background) -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    for _ in range(2):
        background.spawn("work", endless())
    await asyncio.sleep(0)
    assert await background.drain(0.01) == 2
    assert ended == ["cancelled"] * 2


async def test_there_is_nothing_to_drain_at_first(background: Background) -> None:
    assert await background.drain(0) == 0


async def test_a_loop_that_fails_starts_again_and_every_failure_is_heard(background: Background, crashes: Crashes) -> None:
    runs, third = 0, asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            third.set()
            await asyncio.Event().wait()
        await failing()

    background.supervise("loop", body, pause=0)
    async with asyncio.timeout(10):
        await third.wait()
    assert crashes.heard == [("loop", "LookupError('gone')")] * 2
    await background.stop()


async def test_a_loop_that_returns_starts_again_without_complaint(background: Background, crashes: Crashes) -> None:
    runs, third = 0, asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            third.set()

    background.supervise("loop", body, pause=0)
    async with asyncio.timeout(10):
        await third.wait()
    await background.stop()
    assert crashes.heard == []


async def test_stopping_ends_the_loops_and_leaves_the_work(background: Background) -> None:
    ended, gate = [], asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("loop")

    background.supervise("loop", loop)
    work = background.spawn("work", gate.wait())
    await asyncio.sleep(0)
    await background.stop()
    await background.stop()
    assert ended == ["loop"]
    assert not work.done()
    gate.set()
    assert await background.drain(10) == 0


async def test_draining_leaves_the_loops(background: Background) -> None:
    again = asyncio.Event()
    background.supervise("loop", again.wait, pause=0)  # type: ignore[arg-type]
    assert await background.drain(0) == 0
    again.set()
    await background.stop()


async def test_a_loop_outlives_the_failure_of_who_hears_of_its_own() -> None:
    runs, twice = 0, asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            twice.set()
        raise LookupError

    def deaf(_name: str, _error: BaseException) -> NoReturn:
        raise OSError

    background = Background(deaf)
    background.supervise("loop", body, pause=0.001)
    async with asyncio.timeout(30):
        await twice.wait()
    await background.stop()
