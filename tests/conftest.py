"""What every test may use. Servers are started once per worker process, when the first test asks for them."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker_edge.settings import Settings
from tests import servers
from tests.edges import Bureau, InProcess, in_process, settings

# As `serve` does (broker_edge/server.py): hundreds of edges come and go, and looking for cycles so often takes a tenth of it all.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Valkey]:
    """A Redis that all tests of this process share: they tell themselves apart by their keys."""
    with servers.valkey() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[servers.Cluster]:
    """Three primaries without replicas."""
    with servers.valkey_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_watched() -> Iterator[servers.Watched]:
    """A primary behind a Sentinel."""
    with servers.watched() as watched:
        yield watched


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Postgres]:
    with servers.postgres() as server:
        yield server


@pytest.fixture
async def bureau() -> AsyncIterator[Bureau]:
    async with Bureau().running() as running:
        yield running


@pytest.fixture(params=["embedded", "servers"])
def backends(request: pytest.FixtureRequest, tmp_path: Path, bureau: Bureau) -> Settings:
    """Settings of the embedded default, and of Redis with Postgres."""
    if request.param == "embedded":
        return settings(tmp_path, bureau.port)
    redis = request.getfixturevalue("redis_server")
    postgres = request.getfixturevalue("postgres_server")
    return settings(tmp_path, bureau.port, redis_url=redis.url, database_url=postgres.create(migrated=True))


@pytest.fixture
async def edge(backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends) as running:
        yield running
