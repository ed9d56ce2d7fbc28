"""The sample sources by name: there after the first start, left alone by the next, turned where the bureau has moved."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker_edge.backends.edge_client import EdgeClient, over_application
from broker_edge.demo.register import register
from broker_edge.demo.requests import IDS
from tests.edges import in_process, settings

BUREAU, MOVED = "http://127.0.0.1:7001", "http://127.0.0.1:7002"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[EdgeClient]:
    async with in_process(settings(tmp_path)) as running, over_application(running.app, None) as edge:
        yield edge


async def listed(edge: EdgeClient, **query: Any) -> dict[str, Any]:
    return {record["data_source_id"]: record for record in await edge.call("GET", "/data-sources", **query)}


async def test_the_samples_are_published_under_their_ids(client: EdgeClient) -> None:
    await register(client, BUREAU)
    there = await listed(client)
    assert {record["name"]: source_id for source_id, record in there.items()} == IDS
    assert {record["status"] for record in there.values()} == {"PUBLISHED"}


async def test_registering_again_changes_nothing(client: EdgeClient) -> None:
    await register(client, BUREAU)
    before = await listed(client)
    await register(client, BUREAU)
    assert await listed(client) == before


async def test_a_bureau_that_moved_is_followed_again_and_again(client: EdgeClient) -> None:
    for bureau in (BUREAU, MOVED, BUREAU):
        await register(client, bureau)
        there = (await listed(client)).values()
        assert {record["name"] for record in there} == set(IDS)
        assert all(record["source"]["url"].startswith(f"{bureau}/") for record in there)
        assert {record["status"] for record in there} == {"PUBLISHED"}
    assert len(await listed(client, include_archived="true")) == 3 * len(IDS)
