"""The whole story of a fetch, top to bottom.

Fresh: reply. Stale but good enough: reply, and one refill goes on behind. Otherwise: join the flight of the key; whoever leads
it recalls what the tiers hold by then, or calls the upstream and keeps the answer, and everybody who waits gets it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from broker_edge.core.exchange import Fetched, Freshness, Variables
from broker_edge.core.freshness import Fresh, Stale, StaleUsable, Verdict
from broker_edge.core.plan import make_plan
from broker_edge.core.source import DataSource
from broker_edge.core.trail import Trail
from broker_edge.errors import CallerError, UpstreamError
from broker_edge.flow.flights import Flights
from broker_edge.flow.refill import Kitchen, Refill


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What a caller asks for; `env` may hold secrets."""

    source: DataSource
    params: Variables = field(repr=False)
    env: Variables = field(repr=False)
    wants: Freshness


class Broker:
    def __init__(self, kitchen: Kitchen, flights: Flights) -> None:
        self._kitchen = kitchen
        self._flights = flights

    async def fetch(self, request: FetchRequest, trail: Trail) -> Fetched:
        """The answer to one request, or EdgeError; the spec's time-out bounds all of it."""
        plan = make_plan(request.source, request.params, request.env, project=trail.project)
        trail.key = plan.key
        refill = Refill(self._kitchen, plan, request.wants)
        deadline = asyncio.get_running_loop().time() + plan.source.timeout
        if not plan.source.caching.reusable:
            return await self._fetch_alone(refill, deadline, trail)
        if request.wants.mode == "refresh":
            return await self._refresh(refill, deadline, trail)

        verdict = await self._look_up(refill, deadline, trail)
        if isinstance(verdict, Fresh):
            return Fetched(verdict.entry, plan.key, "CACHE")
        if isinstance(verdict, StaleUsable):
            trail.why = "stale"
            if request.wants.mode == "live":
                self._flights.start(plan.key, plan.env, deadline, trail, refill)
            return Fetched(verdict.entry, plan.key, "CACHE", stale=True)
        if request.wants.mode == "cache_only":
            raise CallerError("NOT_CACHED", "the cache holds no answer that this request accepts")

        trail.why = _why(verdict)
        fetched = await self._flights.join(plan.key, plan.env, deadline, trail, refill)
        if fetched.replaced_stale and trail.why == "uri-miss":
            trail.why = "stale"
        if fetched.origin == "CACHE" and not isinstance(refill.judge(fetched.entry), Fresh):
            # The flight recalled what was good enough for its leader, who accepts older answers than this request does.
            strict = Refill(self._kitchen, plan, replace(request.wants, mode="refresh"))
            return await self._refresh(strict, deadline, trail)
        return fetched

    async def _look_up(self, refill: Refill, deadline: float, trail: Trail) -> Verdict:
        """The hot tier's word; the durable tier is asked here only for what a flight would not look for."""
        beyond_a_flight = refill.wants.mode == "cache_only" or refill.wants.max_stale > 0
        try:
            async with asyncio.timeout_at(deadline):
                verdict = refill.judge(await refill.hot(trail))
                if beyond_a_flight and not isinstance(verdict, Fresh | StaleUsable):
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
