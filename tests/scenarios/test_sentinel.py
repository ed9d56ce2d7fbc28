"""Redis behind Sentinels: a failover costs errors while it lasts, and no restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.edges import Bureau, InProcess, in_process, settings, spec
from tests.edges import request as asking
from tests.scenarios.herds import until


@pytest.fixture
def own_watched() -> Iterator[servers.Watched]:
    """A primary with a replica that a test may kill."""
    with servers.watched(replicas=1) as watched:
        yield watched


async def _looked_up(edge: InProcess, result: str) -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    sample = f'broker_edge_tier_lookups_total{{result="{result}",tier="hot"}}'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


async def test_a_failover_is_survived_without_a_restart(tmp_path: Path, bureau: Bureau, own_watched: servers.Watched) -> None:
    chosen = settings(tmp_path, bureau.port, redis_url=own_watched.url, redis_timeout=1, near_tier_bytes=0)
    async with in_process(chosen) as edge:
        source = spec(f"{bureau.url}/{{{{ id }}}}")
        assert (await edge.post(asking(source, {"id": "kept"}))).json()["origin"] == "REQUEST"
        assert (await edge.post(asking(source, {"id": "kept"}))).json()["origin"] == "CACHE"
        assert await _looked_up(edge, "hit") == 1
        primary, replica = own_watched.servers
        primary.kill()
        during = [await edge.post(asking(source, {"id": str(number)})) for number in range(3)]
        assert {answer.status for answer in during} == {200}
        await until(lambda: _is_hot(edge, source))
        assert servers.info(replica, "replication")["role"] == "master"
        await until(lambda: _hears(edge))
        assert len(bureau.calls) == 1 + 3


async def _hears(edge: InProcess) -> bool:
    fleet: Any = edge.edge.fleet
    return bool(fleet.hearing.is_set())


async def _is_hot(edge: InProcess, source: dict[str, Any]) -> bool:
    before = await _looked_up(edge, "hit")
    answer = await edge.post(asking(source, {"id": "kept"}))
    assert (answer.status, answer.json()["origin"]) == (200, "CACHE")
    return await _looked_up(edge, "hit") > before


@pytest.mark.parametrize("form", ["redis_cluster", "redis_watched"])
async def test_a_miss_and_a_hit_whatever_form_redis_has(
    request: pytest.FixtureRequest, tmp_path: Path, bureau: Bureau, form: str
) -> None:
    chosen = settings(tmp_path, bureau.port, redis_url=request.getfixturevalue(form).url, redis_timeout=20, near_tier_bytes=0)
    async with in_process(chosen) as edge:
        source = spec(f"{bureau.url}/{tmp_path.name}")
        origins = [(await edge.post(asking(source))).json()["origin"] for _ in range(2)]
        assert origins == ["REQUEST", "CACHE"]
        assert await _looked_up(edge, "hit") == 1
        ready = await edge.get("/readyz")
        assert ready.json()["dependencies"]["hot"] == {"status": "ok", "kind": "redis"}
