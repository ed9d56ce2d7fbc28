"""What one request takes of that which the tiers hold: what is fresh, what is stale and will do, what is remembered of a failure.

`core.freshness` judges; here the request, its source's policy and the pauses after failures come together.
"""

from __future__ import annotations

from broker_edge.core.exchange import Entry, Fetched, Freshness
from broker_edge.core.freshness import Fresh, Negative, StaleUsable, Verdict, judge, stands_in
from broker_edge.core.plan import Plan
from broker_edge.errors import RememberedStatus
from broker_edge.flow.kitchen import Kitchen
from broker_edge.flow.tiers import Nothing


class Acceptance:
    """`met` is the last entry that was not fresh: it may be good enough to stand in for a failure."""

    # Defaults of the class: every hit makes one of these.
    met: Entry | None = None
    _not_before: float | None = None

    def __init__(self, kitchen: Kitchen, plan: Plan, wants: Freshness) -> None:
        self.plan = plan
        self.wants = wants
        self._kitchen = kitchen
        if wants.mode == "refresh":
            self._not_before = kitchen.now()

    def judge(self, found: Entry | Nothing) -> Verdict:
        """What the request says to what a tier answered; a broken tier has nothing to judge, like an empty one."""
        entry = found if isinstance(found, Entry) else None
        caching = self.plan.source.caching
        verdict = judge(
            entry,
            self._kitchen.now(),
            ttl=caching.ttl,
            wants=self.wants,
            not_before=self._not_before,
            while_revalidate=caching.stale_while_revalidate,
            negative_ttl=caching.negative_ttl,
        )
        if not isinstance(verdict, Fresh) and entry is not None and entry.status < 400:
            self.met = entry
        return verdict

    def fresh(self, verdict: Verdict) -> Fetched | None:
        """What is answered as it is; raises RememberedStatus."""
        if isinstance(verdict, Fresh):
            return Fetched(verdict.entry, self.plan.key, "CACHE")
        if isinstance(verdict, Negative):
            listed = verdict.status in self.plan.source.retry.status_forcelist
            retryable = listed or verdict.status in (429, 503)
            raise RememberedStatus(verdict.status, retryable=retryable, age=verdict.age, remaining=verdict.remaining)
        return None

    def accept(self, verdict: Verdict) -> Fetched | None:
        """What is answered without a call: also what is stale, where that will do, or where a refill has just failed."""
        if isinstance(verdict, StaleUsable):
            return Fetched(verdict.entry, self.plan.key, "CACHE", stale=True)
        return self.fresh(verdict) or self._held_back()

    def _held_back(self) -> Fetched | None:
        entry = self.stand_in()
        if entry is None or not self._kitchen.backoff.holds(self.plan.key):
            return None
        return Fetched(entry, self.plan.key, "CACHE", stale=True)

    def stand_in(self) -> Entry | None:
        """What was met, if it may be served in the place of a failure (RFC 5861 section 4)."""
        caching, entry = self.plan.source.caching, self.met
        if entry is None or not caching.stale_if_error or self.wants.mode != "live":
            return None
        stands = stands_in(entry, self._kitchen.now(), ttl=caching.ttl, if_error=caching.stale_if_error, wants=self.wants)
        return entry if stands else None
