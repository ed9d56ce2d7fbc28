"""Verdicts on entries and answers: the rules of RFC 9111 as far as a keyed cache has them."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.exchange import Entry, Freshness
from broker_edge.core.freshness import Admission, Expired, Fresh, Miss, Stale, StaleUsable, admit, hot_lifetime, judge

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
