"""Waiting is worth it on a loop that is short of time, for those who come soon enough."""

from __future__ import annotations

import threading
import time

from broker_edge.flow.gathering import Gathering


class Clocks:
    """Seconds that go by, and those that went into work."""

    def __init__(self) -> None:
        self.now, self.used = 100.0, 7.0

    def go_on(self, seconds: float, *, working: float) -> None:
        self.now += seconds
        self.used += seconds * working


def gathering(clocks: Clocks) -> Gathering:
    return Gathering(0.01, now=lambda: clocks.now, used=lambda: clocks.used)


def pass_by(asked: Gathering, clocks: Clocks, calls: int, *, working: float, seconds: float = 1.0) -> None:
    for _ in range(calls):
        asked.came()
    clocks.go_on(seconds, working=working)


def test_as_many_as_come_within_the_patience_are_worth_waiting_for() -> None:
    asked = gathering(clocks := Clocks())
    pass_by(asked, clocks, 2000, working=0.9)
    assert [asked.worth(wanted) for wanted in (1, 20, 21, 100)] == [True, True, False, False]


def test_a_loop_that_rests_half_of_the_time_waits_for_nobody() -> None:
    asked = gathering(clocks := Clocks())
    pass_by(asked, clocks, 2000, working=0.5)
    assert not asked.worth(1)


def test_what_counts_is_the_last_window() -> None:
    asked = gathering(clocks := Clocks())
    verdicts = []
    for calls, working in ((2000, 1.0), (2000, 0.1), (2000, 0.9), (100, 0.9)):
        pass_by(asked, clocks, calls, working=working)
        verdicts.append(asked.worth(20))
    assert verdicts == [True, False, True, False]


def test_a_moment_too_short_to_tell_changes_nothing() -> None:
    asked = gathering(clocks := Clocks())
    pass_by(asked, clocks, 2000, working=1.0)
    assert asked.worth(20)
    pass_by(asked, clocks, 0, working=0.0, seconds=0.0001)
    assert asked.worth(20)
    pass_by(asked, clocks, 0, working=0.0)
    assert not asked.worth(20)


def test_nothing_is_known_in_the_beginning_and_nobody_waits() -> None:
    asked = gathering(clocks := Clocks())
    pass_by(asked, clocks, 2000, working=1.0, seconds=0.0001)
    assert not asked.worth(1)


def test_work_of_other_threads_is_not_the_loop_s() -> None:
    asked = Gathering(1000.0)
    asked.came()
    other = threading.Thread(target=spin)
    other.start()
    other.join()
    assert not asked.worth(1)


def spin() -> None:
    """Work by this thread's own clock, however often the machine interrupts it."""
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
