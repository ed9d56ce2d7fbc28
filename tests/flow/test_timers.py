"""The wheel calls what is due: never early, in order, and never what was called off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker_edge.flow.timers import TimingWheel

AGES = 10_000.0  # seconds: further away than any test runs


def now() -> float:
    return asyncio.get_running_loop().time()


async def rung(bell: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await bell.wait()


async def test_an_alarm_is_never_early() -> None:
    wheel, bell, rings = TimingWheel(), asyncio.Event(), list[float]()
    whens = [now() + step / 997 for step in range(50)]

    def ring(when: float) -> Callable[[], None]:
        def call() -> None:
            rings.append(now() - when)
            if len(rings) == len(whens):
                bell.set()

        return call

    for when in whens:
        wheel.at(when, ring(when))
    await rung(bell)
    assert min(rings) >= 0


async def test_alarms_go_off_in_the_order_of_their_times() -> None:
    wheel, bell, order = TimingWheel(), asyncio.Event(), list[str]()
    begin = now()
    wheel.at(begin + 0.03, bell.set)
    wheel.at(begin + 0.02, lambda: order.append("third"))
    wheel.at(begin - AGES, lambda: order.append("first"))
    wheel.at(begin + 0.01, lambda: order.append("second"))
    await rung(bell)
    assert order == ["first", "second", "third"]


async def test_a_nearer_alarm_does_not_wait_for_one_far_away() -> None:
    wheel, bell = TimingWheel(), asyncio.Event()
    wheel.at(now() + AGES, lambda: None)
    wheel.at(now(), bell.set)
    await rung(bell)


async def test_what_is_called_off_stays_silent() -> None:
    wheel, bell, rings = TimingWheel(), asyncio.Event(), list[int]()
    alarms = [wheel.at(now() + 0.001 * number, lambda number=number: rings.append(number)) for number in range(10)]  # type: ignore[misc]
    for alarm in alarms[::2]:
        wheel.off(alarm)
        wheel.off(alarm)
    wheel.at(now() + 0.02, bell.set)
    await rung(bell)
    assert rings == [1, 3, 5, 7, 9]
    for alarm in alarms:
        wheel.off(alarm)


async def test_an_alarm_may_call_off_one_of_the_same_moment() -> None:
    wheel, bell, rings = TimingWheel(grain=0.05), asyncio.Event(), list[str]()
    when = now() + 0.01
    wheel.at(when, lambda: wheel.off(second))
    second = wheel.at(when, lambda: rings.append("second"))
    wheel.at(when, bell.set)
    await rung(bell)
    assert rings == []


async def test_an_alarm_may_set_another() -> None:
    wheel, bell = TimingWheel(), asyncio.Event()

    def another() -> None:
        wheel.at(now() + 0.002, bell.set)

    wheel.at(now(), another)
    await rung(bell)


async def test_alarms_that_are_called_off_leave_nothing_behind_and_need_no_timer_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_timers: list[float] = []
    call_at = asyncio.get_running_loop().call_at

    def counted(when: float, *rest: Any) -> asyncio.TimerHandle:
        set_timers.append(when)
        return call_at(when, *rest)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", counted)
    wheel = TimingWheel()
    for number in range(1000):
        wheel.off(wheel.at(now() + AGES + number, lambda: None))
    assert len(set_timers) == 1
    assert wheel._slots == {}


async def test_an_alarm_that_sets_a_later_one_delays_no_other() -> None:
    wheel, bell = TimingWheel(), asyncio.Event()
    begin = now()
    wheel.at(begin, lambda: wheel.at(begin + AGES, lambda: None) and None)
    wheel.at(begin + 0.005, bell.set)
    await rung(bell)


async def test_an_alarm_set_anew_for_its_own_moment_goes_off_too() -> None:
    wheel, bell, rings = TimingWheel(), asyncio.Event(), list[str]()
    when = now()

    def first() -> None:
        rings.append("first")
        wheel.at(when, second)

    def second() -> None:
        rings.append("second")
        wheel.off(wheel.at(when, bell.set))
        wheel.at(when, bell.set)

    wheel.at(when, first)
    await rung(bell)
    assert rings == ["first", "second"]


async def test_an_alarm_that_raises_costs_the_others_nothing() -> None:
    wheel, bell, complaints = TimingWheel(), asyncio.Event(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    when, rings = now(), list[str]()
    wheel.at(when, lambda: [].remove(1))  # type: ignore[var-annotated, func-returns-value]
    wheel.at(when, lambda: rings.append("same moment"))
    wheel.at(when + 0.005, bell.set)
    await rung(bell)
    assert rings == ["same moment"]
    assert [type(one) for one in complaints] == [ValueError]


async def test_a_turn_looks_at_what_is_due_and_not_at_what_is_far_away() -> None:
    def cost(far_away: int) -> int:
        """Slots that the turns of a hundred moments look at."""
        wheel, looks = TimingWheel(), 0

        class Counted(dict[int, Any]):
            def __iter__(self) -> Any:
                nonlocal looks
                looks += len(self)
                return super().__iter__()

            def get(self, key: int, default: Any = None) -> Any:
                nonlocal looks
                looks += 1
                return super().get(key, default)

        for number in range(far_away):
            wheel.at(now() + AGES + number, lambda: None)
        slots = wheel._slots = Counted(wheel._slots)
        for _ in range(100):
            wheel.at(now() - 1, lambda: None)
            wheel._turn()
        assert len(slots) == far_away
        return looks

    assert cost(far_away=20_000) <= 2 * cost(far_away=10)


async def test_what_is_called_off_is_forgotten_long_before_its_time() -> None:
    wheel = TimingWheel()
    for number in range(100_000):
        wheel.off(wheel.at(now() + AGES + number, lambda: None))
    assert len(wheel._order) < 2000
