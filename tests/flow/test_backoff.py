"""Which keys are left alone, by an injected clock and dice; and that what is remembered of them stays bounded."""

from __future__ import annotations

from broker_edge.flow.backoff import Backoff


class Setup:
    def __init__(self, most: int = 10) -> None:
        self.now = 0.0
        self.backoff = Backoff(most, now=lambda: self.now, random=lambda: 1.0)


def test_a_key_that_never_failed_is_not_held() -> None:
    backoff = Setup().backoff
    assert not backoff.holds("a")
    assert backoff.lets("a")
    assert backoff.held_back == 0


def test_a_key_is_left_alone_until_its_pause_ends() -> None:
    setup = Setup()
    setup.backoff.failed("a", None)
    assert setup.backoff.holds("a")
    assert not setup.backoff.holds("b")
    setup.now = 1.0
    assert not setup.backoff.holds("a")


def test_failures_in_a_row_count_until_a_success() -> None:
    setup = Setup()
    for pause in (1.0, 2.0, 4.0):
        setup.backoff.failed("a", None)
        setup.now += pause
        assert not setup.backoff.holds("a")
    setup.backoff.succeeded("a")
    setup.backoff.succeeded("a")
    setup.backoff.failed("a", None)
    setup.now += 1.0
    assert not setup.backoff.holds("a")


def test_what_was_held_back_is_counted() -> None:
    setup = Setup()
    setup.backoff.failed("a", 10.0)
    assert [setup.backoff.lets("a") for _ in range(3)] == [False] * 3
    assert setup.backoff.held_back == 3


def test_the_least_recently_needed_are_forgotten_first() -> None:
    setup = Setup(most=3)
    for key in "abc":
        setup.backoff.failed(key, 100.0)
    assert setup.backoff.holds("a")
    for key in "de":
        setup.backoff.failed(key, 100.0)
    assert [key for key in "abcde" if setup.backoff.holds(key)] == ["a", "d", "e"]
