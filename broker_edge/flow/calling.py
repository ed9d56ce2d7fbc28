"""From a plan to the upstream's answer: what is sent, and who pays, settled at the last moment."""

from __future__ import annotations

from collections.abc import Callable

from broker_edge.core.exchange import Reply
from broker_edge.core.plan import Plan
from broker_edge.core.render import render
from broker_edge.core.trail import Record
from broker_edge.flow.upstream import Upstream


class Calls:
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.expect = upstream.expect

    async def call(self, plan: Plan, remaining: Callable[[], float], record: Record) -> Reply:
        """A 2xx answer, or EdgeError."""
        return await self._upstream.send(render(plan), plan.source.retry, remaining, record)
