"""Verdicts on a cached entry (`judge`), on a new answer (`admit`), and on how long the hot tier may hold it (`hot_lifetime`).

Used by the story on both sides of a refill: what may be served, what may be kept. Seconds throughout, clocks are epoch seconds.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal

import msgspec

from broker_edge.core.exchange import Entry, Freshness
from broker_edge.core.pacing import ttl_jitter

Reason = Literal["ttl", "max_age", "refresh"]


class Fresh(msgspec.Struct, frozen=True):
    """May be served. `remaining` is what is left of the ttl; None: it never expires."""

    entry: Entry
    age: float
    remaining: float | None


class StaleUsable(msgspec.Struct, frozen=True):
    """Past its ttl, within the request's max_stale: may be served while it is refilled. `remaining` is 0 or negative."""

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


class Miss(msgspec.Struct, frozen=True):
    """There is no entry."""


Verdict = Fresh | StaleUsable | Stale | Miss


def judge(entry: Entry | None, now: float, *, ttl: float | None, wants: Freshness, not_before: float | None = None) -> Verdict:
    """Whether `entry` may answer a request that `wants` such freshness; `ttl` None never expires, 0 is never reused.

    RFC 9111 sections 4.2 (fresh while age < lifetime), 5.2.1.1 and 5.2.1.2 (max-age and max-stale, both apply). An entry created
    before `not_before` doesn't do, whatever its age. `wants.mode` is the flow's business.
    """
    if entry is None:
        return Miss()
    # An upstream's or another instance's clock may be ahead.
    age = max(0.0, now - entry.created_at)
    remaining = None if ttl is None else ttl - age
    # From the future: its writer's clock is ahead, so it can't be told whether it is newer than the request for a refresh.
    if not_before is not None and not not_before <= entry.created_at <= now:
        return Stale(age, remaining, "refresh")
    young = wants.max_age is None or age <= wants.max_age
    if remaining is None or remaining > 0:
        return Fresh(entry, age, remaining) if young else Stale(age, remaining, "max_age")
    if young and ttl and 0 < wants.max_stale >= -remaining:
        return StaleUsable(entry, age, remaining)
    return Stale(age, remaining, "ttl")


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


class Expired(msgspec.Struct, frozen=True):
    """Nothing is left of the ttl: the hot tier must not hold the entry."""


def hot_lifetime(created_at: float, ttl: float | None, now: float, rand: float) -> float | Expired | None:
    """Seconds (over 0) that the hot tier may hold an entry: what is left of its ttl, less up to 5%; None: no expiry."""
    if ttl is None:
        return None
    left = ttl - max(0.0, now - created_at)
    return ttl_jitter(left, rand) if left > 0 else Expired()
