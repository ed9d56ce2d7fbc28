"""What is told of days and runs, and which periods may be asked for."""

from __future__ import annotations

import uuid
from datetime import date, timedelta

import pytest

from broker_edge.core.analytics import Day, Money, Period, RunMoney, cache_stats, metrics, period, usage
from broker_edge.errors import CallerError

TODAY = date(2026, 3, 31)
FIRST, SECOND = date(2026, 3, 1), date(2026, 3, 2)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, Period(date(2026, 3, 1), TODAY)),
        (None, "2026-03-05", Period(date(2026, 2, 3), date(2026, 3, 5))),
        ("2026-03-30", None, Period(date(2026, 3, 30), TODAY)),
        ("2026-03-05", "2026-03-05", Period(date(2026, 3, 5), date(2026, 3, 5))),
        ("2021-03-31", "2026-03-31", Period(date(2021, 3, 31), TODAY)),
        (None, "0001-01-02", Period(date.min, date(1, 1, 2))),
    ],
)
def test_a_period_is_thirty_days_until_today_unless_something_else_is_said(
    start: str | None, end: str | None, expected: Period
) -> None:
    assert period(start, end, TODAY) == expected


@pytest.mark.parametrize(
    ("start", "end", "named"),
    [
        ("2026-03-02", "2026-03-01", "start_date"),
        ("2026-04-01", None, "start_date"),
        ("2020-01-01", "2026-03-01", "five years"),
        ("2026-02-30", None, "start_date"),
        ("20260301", None, "start_date"),
        ("2026-W09-1", None, "start_date"),
        ("", None, "start_date"),
        (None, "tomorrow", "end_date"),
        (None, "2026-03-01T00:00:00", "end_date"),
        (None, "9999-12-31", "end_date"),
        (None, "\u0662\u0660\u0662\u0666-03-01", "end_date"),
    ],
)
def test_other_periods_are_refused_by_name(start: str | None, end: str | None, named: str) -> None:
    with pytest.raises(CallerError) as refusal:
        period(start, end, TODAY)
    assert refusal.value.code == "INVALID_REQUEST"
    assert named in refusal.value.message


def test_usage_adds_a_day_s_currencies_and_lists_their_money() -> None:
    run = uuid.uuid4()
    days = [
        Day(FIRST, requests=2),
        Day(FIRST, requests=3, money=Money("BRL", 3, 1_050_000, 350_000, 70_000)),
        Day(SECOND, requests=1, money=Money("BRL", 1, 350_000)),
    ]
    told = usage(days, [RunMoney(run, Money("BRL", 1, 350_000)), RunMoney(uuid.uuid4(), Money())])
    assert told == {
        "requests_by_date": [
            {"date": "2026-03-01", "count": 5, "value": 5},
            {"date": "2026-03-02", "count": 1, "value": 1},
        ],
        "money": [{"currency": "BRL", "calls": 4, "spent": "1.40", "saved_by_cache": "0.35", "saved_by_coalescing": "0.07"}],
        "money_by_date": [
            {
                "date": "2026-03-01",
                "currency": "BRL",
                "calls": 3,
                "spent": "1.05",
                "saved_by_cache": "0.35",
                "saved_by_coalescing": "0.07",
            },
            {
                "date": "2026-03-02",
                "currency": "BRL",
                "calls": 1,
                "spent": "0.35",
                "saved_by_cache": "0.00",
                "saved_by_coalescing": "0.00",
            },
        ],
        "money_by_run": [
            {
                "run_id": str(run),
                "currency": "BRL",
                "calls": 1,
                "spent": "0.35",
                "saved_by_cache": "0.00",
                "saved_by_coalescing": "0.00",
            }
        ],
    }


def test_money_without_a_currency_says_so() -> None:
    assert usage([Day(FIRST, money=Money("", 1, 5_000_000))], [])["money"][0]["currency"] is None


def test_calls_that_cost_nothing_are_told_too() -> None:
    told = usage([Day(FIRST, requests=3, money=Money("", 3))], [RunMoney(uuid.uuid4(), Money("", 2))])
    assert [(one["calls"], one["spent"]) for one in told["money"]] == [(3, "0.00")]
    assert [one["calls"] for one in told["money_by_date"]] == [3]
    assert [one["calls"] for one in told["money_by_run"]] == [2]


def test_a_day_on_which_nobody_asked_but_a_refill_paid_has_money_and_no_requests() -> None:
    told = usage([Day(FIRST, money=Money("BRL", 1, 350_000))], [])
    assert told["requests_by_date"] == []
    assert [one["spent"] for one in told["money_by_date"]] == ["0.35"]


def test_an_average_is_over_calls_and_a_rate_over_requests() -> None:
    days = [Day(FIRST, requests=30, errors=1, timed_calls=4, call_seconds=1.0), Day(SECOND, requests=8)]
    assert metrics(days) == {
        "avg_response_time_by_date": [{"date": "2026-03-01", "value": 250.0}],
        "error_rate_by_date": [{"date": "2026-03-01", "value": 3.33}, {"date": "2026-03-02", "value": 0.0}],
    }


def test_a_hit_ratio_is_over_answers_and_zero_without_any() -> None:
    days = [Day(FIRST, requests=10, from_cache=2, from_request=4), Day(SECOND, requests=1, errors=1)]
    assert cache_stats(days) == {
        "cache_hit_ratio_by_date": [{"date": "2026-03-01", "value": 33.33}, {"date": "2026-03-02", "value": 0.0}]
    }


def test_nothing_is_empty_lists() -> None:
    assert set(usage([], [])) == {"requests_by_date", "money", "money_by_date", "money_by_run"}
    assert not any([*usage([], []).values(), *metrics([]).values(), *cache_stats([]).values()])


def test_days_come_in_order() -> None:
    days = [Day(FIRST + timedelta(days=number), requests=1, errors=1) for number in (5, 1, 3)]
    dates = [one["date"] for one in metrics(days)["error_rate_by_date"]]
    assert dates == sorted(dates)
