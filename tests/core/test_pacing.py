"""Waiting: back-off, Retry-After and jitter stay in their bounds whatever they are given."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.pacing import (
    BACKOFF_CAP,
    RETRY_AFTER_CAP,
    TTL_JITTER,
    full_jitter,
    next_delay,
    parse_retry_after,
    ttl_jitter,
)

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()
RAND = st.floats(0, 1, exclude_max=True)


def test_full_jitter_doubles_its_range_with_each_attempt() -> None:
    assert [full_jitter(attempt, 0.5, 0.5) for attempt in range(4)] == [0.25, 0.5, 1.0, 2.0]


def test_full_jitter_is_nothing_without_a_factor() -> None:
    assert full_jitter(5, 0.0, 0.9) == 0.0


@given(st.integers(0, 10_000), st.floats(0, 60), RAND)
def test_full_jitter_stays_below_its_cap(attempt: int, factor: float, rand: float) -> None:
    assert 0 <= full_jitter(attempt, factor, rand) < max(BACKOFF_CAP, 1e-300)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7\t", 7.0),
        ("007", 7.0),
        pytest.param("9" * 5000, RETRY_AFTER_CAP, id="5000 digits"),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun Nov  6 08:49:37 1994", 30.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_CAP),
    ],
)
def test_retry_after_reads_seconds_and_all_three_date_forms(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_a_retry_after_without_a_zone_is_not_in_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_retry_after("Sun Nov  6 08:49:37 1994", NOW) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "value", [None, "", "soon", "-1", "1.5", "1e3", "+5", "5 seconds", "٣", "Sun, 99 Foo 1994", "0x10", "1, 2"]
)
def test_retry_after_that_says_nothing_is_none(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text() | st.from_regex(r"\A[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d [-+A-Z0-9]{3,5}\Z"))
def test_retry_after_never_raises(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= RETRY_AFTER_CAP


def test_next_delay_is_the_longer_of_backoff_and_retry_after() -> None:
    assert next_delay(2, 1.0, None, 0.5, 10) == 2.0
    assert next_delay(2, 1.0, 1.0, 0.5, 10) == 2.0
    assert next_delay(2, 1.0, 5.0, 0.5, 10) == 5.0


def test_next_delay_is_none_where_no_time_would_be_left() -> None:
    assert next_delay(0, 1.0, 10.0, 0.5, 10) is None
    assert next_delay(0, 1.0, None, 0.5, 0.5) is None
    assert next_delay(0, 0.0, None, 0.5, -1) is None


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False), RAND)
def test_ttl_jitter_takes_at_most_five_per_cent_and_never_all(ttl: float, rand: float) -> None:
    jittered = ttl_jitter(ttl, rand)
    assert 0 < jittered <= ttl
    assert jittered >= ttl * (1 - TTL_JITTER)


def test_ttl_jitter_spreads() -> None:
    assert ttl_jitter(100, 0.0) == 100
    assert ttl_jitter(100, 0.5) == 97.5
