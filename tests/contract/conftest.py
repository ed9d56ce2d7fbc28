"""Databases for the suites that run over SQLite and Postgres alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_durable import close_engine, make_engine
from broker_edge.settings import load
from tests.servers import bring_up


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a migrated database that the tests of a module share: they tell themselves apart by ids and names."""
    sqlite = f"sqlite:///{tmp_path_factory.mktemp('database') / 'edge.sqlite3'}"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_server").create(migrated=True)
    driven = load({}, database_url=url).database
    if request.param == "sqlite":
        asyncio.run(bring_up(driven))
    return driven


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(database)
    yield engine
    await close_engine(engine)
