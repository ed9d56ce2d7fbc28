"""What is told of a data source's requests, day by day: the shapes of the usage, metrics and cache-stats endpoints.

Days are UTC's. A day without rows is left out of the lists, as the predecessor leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from broker_edge.core.money import decimal_text
from broker_edge.errors import CallerError

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_USUAL: Final = timedelta(days=30)
_LONGEST: Final = timedelta(days=5 * 366)


class Period(msgspec.Struct, frozen=True):
    """From the first day to the last, both included."""

    first: date
    last: date


class Money(msgspec.Struct, frozen=True):
    """Amounts in millionths of `currency`, which is empty where none was named."""

    currency: str = ""
    calls: int = 0
    cost_micros: int = 0
    saved_cache_micros: int = 0
    saved_collapsed_micros: int = 0

    def told(self) -> dict[str, Any]:
        return {
            "currency": self.currency or None,
            "calls": self.calls,
            "spent": decimal_text(self.cost_micros),
            "saved_by_cache": decimal_text(self.saved_cache_micros),
            "saved_by_coalescing": decimal_text(self.saved_collapsed_micros),
        }

    @property
    def any(self) -> bool:
        return bool(self.calls or self.cost_micros or self.saved_cache_micros or self.saved_collapsed_micros)


class Day(msgspec.Struct, frozen=True):
    """The sums of a day's rows in one currency; `call_seconds` are those of the `timed_calls`."""

    day: date
    requests: int = 0
    from_cache: int = 0
    from_request: int = 0
    errors: int = 0
    timed_calls: int = 0
    call_seconds: float = 0.0
    money: Money = Money()


class RunMoney(msgspec.Struct, frozen=True):
    """What one run cost and saved in one currency."""

    run_id: UUID
    money: Money


def period(start: str | None, end: str | None, today: date) -> Period:
    """From 30 days before the last day to today, where nothing else is said; raises CallerError INVALID_REQUEST."""
    last = today if end is None else _day("end_date", end)
    first = last - min(_USUAL, last - date.min) if start is None else _day("start_date", start)
    if first > last:
        raise CallerError("INVALID_REQUEST", "start_date is after end_date")
    if last - first > _LONGEST:
        raise CallerError("INVALID_REQUEST", "start_date and end_date are more than five years apart")
    return Period(first, last)


def _day(member: str, text: str) -> date:
    try:
        found = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or found == date.max:  # whose end is no date any more
        raise CallerError("INVALID_REQUEST", f"{member} must be a date (YYYY-MM-DD)")
    return found


def usage(days: Sequence[Day], runs: Sequence[RunMoney]) -> dict[str, Any]:
    """Requests and money by day, money in total and by run."""
    return {
        "requests_by_date": [
            {"date": day.isoformat(), "count": one.requests, "value": one.requests}
            for day, one in _by_day(days).items()
            if one.requests
        ],
        "money": [money.told() for money in _total(days).values() if money.any],
        "money_by_date": [{"date": one.day.isoformat(), **one.money.told()} for one in days if one.money.any],
        "money_by_run": [{"run_id": str(one.run_id), **one.money.told()} for one in runs if one.money.any],
    }


def metrics(days: Sequence[Day]) -> dict[str, Any]:
    """Milliseconds of an average upstream call, and per cent of all requests that failed."""
    by_day = _by_day(days)
    return {
        "avg_response_time_by_date": [
            _value(day, 1000 * one.call_seconds / one.timed_calls) for day, one in by_day.items() if one.timed_calls
        ],
        "error_rate_by_date": [_value(day, 100 * one.errors / one.requests) for day, one in by_day.items() if one.requests],
    }


def cache_stats(days: Sequence[Day]) -> dict[str, Any]:
    """Per cent of the answers with a value that came from the cache; zero on a day without any."""
    return {
        "cache_hit_ratio_by_date": [
            _value(day, 100 * one.from_cache / ((one.from_cache + one.from_request) or 1))
            for day, one in _by_day(days).items()
            if one.requests
        ]
    }


def _value(day: date, value: float) -> dict[str, Any]:
    return {"date": day.isoformat(), "value": round(value, 2)}


def _by_day(days: Iterable[Day]) -> Mapping[date, Day]:
    """A day has a row for each currency; its requests are those of all."""
    found: dict[date, Day] = {}
    for one in sorted(days, key=lambda each: each.day):
        other = found.get(one.day)
        found[one.day] = one if other is None else _added(one, other)
    return found


def _added(one: Day, other: Day) -> Day:
    return Day(
        one.day,
        one.requests + other.requests,
        one.from_cache + other.from_cache,
        one.from_request + other.from_request,
        one.errors + other.errors,
        one.timed_calls + other.timed_calls,
        one.call_seconds + other.call_seconds,
    )


def _total(days: Iterable[Day]) -> Mapping[str, Money]:
    found: dict[str, Money] = {}
    for money in (one.money for one in days):
        other = found.get(money.currency, Money(money.currency))
        found[money.currency] = Money(
            money.currency,
            other.calls + money.calls,
            other.cost_micros + money.cost_micros,
            other.saved_cache_micros + money.saved_cache_micros,
            other.saved_collapsed_micros + money.saved_collapsed_micros,
        )
    return found
