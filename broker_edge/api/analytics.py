"""What a data source was asked, what that cost and what the cache saved, per day (UTC): routes in the predecessor's shapes.

Rows under the same id in another project don't count: nobody sees another project's figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from broker_edge.api.problems import problems
from broker_edge.core.analytics import Day, Period, cache_stats, metrics, period, usage
from broker_edge.core.money import NO_CURRENCY
from broker_edge.ports import Analytics

_MOST_RUNS: Final = 100
_FORMAT: Final = {"format": "date"}
First = Annotated[
    str | None, Query(alias="start_date", description="UTC, included; 30 days before the end", json_schema_extra=_FORMAT)
]
Last = Annotated[str | None, Query(alias="end_date", description="UTC, included; today", json_schema_extra=_FORMAT)]
Run = Annotated[UUID | None, Query(description="the run that `money_by_run` tells of; the other figures are of all runs")]
Known = Callable[[str | None, UUID], Awaitable[Any]]


class DateCount(BaseModel):
    date: date
    count: int
    value: int


class DateValue(BaseModel):
    date: date
    value: float


class Spending(BaseModel):
    """Amounts are decimals."""

    currency: str | None = Field(description=f"ISO 4217; `{NO_CURRENCY}` where the source names none")
    calls: int = Field(description="calls of the upstream, retries included")
    spent: str
    saved_by_cache: str
    saved_by_coalescing: str


class DateSpending(Spending):
    date: date


class RunSpending(Spending):
    run_id: UUID


class Usage(BaseModel):
    requests_by_date: list[DateCount]
    money: list[Spending] = Field(description="in total; one entry for each currency")
    money_by_date: list[DateSpending]
    money_by_run: list[RunSpending] = Field(
        description=f"the latest {_MOST_RUNS} runs that cost or saved something, or `run_id`'s"
    )


class PerformanceMetrics(BaseModel):
    avg_response_time_by_date: list[DateValue] = Field(description="milliseconds of an upstream call")
    error_rate_by_date: list[DateValue] = Field(description="per cent of all requests")


class CacheStatistics(BaseModel):
    cache_hit_ratio_by_date: list[DateValue] = Field(description="per cent of the answers with a value")


class Figures:
    """The handlers; `known` raises CallerError DATA_SOURCE_NOT_FOUND where the project has no such source."""

    def __init__(self, known: Known, analytics: Analytics, now: Callable[[], float]) -> None:
        self._known = known
        self._analytics = analytics
        self._now = now

    async def usage(
        self,
        data_source_id: UUID,
        start: First = None,
        end: Last = None,
        project_id: UUID | None = None,
        run_id: Run = None,
    ) -> dict[str, Any]:
        """Requests per day, and money: in total, per day and per run."""
        over = await self._over(data_source_id, start, end, project_id)
        days = await self._analytics.by_day(data_source_id, project_id, over)
        return usage(days, await self._analytics.by_run(data_source_id, project_id, over, run_id, _MOST_RUNS))

    async def metrics(
        self, data_source_id: UUID, start: First = None, end: Last = None, project_id: UUID | None = None
    ) -> dict[str, Any]:
        """Time of upstream calls and rate of failures per day."""
        return metrics(await self._days(data_source_id, start, end, project_id))

    async def cache_stats(
        self, data_source_id: UUID, start: First = None, end: Last = None, project_id: UUID | None = None
    ) -> dict[str, Any]:
        """Share of the answers that came from the cache per day."""
        return cache_stats(await self._days(data_source_id, start, end, project_id))

    async def _days(self, data_source_id: UUID, start: str | None, end: str | None, project_id: UUID | None) -> Sequence[Day]:
        over = await self._over(data_source_id, start, end, project_id)
        return await self._analytics.by_day(data_source_id, project_id, over)

    async def _over(self, data_source_id: UUID, start: str | None, end: str | None, project_id: UUID | None) -> Period:
        over = period(start, end, datetime.fromtimestamp(self._now(), UTC).date())
        await self._known(None if project_id is None else str(project_id), data_source_id)
        return over


def analytics_routes(known: Known, analytics: Analytics, now: Callable[[], float]) -> APIRouter:
    router = APIRouter(prefix="/data-sources/{data_source_id}", tags=["analytics"])
    figures, refusals = Figures(known, analytics, now), problems(404)
    router.get("/usage", summary="Usage and money", response_model=Usage, responses=refusals)(figures.usage)
    router.get("/metrics", summary="Performance", response_model=PerformanceMetrics, responses=refusals)(figures.metrics)
    router.get("/cache-stats", summary="Cache hits", response_model=CacheStatistics, responses=refusals)(figures.cache_stats)
    return router
