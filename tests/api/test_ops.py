"""Health, readiness and metrics as probes see them, with dependencies that are there and that are not."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from broker_edge import __version__
from broker_edge.api.ops import Probe, Prober, State
from broker_edge.errors import TierBroken
from broker_edge.settings import Settings
from tests import servers
from tests.edges import Bureau, InProcess, in_process, request, settings, spec


def _kinds(backends: Settings) -> dict[str, str]:
    embedded = backends.redis_url is None
    return {
        "hot": "memory" if embedded else "redis",
        "durable": "sqlite" if embedded else "postgresql",
        "journal": "spool",
        "vault": "key-ring",
    }


async def test_healthz_says_that_the_process_lives(edge: InProcess) -> None:
    answer = await edge.get("/healthz")
    assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_readyz_names_each_dependency(edge: InProcess, backends: Settings) -> None:
    answer = await edge.get("/readyz")
    assert answer.status == 200
    expected = {name: {"status": "ok", "kind": kind} for name, kind in _kinds(backends).items()}
    assert answer.json() == {"status": "ok", "dependencies": expected}


async def test_health_is_the_summary(edge: InProcess) -> None:
    answer = await edge.get("/health")
    summary = answer.json()
    assert (answer.status, summary["service"], summary["status"]) == (200, "broker-edge", "ok")
    assert summary["version"] == __version__
    assert datetime.fromisoformat(summary["timestamp"]).tzinfo is not None
    assert summary.keys() == {"service", "status", "version", "timestamp"}


async def test_without_redis_the_edge_is_degraded_and_still_serves(tmp_path: Path, bureau: Bureau) -> None:
    with servers.valkey() as redis:
        async with in_process(settings(tmp_path, bureau.port, redis_url=redis.url)) as edge:
            redis.kill()
            answer = await edge.get("/readyz")
            assert (answer.status, answer.json()["status"]) == (200, "degraded")
            assert answer.json()["dependencies"]["hot"] == {"status": "down", "kind": "redis"}
            assert answer.json()["dependencies"]["durable"]["status"] == "ok"
            assert (await edge.get("/health")).json()["status"] == "degraded"
            assert 'broker_edge_dependency_up{dependency="hot"} 0.0' in (await edge.get("/metrics")).body.decode()
            assert (await edge.post(request(spec(bureau.url)))).status == 200


async def test_without_the_database_the_edge_is_degraded_and_still_serves(
    tmp_path: Path, bureau: Bureau, postgres_server: servers.Postgres
) -> None:
    url = postgres_server.create(migrated=True)
    async with in_process(settings(tmp_path, bureau.port, database_url=url)) as edge:
        with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(url.rpartition("/")[2])))
        answer = await edge.get("/readyz")
        assert (answer.status, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["dependencies"]["durable"] == {"status": "down", "kind": "postgresql"}
        assert (await edge.post(request(spec(bureau.url)))).status == 200


async def test_a_journal_that_can_be_written_no_more_makes_the_edge_not_ready() -> None:
    async def full() -> State:
        raise TierBroken("the spool is full")

    report = await Prober({"journal": Probe("spool", full, vital=True)}).report()
    assert (report.status, report.dependencies["journal"].status) == ("down", "down")


async def test_dependencies_are_asked_once_for_many_probes() -> None:
    asked = 0

    async def check() -> State:
        nonlocal asked
        asked += 1
        return "ok"

    prober = Prober({"hot": Probe("memory", check)})
    for _ in range(20):
        await prober.report()
    assert asked <= 2


async def test_metrics_are_prometheus_text(edge: InProcess) -> None:
    answer = await edge.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
async def test_operations_leave_no_audit_row(edge: InProcess, path: str) -> None:
    await edge.get(path)
    assert await edge.rows() == []
