"""Health, readiness and metrics: ordinary routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from aiocache import SimpleMemoryCache
from fastapi import APIRouter, Response

from broker_edge import __version__
from broker_edge.api.schemas import Dependency, Health, Readiness
from broker_edge.errors import EdgeError
from broker_edge.telemetry.metrics import CONTENT_TYPE, Metrics

State = Literal["ok", "degraded", "down"]
_KEPT = 1.0  # seconds that an answer of the dependencies is good for, so that probes can't become load
_PATIENCE = 2.0  # seconds for one dependency to answer
_DOWN: dict[int | str, dict[str, Any]] = {503: {"model": Readiness, "description": "It is down: it can't serve"}}


@dataclass(frozen=True, slots=True)
class Probe:
    """`check` raises EdgeError where the dependency is down; `vital` ones make the edge not ready."""

    kind: str
    check: Callable[[], Awaitable[State]]
    vital: bool = False


class Prober:
    """Asks every dependency at most once a second, whoever wants to know."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes
        self._kept = SimpleMemoryCache()
        self._lock = asyncio.Lock()
        self.up: dict[str, bool] = dict.fromkeys(probes, True)

    def is_up(self, name: str) -> float:
        return float(self.up[name])

    async def report(self) -> Readiness:
        async with self._lock:
            report: Readiness | None = await self._kept.get("report")
            if report is None:
                report = await self._ask()
                await self._kept.set("report", report, ttl=_KEPT)
            return report

    async def _ask(self) -> Readiness:
        states = await asyncio.gather(*(_state(probe) for probe in self._probes.values()))
        named = dict(zip(self._probes, states, strict=True))
        self.up = {name: state != "down" for name, state in named.items()}
        down = any(named[name] == "down" for name, probe in self._probes.items() if probe.vital)
        overall: State = "down" if down else "ok" if all(state == "ok" for state in states) else "degraded"
        return Readiness(
            status=overall,
            dependencies={name: Dependency(status=named[name], kind=probe.kind) for name, probe in self._probes.items()},
        )


async def _state(probe: Probe) -> State:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await probe.check()
    except (EdgeError, TimeoutError):
        return "down"


def ops_routes(readiness: Prober, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Is the process alive? Touches nothing")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="Can it serve? Reports each dependency; degraded is still ready",
        response_model=Readiness,
        responses=_DOWN,
    )
    async def readyz(response: Response) -> Readiness:
        report = await readiness.report()
        response.status_code = 503 if report.status == "down" else 200
        return report

    @router.get("/health", summary="Summary")
    async def health() -> Health:
        status = (await readiness.report()).status
        return Health(service="broker-edge", status=status, version=__version__, timestamp=datetime.now(UTC).isoformat())

    @router.get("/metrics", summary="Prometheus exposition text", response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router
