"""The near tiers of several instances: they serve what is hot, and hear of a refresh, a purge, a flush and a break at once."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from redis.asyncio import Redis

from broker_edge.backends.near import NearCache
from broker_edge.core.exchange import Entry
from tests.edges import Bureau, InProcess, in_process, json_reply, request, settings, spec
from tests.scenarios.herds import fleet, until
from tests.servers import Cluster, Postgres, Valkey, valkey


class Hire(Protocol):
    def __call__(self, size: int, **values: Any) -> AbstractAsyncContextManager[list[InProcess]]: ...


@pytest.fixture
def hire(tmp_path: Path, bureau: Bureau, own_redis: Valkey, postgres_server: Postgres) -> Hire:
    """So many instances over one Redis and one database of their own."""
    bureau._answer = lambda _: json_reply({"call": len(bureau.calls)})

    def hired(size: int, **values: Any) -> AbstractAsyncContextManager[list[InProcess]]:
        return fleet(size, tmp_path, bureau, own_redis, postgres_server.create(migrated=True), **values)

    return hired


@pytest.fixture
def own_redis() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture
async def redis(own_redis: Valkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(own_redis.url) as client:
        yield client


def near_of(edge: InProcess) -> NearCache:
    assert edge.edge.tracking is not None
    return edge.edge.tracking.near


async def warm(edges: list[InProcess], source: dict[str, Any]) -> str:
    """Every near tier holds the answer; its key."""
    key = str((await edges[0].post(request(source))).json()["key"])
    for edge in edges:
        await news_read(edge)
        await until(partial(_is_near, edge, source, key))
    return key


async def news_read(edge: InProcess) -> None:
    """Everything that was stored before has been heard of: the news come in their order."""
    near, marker = near_of(edge), uuid.uuid4().hex
    entry = Entry(uuid.uuid4(), 0.0, b"1")
    await until(lambda: near.is_open)
    near.offer(marker, entry, near.begin(marker))
    await edge.edge.hot.put(marker, entry, 60)
    await until(lambda: near.get(marker) is None)


async def _is_near(edge: InProcess, source: dict[str, Any], key: str) -> bool:
    await edge.post(request(source))
    return near_of(edge).get(key) is not None


async def lookups(edge: InProcess, tier: str, result: str = "hit") -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    sample = f'broker_edge_tier_lookups_total{{result="{result}",tier="{tier}"}} '
    return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))


async def test_what_is_near_is_served_without_a_word_to_redis(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        await warm([edge], source)
        hot, gets = await lookups(edge, "hot"), (await redis.info("commandstats"))["cmdstat_get"]["calls"]
        near = await lookups(edge, "near")
        answers = [await edge.post(request(source)) for _ in range(5)]
        assert {answer.json()["origin"] for answer in answers} == {"CACHE"}
        assert all(answer.headers["cache-status"].startswith("broker-edge; hit; ttl=3") for answer in answers)
        assert await lookups(edge, "near") == near + 5
        assert await lookups(edge, "hot") == hot
        assert (await redis.info("commandstats"))["cmdstat_get"]["calls"] == gets
        assert await gauge(edge) == near_of(edge).bytes_held > 0


async def gauge(edge: InProcess) -> float:
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("broker_edge_near_tier_bytes "))


async def test_a_refresh_on_one_instance_is_seen_by_the_others_within_a_tenth_of_a_second(hire: Hire, bureau: Bureau) -> None:
    async with hire(3) as edges:
        source = spec(bureau.url)
        took = []
        for turn in range(9):
            await warm(edges, source)
            refreshed = (await edges[turn % 3].post(request(source, mode="refresh"))).json()
            assert refreshed["origin"] == "REQUEST"
            began = time.monotonic()
            for edge in edges:
                await until(partial(_answers, edge, source, refreshed["data_object_id"]))
            took.append(time.monotonic() - began)
        assert statistics.median(took) <= 0.1
        assert len(bureau.calls) == 10


async def _answers(edge: InProcess, source: dict[str, Any], object_id: str) -> bool:
    answer = (await edge.post(request(source))).json()
    return bool(answer["data_object_id"] == object_id)


async def test_a_refresh_is_seen_at_once_by_the_instance_that_made_it(hire: Hire, bureau: Bureau) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        for _ in range(20):
            await warm([edge], source)
            refreshed = (await edge.post(request(source, mode="refresh"))).json()
            after = (await edge.post(request(source))).json()
            assert (after["data_object_id"], after["origin"]) == (refreshed["data_object_id"], "CACHE")


async def test_a_purge_in_redis_is_seen_by_all_within_a_tenth_of_a_second(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(3) as edges:
        source = spec(bureau.url)
        took = []
        for _ in range(9):
            key = await warm(edges, source)
            await redis.delete(f"be:{{{key}}}")
            began = time.monotonic()
            for edge in edges:
                await until(partial(_is_gone, edge, key))
            took.append(time.monotonic() - began)
        assert statistics.median(took) <= 0.1
        before = [await lookups(edge, "durable") + await lookups(edge, "hot") for edge in edges]
        answers = [await edge.post(request(source)) for edge in edges]
        assert {answer.json()["origin"] for answer in answers} == {"CACHE"}
        after = [await lookups(edge, "durable") + await lookups(edge, "hot") for edge in edges]
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]
        assert len(bureau.calls) == 1


def _is_gone(edge: InProcess, key: str) -> bool:
    return near_of(edge).get(key) is None


async def test_a_request_that_accepts_nothing_old_is_not_answered_from_what_is_near(hire: Hire, bureau: Bureau) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        await warm([edge], source)
        assert (await edge.post(request(source, max_age=0))).json()["origin"] == "REQUEST"


async def test_an_entry_near_is_never_served_past_its_ttl(hire: Hire, bureau: Bureau) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        key = await warm([edge], source)
        held = near_of(edge).get(key)
        assert held is not None
        aged = Entry(held.object_id, held.created_at - 3601, held.value)
        near_of(edge).offer(key, aged, near_of(edge).begin(key))
        answer = await edge.post(request(source))
        assert answer.json()["value"] == {"call": 1}  # what the hot tier holds is fresh
        assert 0 <= int(answer.headers["age"]) < 3600


async def test_a_killed_connection_empties_the_near_tier_and_redis_serves(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        key = await warm([edge], source)
        (listener,) = [client for client in await redis.client_list() if "t" in client["flags"]]
        hot = await lookups(edge, "hot")
        await redis.client_kill_filter(_id=listener["id"])
        await until(lambda: not near_of(edge).is_open)
        assert near_of(edge).get(key) is None
        assert (await edge.post(request(source))).json()["origin"] == "CACHE"
        assert await lookups(edge, "hot") == hot + 1
        await warm([edge], source)
        assert len(bureau.calls) == 1


async def test_when_redis_is_gone_nothing_is_served_from_near(hire: Hire, bureau: Bureau, own_redis: Valkey) -> None:
    async with hire(1) as (edge,):
        source = spec(bureau.url)
        key = await warm([edge], source)
        own_redis.kill()
        await until(lambda: not near_of(edge).is_open)
        assert near_of(edge).get(key) is None
        near = await lookups(edge, "near")
        answer = await edge.post(request(source))
        assert (answer.status, answer.json()["origin"]) == (200, "CACHE")
        assert await lookups(edge, "near") == near


async def test_a_setting_turns_it_off(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(1, near_tier_bytes=0) as (edge,):
        assert edge.edge.tracking is None
        source = spec(bureau.url)
        for _ in range(4):
            await edge.post(request(source))
        assert (await lookups(edge, "near"), await lookups(edge, "hot")) == (0, 3)
        assert [client for client in await redis.client_list() if "t" in client["flags"]] == []


async def test_the_embedded_default_has_none(tmp_path: Path, bureau: Bureau) -> None:
    async with in_process(settings(tmp_path, bureau.port)) as edge:
        assert edge.edge.tracking is None
        source = spec(bureau.url)
        for _ in range(3):
            await edge.post(request(source))
        assert (await lookups(edge, "near"), await lookups(edge, "hot")) == (0, 2)


async def test_over_a_redis_cluster_there_is_none(tmp_path: Path, bureau: Bureau, redis_cluster: Cluster) -> None:
    async with in_process(settings(tmp_path, bureau.port, redis_url=redis_cluster.url)) as edge:
        assert edge.edge.tracking is None
        source = spec(bureau.url)
        for _ in range(3):
            await edge.post(request(source))
        assert (await lookups(edge, "near"), await lookups(edge, "hot")) == (0, 2)


async def test_after_a_storm_of_changes_every_instance_answers_the_last_one(hire: Hire, bureau: Bureau) -> None:
    async with hire(3) as edges:
        source = spec(bureau.url)
        await warm(edges, source)
        done = asyncio.Event()
        seen: list[list[int]] = [[] for _ in edges]

        async def read(number: int) -> None:
            while not done.is_set():
                seen[number].append((await edges[number].post(request(source))).json()["value"]["call"])
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                for _ in range(4):
                    group.create_task(read(number))
            for turn in range(30):
                await edges[turn % 3].post(request(source, mode="refresh"))
            done.set()
        final = len(bureau.calls)
        for edge in edges:
            await until(partial(_is_at, edge, source, final))
            assert await _is_at(edge, source, final)
        assert all(len(set(answers)) > 1 for answers in seen)


async def _is_at(edge: InProcess, source: dict[str, Any], call: int) -> bool:
    return bool((await edge.post(request(source))).json()["value"] == {"call": call})
