"""Calls share flushes, and nothing that befalls one of them befalls another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.batching import Batcher
from broker_edge.flow.gathering import Gathering


class Backend:
    """Answers twice the number; `gate` holds flushes back, `at_once` is the most of them that ever ran together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self._running = 0
        self.begun = asyncio.Event()

    async def flush(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.batches.append(list(items))
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        self.begun.set()
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self._running -= 1
        if -1 in items:
            raise LookupError("all of them")
        return [ValueError(item) if item % 10 == 9 else item * 2 for item in items]


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    crashes: list[str] = []
    background = Background(lambda name, _: crashes.append(name))
    yield background
    await background.drain(10)
    assert crashes == []


@pytest.fixture
def backend() -> Backend:
    return Backend()


def batcher(backend: Backend, background: Background, lanes: int = 1, most: int = 256) -> Batcher[int, int]:
    return Batcher("numbers", backend.flush, background, lanes=lanes, most=most)


async def all_of(calls: Sequence[asyncio.Future[int]]) -> list[int | BaseException]:
    async with asyncio.timeout(10):
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_of_one_tick_share_a_flush(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background, lanes=4)
    answers = await all_of([calls.call(number) for number in range(8)])
    assert answers == [number * 2 for number in range(8)]
    assert backend.batches == [list(range(8))]


async def test_calls_of_many_tasks_in_one_tick_share_a_flush(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background, lanes=4)

    async def ask(number: int) -> int:
        return await calls.call(number)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(number)) for number in range(8)]
    assert [task.result() for task in tasks] == [number * 2 for number in range(8)]
    assert backend.batches == [list(range(8))]


async def test_a_lone_call_waits_for_nothing(backend: Backend, background: Background) -> None:
    assert await batcher(backend, background).call(4) == 8
    assert backend.batches == [[4]]


async def test_calls_that_come_during_a_flush_share_the_next_one(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    backend.gate.clear()
    first = calls.call(1)
    await backend.begun.wait()
    later = []
    for number in (2, 3, 4):
        later.append(calls.call(number))
        await asyncio.sleep(0)
    backend.gate.set()
    assert await all_of([first, *later]) == [2, 4, 6, 8]
    assert backend.batches == [[1], [2, 3, 4]]


async def test_a_free_lane_takes_the_next_tick_s_calls_at_once(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background, lanes=2)
    backend.gate.clear()
    answers = []
    for number in range(5):
        answers.append(calls.call(number))
        await backend.begun.wait()
        backend.begun.clear() if number == 0 else None
        await asyncio.sleep(0)
    assert backend.batches == [[0], [1]]
    backend.gate.set()
    assert await all_of(answers) == [0, 2, 4, 6, 8]
    assert backend.batches[2:] == [[2, 3, 4]]


@pytest.mark.parametrize("lanes", [1, 3])
async def test_never_more_flushes_at_once_than_lanes_nor_items_than_most(
    backend: Backend, background: Background, lanes: int
) -> None:
    calls = batcher(backend, background, lanes=lanes, most=8)
    answers = await all_of([calls.call(number * 10) for number in range(100)])
    assert answers == [number * 20 for number in range(100)]
    assert backend.at_once == lanes
    assert [len(batch) for batch in backend.batches] == [8] * 12 + [4]


async def test_an_exception_among_the_answers_is_one_item_s_own(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    answers = await all_of([calls.call(number) for number in (8, 9, 10)])
    assert [answers[0], answers[2]] == [16, 20]
    assert isinstance(answers[1], ValueError)


async def test_a_flush_that_fails_fails_its_items_and_no_others(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    backend.gate.clear()
    failing = [calls.call(-1), calls.call(1)]
    await backend.begun.wait()
    later = calls.call(2)
    backend.gate.set()
    answers = await all_of([*failing, later])
    assert [type(answer) for answer in answers] == [LookupError, LookupError, int]
    assert await calls.call(3) == 6


async def test_callers_that_leave_disturb_nobody(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    backend.gate.clear()
    first = [calls.call(number) for number in range(4)]
    await backend.begun.wait()
    second = [calls.call(number) for number in range(10, 14)]
    for answer in (first[0], first[2], second[1], second[3]):
        answer.cancel()
    backend.gate.set()
    answers = await all_of([*first, *second])
    assert [answer for answer in answers if isinstance(answer, int)] == [2, 6, 20, 24]


async def test_nobody_waits_and_yet_the_next_call_is_answered(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    for number in (-1, 9, 1):
        calls.call(number).cancel()
        await asyncio.sleep(0)
    assert await calls.call(5) == 10


async def test_a_flush_that_is_cancelled_frees_its_lane(backend: Backend, background: Background) -> None:
    calls = batcher(backend, background)
    backend.gate.clear()
    doomed = calls.call(1)
    await backend.begun.wait()
    assert await background.drain(0) == 1
    assert doomed.cancelled()
    backend.gate.set()
    assert await calls.call(2) == 4


async def test_a_flush_that_answers_too_little_leaves_nobody_waiting(background: Background) -> None:
    async def flush(items: Sequence[int]) -> Sequence[int]:
        return [1] if len(items) > 1 else [7]

    calls: Batcher[int, int] = Batcher("numbers", flush, background)
    answers = await all_of([calls.call(1), calls.call(2)])
    assert all(isinstance(answer, ValueError) for answer in answers)
    assert await calls.call(3) == 7


async def test_a_call_that_is_not_answered_in_time_is_given_up_and_no_other(backend: Backend, background: Background) -> None:
    calls: Batcher[int, int] = Batcher("numbers", backend.flush, background, within=0.03)
    backend.gate.clear()
    first, queued = calls.call(1), calls.call(2)
    for answer in await all_of([first, queued]):
        assert isinstance(answer, TierBroken)
    later = calls.call(3)
    backend.gate.set()
    assert await all_of([later]) == [6]


async def test_calls_that_wait_for_a_lane_are_given_up_too(backend: Backend, background: Background) -> None:
    calls: Batcher[int, int] = Batcher("numbers", backend.flush, background, within=0.03)
    backend.gate.clear()
    first = calls.call(1)
    await backend.begun.wait()
    queued = calls.call(2)
    assert [type(answer) for answer in await all_of([first, queued])] == [TierBroken] * 2
    backend.gate.set()
    assert await calls.call(3) == 6
    assert backend.batches == [[1], [3]]


async def test_what_is_answered_is_not_kept_for_its_time_limit(backend: Backend, background: Background) -> None:
    calls: Batcher[int, int] = Batcher("numbers", backend.flush, background, within=1000)
    for number in range(10):
        assert await calls.call(number * 10) == number * 20
    assert len(calls._due) == 1


class Told(Gathering):
    """Says that it is worth waiting, or that it is not."""

    def __init__(self, patience: float, worth: bool) -> None:
        super().__init__(patience)
        self.answer = worth

    def worth(self, wanted: int) -> bool:
        return self.answer


class Crowd:
    """Work in hand beside the batches."""

    def __init__(self, background: Background, count: int) -> None:
        self._leave = asyncio.Event()
        self._tasks = [background.spawn("crowd", self._stay()) for _ in range(count)]

    async def _stay(self) -> None:
        await self._leave.wait()

    async def gone(self) -> None:
        self._leave.set()
        await asyncio.gather(*self._tasks)


def patient(
    backend: Backend, background: Background, worth: bool = True, patience: float = 1e6, most: int = 256
) -> Batcher[int, int]:
    return Batcher("numbers", backend.flush, background, most=most, gathering=Told(patience, worth))


async def ticks(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_batch_waits_for_half_of_the_work_in_hand(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 8), patient(backend, background)
    answers = []
    for number in range(4):
        await ticks()
        assert backend.batches == []
        answers.append(calls.call(number))
    assert await all_of(answers) == [0, 2, 4, 6]
    assert backend.batches == [[0, 1, 2, 3]]
    await crowd.gone()


async def test_a_batch_that_waits_takes_the_rest_of_the_tick_in_which_it_is_enough(
    backend: Backend, background: Background
) -> None:
    crowd, calls = Crowd(background, 8), patient(backend, background)
    assert await all_of([calls.call(number) for number in range(7)]) == [number * 2 for number in range(7)]
    assert backend.batches == [list(range(7))]
    await crowd.gone()


async def test_a_batch_waits_no_longer_than_its_patience(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 8), patient(backend, background, patience=0.01)
    assert await all_of([calls.call(1)]) == [2]
    await crowd.gone()


async def test_a_full_batch_waits_for_nothing(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 100), patient(backend, background, most=2)
    assert await all_of([calls.call(1), calls.call(2)]) == [2, 4]
    await crowd.gone()


async def test_a_batch_that_would_gain_nothing_waits_for_nothing(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 8), patient(backend, background, worth=False)
    assert await all_of([calls.call(1)]) == [2]
    await crowd.gone()


async def test_a_lone_call_waits_for_nothing_even_so(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 1), patient(backend, background)
    assert await all_of([calls.call(1)]) == [2]
    await crowd.gone()


async def test_what_waited_for_a_lane_gathers_too(backend: Backend, background: Background) -> None:
    crowd, calls = Crowd(background, 8), patient(backend, background)
    backend.gate.clear()
    first = [calls.call(number) for number in range(4)]
    await backend.begun.wait()
    later = [calls.call(10)]
    backend.gate.set()
    assert await all_of(first) == [0, 2, 4, 6]
    await ticks()
    assert len(backend.batches) == 1
    later += [calls.call(number) for number in (11, 12, 13)]
    assert await all_of(later) == [20, 22, 24, 26]
    assert backend.batches == [[0, 1, 2, 3], [10, 11, 12, 13]]
    await crowd.gone()
