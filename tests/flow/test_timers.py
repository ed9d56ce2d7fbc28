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
