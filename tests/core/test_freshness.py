"""Verdicts on entries and answers: the rules of RFC 9111 as far as a keyed cache has them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.exchange import Entry, Freshness
from broker_edge.core.freshness import (
    Admission,
    Expired,
    Fresh,
    Miss,
    Negative,
    Stale,
    StaleUsable,
    admit,
    excused,
    hot_lifetime,
    judge,
    outlasts,
    stands_in,
)
from broker_edge.core.source import CachePolicy
from broker_edge.errors import CODES, EdgeError, UpstreamError

NOW = 1_000_000.0
ANY = Freshness()


def _entry(age: float) -> Entry:
    return Entry(UUID(int=1), NOW - age, b"1")


def test_no_entry_is_a_miss() -> None:
    assert judge(None, NOW, ttl=60, wants=ANY) == Miss()


@pytest.mark.parametrize(
    ("age", "ttl", "verdict"),
    [
        (0, 60, Fresh(_entry(0), 0, 60)),
        (59, 60, Fresh(_entry(59), 59, 1)),
        (60, 60, Stale(60, 0, "ttl")),
        (61, 60, Stale(61, -1, "ttl")),
        (1e9, None, Fresh(_entry(1e9), 1e9, None)),
        (0, 0, Stale(0, 0, "ttl")),
        (-5, 60, Fresh(_entry(-5), 0, 60)),
    ],
)
def test_fresh_while_its_age_is_below_its_ttl(age: float, ttl: float | None, verdict: object) -> None:
    assert judge(_entry(age), NOW, ttl=ttl, wants=ANY) == verdict


@pytest.mark.parametrize(("age", "ttl", "fresh"), [(10, 60, True), (10.5, 60, False), (10, None, True), (11, None, False)])
def test_max_age_narrows_what_is_fresh(age: float, ttl: float | None, fresh: bool) -> None:
    verdict = judge(_entry(age), NOW, ttl=ttl, wants=Freshness(max_age=10))
    assert isinstance(verdict, Fresh) if fresh else verdict == Stale(age, ttl and ttl - age, "max_age")


def test_max_age_zero_accepts_only_what_is_brand_new() -> None:
    assert judge(_entry(0), NOW, ttl=60, wants=Freshness(max_age=0)) == Fresh(_entry(0), 0, 60)
    assert judge(_entry(0.5), NOW, ttl=60, wants=Freshness(max_age=0)) == Stale(0.5, 59.5, "max_age")


def test_max_stale_makes_a_stale_entry_usable_up_to_its_bound() -> None:
    wants = Freshness(max_stale=30)
    assert judge(_entry(60), NOW, ttl=60, wants=wants) == StaleUsable(_entry(60), 60, 0)
    assert judge(_entry(90), NOW, ttl=60, wants=wants) == StaleUsable(_entry(90), 90, -30)
    assert judge(_entry(91), NOW, ttl=60, wants=wants) == Stale(91, -31, "ttl")


def test_max_age_and_max_stale_both_apply() -> None:
    wants = Freshness(max_age=70, max_stale=30)
    assert judge(_entry(70), NOW, ttl=60, wants=wants) == StaleUsable(_entry(70), 70, -10)
    assert judge(_entry(71), NOW, ttl=60, wants=wants) == Stale(71, -11, "ttl")


def test_a_ttl_of_zero_is_never_reused_even_stale() -> None:
    assert judge(_entry(0), NOW, ttl=0, wants=Freshness(max_stale=1e9)) == Stale(0, 0, "ttl")


def test_a_refresh_refuses_what_is_older_than_itself_only() -> None:
    assert judge(_entry(1), NOW, ttl=60, wants=ANY, not_before=NOW) == Stale(1, 59, "refresh")
    assert judge(_entry(1), NOW, ttl=None, wants=Freshness(max_stale=9), not_before=NOW) == Stale(1, None, "refresh")
    assert judge(_entry(0), NOW, ttl=60, wants=ANY, not_before=NOW) == Fresh(_entry(0), 0, 60)


SECONDS = st.floats(0, 1e9)


@given(age=st.floats(-1e6, 1e9), ttl=st.none() | SECONDS, max_age=st.none() | SECONDS, max_stale=SECONDS)
def test_whatever_is_served_keeps_every_bound(age: float, ttl: float | None, max_age: float | None, max_stale: float) -> None:
    verdict = judge(_entry(age), NOW, ttl=ttl, wants=Freshness(max_age=max_age, max_stale=max_stale))
    if isinstance(verdict, Fresh | StaleUsable):
        assert verdict.age >= 0
        assert ttl != 0
        assert max_age is None or verdict.age <= max_age
        assert ttl is None or verdict.age - ttl <= (0 if isinstance(verdict, Fresh) else max_stale) + 1e-6
    else:
        assert isinstance(verdict, Stale)
        assert verdict.reason in ("ttl", "max_age")


@pytest.mark.parametrize("status", [200, 201, 202, 203, 204, 206, 226, 299])
def test_any_2xx_is_stored_or_kept(status: int) -> None:
    assert admit(status, reusable=True) is Admission.STORE
    assert admit(status, reusable=False) is Admission.KEEP


@pytest.mark.parametrize("status", [100, 199, 300, 304, 404, 429, 500, 599])
@pytest.mark.parametrize("reusable", [True, False])
def test_nothing_else_is(status: int, reusable: bool) -> None:
    assert admit(status, reusable=reusable) is Admission.REFUSE


def test_the_hot_tier_holds_an_entry_for_what_is_left_of_its_ttl() -> None:
    assert hot_lifetime(NOW - 40, 100, NOW, 0.0) == 60
    assert hot_lifetime(NOW - 40, 100, NOW, 0.5) == pytest.approx(58.5)
    assert hot_lifetime(NOW + 40, 100, NOW, 0.0) == 100


def test_the_hot_tier_holds_for_ever_what_never_expires() -> None:
    assert hot_lifetime(NOW - 1e9, None, NOW, 0.9) is None


@pytest.mark.parametrize("age", [100, 101, 1e9])
def test_the_hot_tier_does_not_take_what_has_expired(age: float) -> None:
    assert hot_lifetime(NOW - age, 100, NOW, 0.0) == Expired()


def test_the_hot_tier_does_not_take_what_is_never_reused() -> None:
    assert hot_lifetime(NOW, 0, NOW, 0.0) == Expired()


# What a source lets through past its ttl


def test_stale_while_revalidate_makes_an_entry_usable_up_to_its_bound_and_not_beyond() -> None:
    assert judge(_entry(60), NOW, ttl=60, wants=ANY, while_revalidate=30) == StaleUsable(_entry(60), 60, 0)
    assert judge(_entry(90), NOW, ttl=60, wants=ANY, while_revalidate=30) == StaleUsable(_entry(90), 90, -30)
    assert judge(_entry(91), NOW, ttl=60, wants=ANY, while_revalidate=30) == Stale(91, -31, "ttl")


def test_of_two_bounds_the_wider_one_holds() -> None:
    assert isinstance(judge(_entry(90), NOW, ttl=60, wants=Freshness(max_stale=5), while_revalidate=30), StaleUsable)
    assert isinstance(judge(_entry(90), NOW, ttl=60, wants=Freshness(max_stale=30), while_revalidate=5), StaleUsable)


def test_max_age_binds_what_the_source_would_let_through() -> None:
    assert judge(_entry(70), NOW, ttl=60, wants=Freshness(max_age=69), while_revalidate=30) == Stale(70, -10, "ttl")


def test_a_ttl_of_zero_is_never_reused_while_it_is_revalidated_either() -> None:
    assert judge(_entry(0), NOW, ttl=0, wants=ANY, while_revalidate=30) == Stale(0, 0, "ttl")


@pytest.mark.parametrize(
    ("age", "ttl", "max_age", "stands"),
    [(61, 60, None, True), (90, 60, None, True), (91, 60, None, False), (80, 60, 79, False), (80, 60, 80, True)],
)
def test_an_entry_stands_in_for_a_failure_up_to_its_bound(age: float, ttl: float, max_age: float | None, stands: bool) -> None:
    assert stands_in(_entry(age), NOW, ttl=ttl, if_error=30, wants=Freshness(max_age=max_age)) is stands


def test_what_is_never_reused_stands_in_for_nothing() -> None:
    assert not stands_in(_entry(0), NOW, ttl=0, if_error=30, wants=ANY)


EXCUSED = {
    *("CONNECT_ERROR", "DNS_ERROR", "TLS_ERROR", "TIMEOUT", "UPSTREAM_INCOMPLETE", "UPSTREAM_TOO_LARGE", "PARSE_ERROR"),
    *("BUDGET_EXHAUSTED", "CIRCUIT_OPEN", "OVERLOADED", "STORAGE_UNAVAILABLE"),
}


@pytest.mark.parametrize("code", sorted(CODES.keys() - {"UPSTREAM_STATUS"}))
def test_the_upstream_s_troubles_are_excused_and_nobody_else_s(code: str) -> None:
    assert excused(EdgeError(code, "failed")) is (code in EXCUSED)


@pytest.mark.parametrize("status", [None, 301, 304, 400, 401, 403, 404, 409, 410, 422, 429, 451, 500, 502, 503, 504, 599])
def test_of_statuses_403_429_and_5xx_are_excused(status: int | None) -> None:
    error = UpstreamError("UPSTREAM_STATUS", "failed", upstream_status=status)
    assert excused(error) is (status in (403, 429) or (status or 0) >= 500)


# Statuses that are remembered


def _negative(age: float, status: int = 404) -> Entry:
    return Entry(UUID(int=0), NOW - age, b"", status)


@pytest.mark.parametrize(("age", "verdict"), [(0, Negative(404, 0, 30)), (29, Negative(404, 29, 1)), (30, Miss()), (31, Miss())])
def test_a_status_is_remembered_for_its_time(age: float, verdict: object) -> None:
    assert judge(_negative(age), NOW, ttl=None, wants=ANY, negative_ttl={404: 30}) == verdict


@pytest.mark.parametrize("policy", [{}, {410: 30}, {404: 0}], ids=str)
def test_a_status_that_is_not_listed_is_a_miss(policy: dict[int, float]) -> None:
    assert judge(_negative(1), NOW, ttl=None, wants=Freshness(max_stale=1e9), negative_ttl=policy) == Miss()


def test_a_request_says_how_old_a_remembered_status_may_be() -> None:
    policy = {404: 30.0}
    assert judge(_negative(9), NOW, ttl=60, wants=Freshness(max_age=10), negative_ttl=policy) == Negative(404, 9, 21)
    assert judge(_negative(11), NOW, ttl=60, wants=Freshness(max_age=10), negative_ttl=policy) == Miss()
    assert judge(_negative(0), NOW, ttl=60, wants=ANY, negative_ttl=policy, not_before=NOW) == Miss()


def _policy(**members: Any) -> CachePolicy:
    return CachePolicy(**{"enabled": True, "ttl": 60.0, **members})


@pytest.mark.parametrize(
    ("age", "status", "policy", "keeps"),
    [
        (59, 404, _policy(), True),
        (61, 404, _policy(stale_if_error=100.0, stale_while_revalidate=100.0), False),
        (61, 503, _policy(), False),
        (160, 503, _policy(stale_if_error=100.0), True),
        (161, 503, _policy(stale_if_error=100.0), False),
        (160, 429, _policy(stale_while_revalidate=100.0), True),
        (1e9, 404, _policy(ttl=None), True),
    ],
)
def test_an_entry_that_is_worth_more_than_the_news_keeps_its_place(
    age: float, status: int, policy: CachePolicy, keeps: bool
) -> None:
    assert outlasts(_entry(age), status, NOW, policy) is keeps


def test_the_hot_tier_holds_an_entry_past_its_ttl_for_as_long_as_it_may_be_of_use() -> None:
    assert hot_lifetime(NOW - 40, 100, NOW, 0.0, grace=50) == 110
    assert hot_lifetime(NOW - 140, 100, NOW, 0.0, grace=50) == 10
    assert hot_lifetime(NOW - 150, 100, NOW, 0.0, grace=50) == Expired()
    assert hot_lifetime(NOW, None, NOW, 0.0, grace=50) is None
    assert hot_lifetime(NOW, 0, NOW, 0.0, grace=50) == Expired()


def test_an_entry_is_of_use_for_the_longer_of_both() -> None:
    assert _policy(stale_while_revalidate=10.0, stale_if_error=20.0).grace == 20
    assert _policy(stale_while_revalidate=30.0, stale_if_error=20.0).grace == 30
