"""The breaker of a cache tier: when it opens, who may probe, and that it never stays shut for good."""

from __future__ import annotations

from itertools import product

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker_edge.core.breaker import TRANSITIONS, Breaker, Event, State


def _opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, cooldown=10)
    for _ in range(3):
        breaker.record(False, now)
    return breaker


def test_it_opens_at_the_third_failure_in_a_row() -> None:
    breaker = Breaker(cooldown=10)
    for _ in range(2):
        breaker.record(False, 0)
        assert breaker.allows(0)
    breaker.record(False, 0)
    assert breaker.state is State.OPEN
    assert not breaker.allows(9.9)


def test_a_success_between_starts_the_count_again() -> None:
    breaker = Breaker(cooldown=10)
    for ok in (False, False, True, False, False):
        breaker.record(ok, 0)
    assert breaker.allows(0)


def test_after_the_cooldown_exactly_one_probe_passes() -> None:
    breaker = _opened()
    assert [breaker.allows(10) for _ in range(3)] == [True, False, False]
    assert breaker.state is State.HALF_OPEN


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = _opened()
    assert breaker.allows(10)
    breaker.record(True, 11)
    assert [breaker.allows(11) for _ in range(3)] == [True, True, True]
    breaker.record(False, 12)
    assert breaker.state is State.CLOSED


def test_a_probe_that_fails_opens_it_for_a_whole_cooldown() -> None:
    breaker = _opened()
    assert breaker.allows(10)
    breaker.record(False, 12)
    assert not breaker.allows(21.9)
    assert breaker.allows(22)


def test_a_probe_that_never_comes_back_is_followed_by_another() -> None:
    breaker = _opened()
    assert breaker.allows(10)
    assert not breaker.allows(19.9)
    assert [breaker.allows(20), breaker.allows(20)] == [True, False]


def test_results_from_before_it_opened_change_nothing() -> None:
    breaker = _opened(now=0)
    breaker.record(True, 5)
    breaker.record(False, 6)
    assert breaker.state is State.OPEN
    assert breaker.allows(10)


def test_what_the_table_leaves_out_is_what_changes_nothing() -> None:
    left_out = set(product(State, Event)) - set(TRANSITIONS)
    assert left_out == {
        (State.CLOSED, Event.SUCCEEDED),
        (State.CLOSED, Event.FAILED),
        (State.CLOSED, Event.COOLED),
        (State.OPEN, Event.SUCCEEDED),
        (State.OPEN, Event.FAILED),
        (State.OPEN, Event.TRIPPED),
    }


class BreakerMachine(RuleBasedStateMachine):
    """Any sequence of uses, results and passing time, against what the breaker promises."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(failures=3, cooldown=10)
        self.now = 0.0
        self.failures_in_a_row = 0
        self.last_pass_while_not_closed = -100.0

    @rule(seconds=st.floats(0, 25))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def use(self) -> None:
        closed = self.breaker.state is State.CLOSED
        passed = self.breaker.allows(self.now)
        assert passed or not closed
        if passed and not closed:
            assert self.now - self.last_pass_while_not_closed >= 10
            self.last_pass_while_not_closed = self.now

    @rule(ok=st.booleans())
    def result(self, ok: bool) -> None:
        before = self.breaker.state
        self.failures_in_a_row = 0 if ok else self.failures_in_a_row + 1
        self.breaker.record(ok, self.now)
        if ok and before is State.HALF_OPEN:
            assert self.breaker.state is State.CLOSED
            self.last_pass_while_not_closed = -100.0
        if before is State.CLOSED:
            assert (self.breaker.state is State.OPEN) == (self.failures_in_a_row >= 3)

    @rule()
    def a_long_wait_always_lets_one_through(self) -> None:
        self.now += 10.001
        self.use()
        assert self.breaker.state is not State.OPEN

    @invariant()
    def three_failures_in_a_row_are_never_closed(self) -> None:
        if self.failures_in_a_row >= 3:
            assert self.breaker.state is not State.CLOSED


TestBreakerMachine = BreakerMachine.TestCase
