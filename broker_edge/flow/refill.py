"""One refill: recall what the tiers hold by now, or call the upstream and keep its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

import msgspec

from broker_edge.core.exchange import DataObject, Entry, Fetched, Freshness, Reply
from broker_edge.core.freshness import Admission, Fresh, Verdict, admit, excused, outlasts
from broker_edge.core.plan import Plan
from broker_edge.core.trail import FlightTrail, Record
from broker_edge.core.validators import conditions_of, confirms, etag_of, last_modified_of
from broker_edge.errors import EdgeError, RememberedStatus, TokenError, UpstreamError
from broker_edge.flow.acceptance import Acceptance
from broker_edge.flow.kitchen import Kitchen
from broker_edge.flow.tiers import Kept, Nothing, shaped

_ROUNDED = 1e-6  # seconds: databases keep microseconds
_LAST_LOOK = 0.25  # seconds that a failed request looks for a stale answer where it has not met one


class Bought(NamedTuple):
    """An answer that is paid for. `renewed`: the shaped value of a kept object that the upstream confirmed (304)."""

    item: DataObject
    started_at: float
    renewed: bytes | memoryview | None = None


class Refill(Acceptance):
    """`flights.Work` for one plan and what its request accepts; a refresh accepts only what is newer than itself."""

    _kept: Kept | None = None  # the object that a 304 would confirm
    _behind = False

    @classmethod
    def behind(cls, kitchen: Kitchen, plan: Plan, wants: Freshness) -> Refill:
        """The refill behind a reply that is stale itself: nothing but what is fresh will do."""
        refill = cls(kitchen, plan, wants)
        refill._behind = True
        return refill

    @property
    def terms(self) -> object:
        """Price and budget: who refuses the one need not refuse the other."""
        return self.plan.source.price, self.plan.source.budget

    def _take(self, verdict: Verdict) -> Fetched | None:
        return self.fresh(verdict) if self._behind else self.accept(verdict)

    async def instead_of(self, error: EdgeError, trail: Record) -> Fetched | None:
        """A stale answer in the place of a failure, where the source's stale_if_error allows it."""
        allowed = self.plan.source.caching.stale_if_error and self.wants.mode == "live"
        if not allowed or not excused(error) or isinstance(error, RememberedStatus):
            return None
        if self.met is None and (fetched := await self._look_again(trail)) is not None:
            return fetched
        entry, status = self.stand_in(), error.upstream_status
        if entry is None:
            return None
        return Fetched(entry, self.plan.key, "CACHE", upstream_status=status, stale=True, replaced_stale=True, forwarded=True)

    async def _look_again(self, trail: Record) -> Fetched | None:
        """Another request led the flight, and met what this one did not; what is fresh by now is the answer at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LOOK):
                for look in (self.hot, self.durable):
                    verdict = self.judge(await look(trail))
                    if isinstance(verdict, Fresh):
                        return self.fresh(verdict)
                    if self.met is not None:
                        break
        return None

    async def hot(self, trail: Record) -> Entry | Nothing:
        return await self._kitchen.tiers.hot(self.plan.key, trail)

    async def durable(self, trail: Record) -> Entry | Nothing:
        caching = self.plan.source.caching
        return await self._kitchen.tiers.durable(self.plan.key, caching.ttl, trail, grace=caching.grace)

    async def recall(self, found: Entry | None, trail: FlightTrail) -> Fetched | None:
        """What will do by now: `found` (the hot tier's word at the moment the lease was won), else the durable tier's."""
        return self._take(self.judge(found or Nothing.ABSENT)) or await self._recall_kept(found, trail)

    async def _recall_kept(self, found: Entry | None, trail: FlightTrail) -> Fetched | None:
        tiers, caching, key = self._kitchen.tiers, self.plan.source.caching, self.plan.key
        kept = await tiers.kept(key, trail)
        if isinstance(kept, Nothing):
            return None
        if found is None or found.status >= 400 or kept.entry.created_at > found.created_at + _ROUNDED:
            await tiers.promote(key, kept.entry, caching.ttl, trail, grace=caching.grace, over=found is not None)
        self._kept = kept
        return self._take(self.judge(kept.entry))

    async def reread(self, trail: FlightTrail) -> Fetched | None:
        """What another instance has just stored."""
        return self._take(self.judge(await self.hot(trail))) or self._take(self.judge(await self.durable(trail)))

    async def fetch(self, trail: Record, remaining: Callable[[], float]) -> Fetched:
        """Buy and keep, for a caller who may leave at any moment."""
        bought = await self.buy(trail, remaining)
        # In a task of its own: a deadline that strikes now must not throw away an answer that is paid for.
        kept = await asyncio.shield(self._kitchen.background.spawn("store", self._kept_or_failed(bought, trail)))
        if isinstance(kept, UpstreamError):
            raise kept
        return kept

    async def buy(self, trail: Record, remaining: Callable[[], float]) -> Bought:
        """Call the upstream: the only place where money is spent."""
        kitchen = self._kitchen
        kitchen.check_spool()
        started_at = kitchen.now()
        try:
            reply = await self._ask(trail, remaining)
        except UpstreamError as error:
            await self._remember(error, trail)
            raise
        if reply.status == 304 and self._kept is not None:
            entry, item = self._kept
            return Bought(msgspec.structs.replace(item, validated_at=kitchen.now()), started_at, entry.value)
        return Bought(self._item(reply), started_at)

    async def _ask(self, trail: Record, remaining: Callable[[], float]) -> Reply:
        """The upstream's answer, or 304 where it is what is kept already.

        A refresh asks for the whole answer, like a browser's forced reload: who doubts what is kept can't have it confirmed.
        """
        calls, kept = self._kitchen.calls, self._kept
        if kept is None or self.wants.mode == "refresh":
            return await calls.call(self.plan, remaining, trail)
        reply = await calls.call(self.plan, remaining, trail, conditions_of(kept.item, self.plan.source.request))
        if reply.status == 304 and not confirms(kept.item, reply.headers):
            return await calls.call(self.plan, remaining, trail)
        return reply

    def _item(self, reply: Reply) -> DataObject:
        source, project = self.plan.source, self.plan.project
        known = {} if reply.redirected else reply.headers  # validators of the URL that was asked
        return DataObject(
            self._kitchen.new_object_id(),
            source.data_source_id,
            self.plan.key,
            reply.body,
            self._kitchen.now(),
            reply.headers.get("content-type"),
            source.request.response_type,
            reply.status,
            reusable=admit(reply.status, reusable=source.caching.reusable) is Admission.STORE,
            project_id=None if project is None else UUID(project),
            etag=etag_of(known),
            last_modified=last_modified_of(known),
        )

    async def _remember(self, error: UpstreamError, trail: Record) -> None:
        """The source's negative_ttl, but not in the place of an entry that is worth more. Before the lease is given back."""
        caching, status = self.plan.source.caching, error.upstream_status
        if error.code != "UPSTREAM_STATUS" or status is None or not caching.reusable or isinstance(error, TokenError):
            return
        seconds, met = caching.negative_ttl.get(status, 0.0), self.met
        if seconds and not (met is not None and outlasts(met, status, self._kitchen.now(), caching)):
            await self._kitchen.tiers.remember(self.plan.key, status, seconds, trail)

    async def _kept_or_failed(self, bought: Bought, trail: Record) -> Fetched | UpstreamError:
        """`keep` for a task that its caller may have left: an answer that can't be read is the caller's news, and no crash."""
        try:
            return await self.keep(bought, trail)
        except UpstreamError as error:
            return error

    async def keep(self, bought: Bought, trail: Record) -> Fetched:
        """Shape and store what is paid for; nothing may cancel it. Raises PARSE_ERROR, and nothing is stored then."""
        item, started_at, renewed = bought
        entry = Entry(item.object_id, item.confirmed_at, await shaped(item) if renewed is None else renewed)
        caching = self.plan.source.caching
        await self._kitchen.tiers.store(item, entry, caching.ttl, trail, grace=caching.grace)
        met = self.met is not None
        if renewed is None:
            return Fetched(entry, self.plan.key, "REQUEST", started_at, item.created_at, item.status, replaced_stale=met)
        times = started_at, item.confirmed_at, 304
        return Fetched(entry, self.plan.key, "CACHE", *times, replaced_stale=met, forwarded=True, revalidated=True)

    def landed(self, outcome: Fetched | EdgeError) -> None:
        """The flight's outcome, whoever called the upstream: a failure beside a stale entry is not tried again at once."""
        key, backoff = self.plan.key, self._kitchen.backoff
        if not isinstance(outcome, EdgeError):
            if not outcome.stale:
                backoff.succeeded(key)
        elif self.met is not None and outcome.kind.source != "caller" and not isinstance(outcome, RememberedStatus):
            after = outcome.retry_after if isinstance(outcome, UpstreamError) else None
            backoff.failed(key, after, excused=excused(outcome))
