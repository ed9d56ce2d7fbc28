"""Verdicts on a cached entry (`judge`), on a new answer (`admit`), and on how long the hot tier may hold it (`hot_lifetime`).

Used by the story on both sides of a refill: what may be served, what may be kept, and what may stand in for a failure
(`excused`, `stands_in`). Seconds throughout, clocks are epoch seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from broker_edge.core.exchange import Entry, Freshness
from broker_edge.core.pacing import ttl_jitter
from broker_edge.core.source import CachePolicy
from broker_edge.errors import EdgeError

Reason = Literal["ttl", "max_age", "refresh"]

_NONE: Final[Mapping[int, float]] = MappingProxyType({})
_EXCUSED: Final = frozenset(
    {
        *("CONNECT_ERROR", "DNS_ERROR", "TLS_ERROR", "TIMEOUT", "UPSTREAM_INCOMPLETE", "UPSTREAM_TOO_LARGE", "PARSE_ERROR"),
        # The last: what a call needs (its budget, its secrets) can't be reached, so that none is made.
        *("BUDGET_EXHAUSTED", "CIRCUIT_OPEN", "OVERLOADED", "STORAGE_UNAVAILABLE"),
    }
)


class Fresh(msgspec.Struct, frozen=True):
    """May be served. `remaining` is what is left of the ttl; None: it never expires."""

    entry: Entry
    age: float
    remaining: float | None


class StaleUsable(msgspec.Struct, frozen=True):
    """Past its ttl, within the request's max_stale or the source's stale_while_revalidate: may be served while it is refilled.

    `remaining` is 0 or negative.
    """

    entry: Entry
    age: float
    remaining: float


class Stale(msgspec.Struct, frozen=True):
    """May not be served: past its `ttl`, older than the request's `max_age`, or from before the `refresh` that was asked for.

    `max_age` and `refresh` are the request's doing (RFC 9211 fwd=request), `ttl` is not (fwd=stale).
    """

    age: float
    remaining: float | None
    reason: Reason


class Negative(msgspec.Struct, frozen=True):
    """The upstream's error `status` is remembered for another `remaining` seconds: answered again without a call."""

    status: int
    age: float
    remaining: float


class Miss(msgspec.Struct, frozen=True):
    """There is no entry."""


Verdict = Fresh | StaleUsable | Stale | Negative | Miss


def judge(
    entry: Entry | None,
    now: float,
    *,
    ttl: float | None,
    wants: Freshness,
    not_before: float | None = None,
    while_revalidate: float = 0.0,
    negative_ttl: Mapping[int, float] = _NONE,
) -> Verdict:
    """Whether `entry` may answer a request that `wants` such freshness; `ttl` None never expires, 0 is never reused.

    RFC 9111 sections 4.2 (fresh while age < lifetime), 5.2.1.1 and 5.2.1.2 (max-age and max-stale, both apply); RFC 5861 section
    3 (`while_revalidate`). An entry created before `not_before` doesn't do, whatever its age. Where `entry` is negative,
    `negative_ttl` says how long its status is remembered. `wants.mode` is the flow's business.
    """
    if entry is None:
        return Miss()
    # An upstream's or another instance's clock may be ahead.
    age = max(0.0, now - entry.created_at)
    if entry.status >= 400:
        return _judge_negative(entry.status, age, negative_ttl, wants, not_before)
    remaining = None if ttl is None else ttl - age
    # From the future: its writer's clock is ahead, so it can't be told whether it is newer than the request for a refresh.
    if not_before is not None and not not_before <= entry.created_at <= now:
        return Stale(age, remaining, "refresh")
    young = wants.max_age is None or age <= wants.max_age
    if remaining is None or remaining > 0:
        return Fresh(entry, age, remaining) if young else Stale(age, remaining, "max_age")
    if young and ttl and 0 < max(wants.max_stale, while_revalidate) >= -remaining:
        return StaleUsable(entry, age, remaining)
    return Stale(age, remaining, "ttl")


def _judge_negative(
    status: int, age: float, negative_ttl: Mapping[int, float], wants: Freshness, not_before: float | None
) -> Negative | Miss:
    """Nobody's stale answer: where it doesn't do any more it is nothing at all. A refresh takes no failure but its own."""
    remaining = negative_ttl.get(status, 0.0) - age
    if remaining <= 0 or not_before is not None or (wants.max_age is not None and age > wants.max_age):
        return Miss()
    return Negative(status, age, remaining)


class Admission(Enum):
    """STORE: data object, cache row and hot tier. KEEP: the data object only. REFUSE: nothing, the answer is an error."""

    STORE = auto()
    KEEP = auto()
    REFUSE = auto()


def admit(status: int, *, reusable: bool) -> Admission:
    """What becomes of an answer with this HTTP status: any 2xx is a success; `reusable`: others may be served from it."""
    if not 200 <= status <= 299:
        return Admission.REFUSE
    return Admission.STORE if reusable else Admission.KEEP


def excused(error: EdgeError) -> bool:
    """Whether a stale answer may stand in for this failure (RFC 5861 section 4).

    Beyond its 5xx: 429 and 403, which say that the upstream won't tell for the moment. 404, 410, 400 and 401 are answers, as are
    the caller's own errors.
    """
    if error.code == "UPSTREAM_STATUS":
        return error.upstream_status is not None and _passes(error.upstream_status)
    return error.code in _EXCUSED


def _passes(status: int) -> bool:
    return status in (403, 429) or 500 <= status <= 599


def stands_in(entry: Entry, now: float, *, ttl: float | None, if_error: float, wants: Freshness) -> bool:
    """Whether `entry`, past its ttl by `if_error` seconds at most, may be served where its refill fails."""
    age = max(0.0, now - entry.created_at)
    return bool(ttl) and age <= (ttl or 0.0) + if_error and (wants.max_age is None or age <= wants.max_age)


def outlasts(entry: Entry, status: int, now: float, policy: CachePolicy) -> bool:
    """Whether `entry` is worth more than the news of an error `status`, and so keeps its place in the hot tier."""
    if policy.ttl is None:
        return True
    return max(0.0, now - entry.created_at) <= policy.ttl + (policy.grace if _passes(status) else 0.0)


class Expired(msgspec.Struct, frozen=True):
    """Nothing is left of the ttl: the hot tier must not hold the entry."""


def hot_lifetime(created_at: float, ttl: float | None, now: float, rand: float, *, grace: float = 0.0) -> float | Expired | None:
    """Seconds (over 0) that the hot tier may hold an entry: what is left of ttl and `grace`, less up to 5%; None: no expiry."""
    if ttl is None:
        return None
    left = (ttl + grace if ttl else 0.0) - max(0.0, now - created_at)
    return ttl_jitter(left, rand) if left > 0 else Expired()
