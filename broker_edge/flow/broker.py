"""The whole story of a fetch, top to bottom.

Fresh: reply. Stale but good enough: reply, and one refill goes on behind. Otherwise: join the flight of the key; whoever leads
it recalls what the tiers hold by then, or calls the upstream and keeps the answer, and everybody who waits gets it. Where it
fails, a stale answer may stand in.

In steps, so that a hit needs no task: `ask`, then `at_hand`, then `look` where a callback will do, and `bring` for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from broker_edge.core.exchange import Entry, Fetched, Freshness, Variables
from broker_edge.core.freshness import Fresh, Negative, Stale, StaleUsable, Verdict
from broker_edge.core.plan import make_plan
from broker_edge.core.source import DataSource
from broker_edge.core.trail import Trail
from broker_edge.errors import CallerError, EdgeError, UpstreamError
from broker_edge.flow.flights import Flights
from broker_edge.flow.kitchen import Kitchen
from broker_edge.flow.refill import Refill
from broker_edge.flow.tiers import Nothing


class FetchRequest(msgspec.Struct, frozen=True):
    """What a caller asks for; `env` may hold secrets. `generation` is a named source's, 0 where the spec came along."""

    source: DataSource
    params: Variables
    env: Variables
    wants: Freshness
    generation: int = 0

    def __repr__(self) -> str:
        return f"FetchRequest({self.source.data_source_id!r}, {self.wants!r})"


class Order(msgspec.Struct, frozen=True):
    """A request with its plan; `deadline` by the loop's clock bounds all that is done for it."""

    refill: Refill
    deadline: float

    @property
    def reads_cache(self) -> bool:
        return self.refill.plan.source.caching.reusable and self.refill.wants.mode != "refresh"


class Broker:
    def __init__(self, kitchen: Kitchen, flights: Flights) -> None:
        self._kitchen = kitchen
        self._tiers = kitchen.tiers
        self._flights = flights

    def ask(self, request: FetchRequest, trail: Trail) -> Order:
        """The request with its key; raises CallerError. The spec's time-out bounds all that follows, counted from here."""
        plan = make_plan(request.source, request.params, request.env, project=trail.project, generation=request.generation)
        trail.key = plan.key
        if plan.source.price is not None:
            trail.price = plan.source.price
        return Order(Refill(self._kitchen, plan, request.wants), asyncio.get_running_loop().time() + plan.source.timeout)

    def at_hand(self, order: Order, trail: Trail) -> Fetched | None:
        """What this process holds ready, without waiting for anybody."""
        if not order.reads_cache:
            return None
        entry = self._tiers.near(order.refill.plan.key, trail)
        return None if entry is None else self.served(order, entry)

    def look(self, order: Order, trail: Trail, then: Callable[[Entry | Nothing], None]) -> bool:
        """Call `then` with the hot tier's word, without a task; False where the request's deadline might come first."""
        if not order.reads_cache or order.refill.plan.source.timeout < self._tiers.slowest_look:
            return False
        self._tiers.look(order.refill.plan.key, trail, then)
        return True

    def served(self, order: Order, found: Entry | Nothing) -> Fetched | None:
        """What a tier holds, where the request takes it as it is; raises RememberedStatus."""
        return order.refill.fresh(order.refill.judge(found))

    async def bring(self, order: Order, trail: Trail, found: Entry | Nothing | None = None) -> Fetched:
        """The answer, or EdgeError; `found`: the hot tier's word where it has been asked."""
        refill, deadline = order.refill, order.deadline
        self._kitchen.calls.expect(refill.plan.source.timeout)
        if not refill.plan.source.caching.reusable:
            return await self._fetch_alone(refill, deadline, trail)
        if refill.wants.mode == "refresh":
            return await self._refresh(refill, deadline, trail)

        verdict = await self._look_up(refill, deadline, trail, found)
        fetched = refill.accept(verdict)
        if fetched is None:
            if refill.wants.mode == "cache_only":
                raise CallerError("NOT_CACHED", "the cache holds no answer that this request accepts")
            trail.why = _why(verdict)
            fetched = await self._flown(refill, deadline, trail)
        if fetched.stale and not fetched.forwarded:
            trail.why = "stale"
            self._refill_behind(refill, deadline, trail)
        return fetched

    async def _flown(self, refill: Refill, deadline: float, trail: Trail) -> Fetched:
        """What the flight of the key brings, or a stale answer where it fails and the source prefers that (RFC 5861)."""
        plan, wants = refill.plan, refill.wants
        try:
            fetched = await self._flights.join(plan.key, plan.env, deadline, trail, refill)
            if fetched.origin == "CACHE" and not fetched.revalidated:
                # The flight recalled what will do for its leader, who may accept older answers than this request does.
                strict = Refill(self._kitchen, plan, msgspec.structs.replace(wants, mode="refresh"))
                fetched = refill.accept(refill.judge(fetched.entry)) or await self._refresh(strict, deadline, trail)
        except EdgeError as error:
            instead = await refill.instead_of(error, trail)
            if instead is None:
                raise
            fetched = instead
        if fetched.replaced_stale and trail.why == "uri-miss":
            trail.why = "stale"
        return fetched

    def _refill_behind(self, refill: Refill, deadline: float, trail: Trail) -> None:
        """One refill behind a stale reply, unless the last one has just failed."""
        plan = refill.plan
        if refill.wants.mode == "live" and self._kitchen.backoff.lets(plan.key):
            behind = Refill.behind(self._kitchen, plan, refill.wants)
            self._flights.start(plan.key, plan.env, deadline, trail, behind)

    async def _look_up(self, refill: Refill, deadline: float, trail: Trail, found: Entry | Nothing | None) -> Verdict:
        """The hot tier's word; the durable tier is asked here only for what a flight would not look for."""
        beyond_a_flight = refill.wants.mode == "cache_only" or refill.wants.max_stale > 0
        if found is not None and not beyond_a_flight:
            return refill.judge(found)
        try:
            async with asyncio.timeout_at(deadline):
                verdict = refill.judge(await refill.hot(trail) if found is None else found)
                if beyond_a_flight and not isinstance(verdict, Fresh | StaleUsable | Negative):
                    return refill.judge(await refill.durable(trail))
        except TimeoutError:
            raise _timed_out() from None
        return verdict

    async def _refresh(self, refill: Refill, deadline: float, trail: Trail) -> Fetched:
        """Skip the cache, but share the call with whoever asks for the same refresh meanwhile."""
        trail.why = "request"
        return await self._flights.join(f"{refill.plan.key}:refresh", refill.plan.env, deadline, trail, refill)

    async def _fetch_alone(self, refill: Refill, deadline: float, trail: Trail) -> Fetched:
        """A source whose answers are never reused: every request is its own call."""
        if refill.wants.mode == "cache_only":
            raise CallerError("NOT_CACHED", "answers of this data source are never reused")
        trail.why = "bypass"
        try:
            async with asyncio.timeout_at(deadline):
                return await refill.fetch(trail, lambda: deadline - asyncio.get_running_loop().time())
        except TimeoutError:
            raise _timed_out() from None


def _timed_out() -> UpstreamError:
    return UpstreamError("TIMEOUT", "the data source did not answer within source.timeout")


def _why(verdict: Verdict) -> str:
    """RFC 9211 section 2.2: why the request goes forward."""
    if isinstance(verdict, Stale):
        return "stale" if verdict.reason == "ttl" else "request"
    return "uri-miss"
