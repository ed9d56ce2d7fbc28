"""Pauses after failed refills: exponential with full jitter, never shorter than what the upstream asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.backoff import Pause, paused

NOW = 1000.0


@pytest.mark.parametrize(("failures", "longest"), [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (7, 60), (10_000, 60)])
def test_each_failure_doubles_the_longest_pause_up_to_a_minute(failures: int, longest: float) -> None:
    before = Pause(failures, NOW) if failures else None
    assert paused(before, NOW, retry_after=None, rand=1.0) == Pause(failures + 1, NOW + longest)
    assert paused(before, NOW, retry_after=None, rand=0.25) == Pause(failures + 1, NOW + longest / 4)


def test_retry_after_is_the_least() -> None:
    assert paused(None, NOW, retry_after=300.0, rand=1.0).until == NOW + 300
    assert paused(None, NOW, retry_after=0.5, rand=1.0).until == NOW + 1


def test_a_failure_within_a_pause_never_cuts_it_short() -> None:
    assert paused(Pause(1, NOW + 300), NOW, retry_after=None, rand=1.0) == Pause(2, NOW + 300)


@given(failures=st.integers(0, 2000), retry_after=st.none() | st.floats(0, 86_400), rand=st.floats(0, 1, exclude_max=True))
def test_a_pause_is_bounded(failures: int, retry_after: float | None, rand: float) -> None:
    pause = paused(Pause(failures, NOW), NOW, retry_after=retry_after, rand=rand)
    assert NOW + (retry_after or 0) <= pause.until <= NOW + max(60, retry_after or 0)
