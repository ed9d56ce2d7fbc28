"""One refill: recall what the tiers hold by now, or call the upstream and keep its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from broker_edge.core.exchange import DataObject, Entry, Fetched, Freshness
from broker_edge.core.freshness import Admission, Fresh, Verdict, admit, judge
from broker_edge.core.plan import Plan
from broker_edge.core.trail import FlightTrail, Record
from broker_edge.errors import UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.calling import Calls
from broker_edge.flow.tiers import Nothing, Tiers, shaped


class Kitchen:
    """What refills are made with; `check_spool` raises TierBroken while an answer could not be written down: why pay for it?"""

    def __init__(
        self,
        tiers: Tiers,
        calls: Calls,
        background: Background,
        *,
        new_object_id: Callable[[], UUID],
        check_spool: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.tiers = tiers
        self.calls = calls
        self.background = background
        self.new_object_id = new_object_id
        self.check_spool = check_spool
        self.now = now


class Bought(NamedTuple):
    """An answer that is paid for."""

    item: DataObject
    started_at: float


class Refill:
    """`flights.Work` for one plan and what its request accepts; a refresh accepts only what is newer than itself."""

    def __init__(self, kitchen: Kitchen, plan: Plan, wants: Freshness) -> None:
        self._kitchen = kitchen
        self.plan = plan
        self.wants = wants
        self._met_stale = False
        self._not_before = kitchen.now() if wants.mode == "refresh" else None

    def judge(self, found: Entry | Nothing) -> Verdict:
        """What the request says to what a tier answered; a broken tier has nothing to judge, like an empty one."""
        entry = found if isinstance(found, Entry) else None
        ttl = self.plan.source.caching.ttl
        return judge(entry, self._kitchen.now(), ttl=ttl, wants=self.wants, not_before=self._not_before)

    async def hot(self, trail: Record) -> Entry | Nothing:
        return await self._kitchen.tiers.hot(self.plan.key, trail)

    async def durable(self, trail: Record) -> Entry | Nothing:
        return await self._kitchen.tiers.durable(self.plan.key, self.plan.source.caching.ttl, trail)

    async def recall(self, found: Entry | None, trail: FlightTrail) -> Fetched | None:
        """What is fresh by now: `found` (the hot tier's word at the moment the lease was won), else the durable tier's."""
        return self._accepted(found or Nothing.ABSENT) or self._accepted(await self.durable(trail))

    async def reread(self, trail: FlightTrail) -> Fetched | None:
        """What another instance has just stored."""
        return self._accepted(await self.hot(trail)) or self._accepted(await self.durable(trail))

    async def fetch(self, trail: Record, remaining: Callable[[], float]) -> Fetched:
        """Buy and keep, for a caller who may leave at any moment."""
        bought = await self.buy(trail, remaining)
        # In a task of its own: a deadline that strikes now must not throw away an answer that is paid for.
        kept = await asyncio.shield(self._kitchen.background.spawn("store", self._kept(bought, trail)))
        if isinstance(kept, UpstreamError):
            raise kept
        return kept

    async def buy(self, trail: Record, remaining: Callable[[], float]) -> Bought:
        """Call the upstream: the only place where money is spent."""
        kitchen, source = self._kitchen, self.plan.source
        kitchen.check_spool()
        started_at = kitchen.now()
        reply = await kitchen.calls.call(self.plan, remaining, trail)
        ended_at = kitchen.now()
        item = DataObject(
            kitchen.new_object_id(),
            source.data_source_id,
            self.plan.key,
            reply.body,
            ended_at,
            reply.headers.get("content-type"),
            source.request.response_type,
            reply.status,
            reusable=admit(reply.status, reusable=source.caching.reusable) is Admission.STORE,
        )
        return Bought(item, started_at)

    async def _kept(self, bought: Bought, trail: Record) -> Fetched | UpstreamError:
        """`keep` for a task that its caller may have left: an answer that can't be read is the caller's news, and no crash."""
        try:
            return await self.keep(bought, trail)
        except UpstreamError as error:
            return error

    async def keep(self, bought: Bought, trail: Record) -> Fetched:
        """Shape and store what is paid for; nothing may cancel it. Raises PARSE_ERROR, and nothing is stored then."""
        item, started_at = bought
        entry = Entry(item.object_id, item.created_at, await shaped(item))
        await self._kitchen.tiers.store(item, entry, self.plan.source.caching.ttl, trail)
        # An entry leaves the hot tier when its ttl ends, so that only the durable tier knew of one that is stale by now.
        return Fetched(entry, self.plan.key, "REQUEST", started_at, item.created_at, item.status, replaced_stale=self._met_stale)

    def _accepted(self, found: Entry | Nothing) -> Fetched | None:
        if isinstance(found, Entry) and isinstance(self.judge(found), Fresh):
            return Fetched(found, self.plan.key, "CACHE")
        self._met_stale = self._met_stale or isinstance(found, Entry)
        return None
