"""Single flight across instances that share Redis, and what happens when an instance, or Redis itself, goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from redis.asyncio import Redis

from tests.edges import Answer, Bureau, InProcess, in_process, json_reply, request, settings, spec
from tests.scenarios.herds import PATIENCE, Gathering, fleet, process, servers_of, until
from tests.servers import Postgres, Valkey, valkey


class Hire(Protocol):
    def __call__(self, size: int, **values: Any) -> AbstractAsyncContextManager[list[InProcess]]: ...


@pytest.fixture
def hire(tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres) -> Hire:
    """So many instances over the shared Redis and a database of their own."""

    def hired(size: int, **values: Any) -> AbstractAsyncContextManager[list[InProcess]]:
        return fleet(size, tmp_path, bureau, redis_server, postgres_server.create(migrated=True), **values)

    return hired


@pytest.fixture
async def redis(redis_server: Valkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
def own_redis() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


async def key_of(edge: InProcess, source: dict[str, Any]) -> str:
    """The key under which the answer of `source` would lie."""
    answer = await edge.post(request(source, mode="cache_only"))
    assert answer.status == 404
    row = max(await edge.rows(), key=lambda row: row.created_at)
    return str(row.key)


async def somebody_waits(redis: Redis, key: str) -> None:
    async def hung() -> bool:
        return bool(await redis.exists(f"be:{{{key}}}:bell"))

    await until(hung)


async def count(edge: InProcess, sample: str) -> float:
    """The value of one sample of the exposition text, 0 where it is not there yet."""
    lines = (await edge.get("/metrics")).body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


async def test_an_instance_that_is_killed_while_it_leads_costs_one_further_call(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres
) -> None:
    shared = servers_of(redis_server, postgres_server)
    source = spec(bureau.url, timeout=100)
    bureau.gate.clear()
    async with process(tmp_path / "doomed", flight_lease="0.5", **shared) as doomed:
        doomed.start()
        await doomed.ready()
        chosen = settings(tmp_path / "other", bureau.port, flight_wait=100, **shared)
        async with in_process(chosen, migrated=False) as other, asyncio.TaskGroup() as group:
            left = group.create_task(_left_alone(f"{doomed.url}/v1/fetch-data", request(source)))
            await bureau.arrived.wait()
            gathering = Gathering(other)
            followers = [group.create_task(other.post(request(source))) for _ in range(5)]
            await gathering.reached(5)
            doomed.kill()
            await until(lambda: len(bureau.calls) == 2)
            bureau.gate.set()
    assert left.result()
    assert [task.result().status for task in followers] == [200] * 5
    assert len(bureau.calls) == 2


async def _left_alone(url: str, body: dict[str, Any]) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=100) as client:
        try:
            await client.post(url, json=body)
        except httpx.TransportError:
            return True
        return False


async def test_a_lease_is_renewed_while_the_upstream_is_slower_than_it(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(2, flight_lease=0.9, flight_wait=100) as (leader, follower):
        source = spec(bureau.url, timeout=100)
        key = await key_of(leader, source)
        bureau.gate.clear()
        async with asyncio.TaskGroup() as group:
            led = group.create_task(leader.post(request(source)))
            await bureau.arrived.wait()
            followed = group.create_task(follower.post(request(source)))
            await somebody_waits(redis, key)
            await _renewed(redis, f"be:{{{key}}}:lead", times=5)
            bureau.gate.set()
        assert (led.result().status, followed.result().status) == (200, 200)
        assert len(bureau.calls) == 1


async def _renewed(redis: Redis, lease: str, times: int) -> None:
    """Wait until the time that is left of a lease has grown so often."""
    left, seen = await redis.pttl(lease), 0
    async with asyncio.timeout(PATIENCE):
        while seen < times:
            await asyncio.sleep(0.01)
            now = await redis.pttl(lease)
            assert now > 0, "the lease lapsed"
            seen += now > left
            left = now


async def test_a_follower_is_woken_by_the_leaders_bell(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(2, flight_lease=60, flight_wait=300) as (leader, follower):
        source = spec(bureau.url, timeout=300)
        key = await key_of(leader, source)
        bureau.gate.clear()
        # Far less than the lease: nothing but the bell can end the wait in time.
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            led = group.create_task(leader.post(request(source)))
            await bureau.arrived.wait()
            followed = group.create_task(follower.post(request(source)))
            await somebody_waits(redis, key)
            bureau.gate.set()
        assert led.result().json()["data_object_id"] == followed.result().json()["data_object_id"]
        assert len(bureau.calls) == 1


async def test_a_follower_whose_patience_ends_fetches_alone(hire: Hire, bureau: Bureau) -> None:
    async with hire(2, flight_wait=0.3) as (leader, follower):
        source = spec(bureau.url, timeout=100)
        bureau.gate.clear()
        async with asyncio.TaskGroup() as group:
            led = group.create_task(leader.post(request(source)))
            await bureau.arrived.wait()
            followed = group.create_task(follower.post(request(source)))
            await until(lambda: len(bureau.calls) == 2)
            bureau.gate.set()
        assert (led.result().status, followed.result().status) == (200, 200)
        assert len(bureau.calls) == 2
        assert await count(follower, 'broker_edge_flights_total{role="alone"}') == 1


async def test_a_leaders_upstream_failure_is_its_followers_answer_too(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    bureau._answer = lambda _: json_reply({}, 500)
    async with hire(2, flight_lease=60, flight_wait=300) as (leader, follower):
        source = spec(bureau.url, timeout=100, retry={"max_retries": 0})
        key = await key_of(leader, source)
        bureau.gate.clear()
        async with asyncio.TaskGroup() as group:
            led = group.create_task(leader.post(request(source)))
            await bureau.arrived.wait()
            followed = group.create_task(follower.post(request(source)))
            await somebody_waits(redis, key)
            bureau.gate.set()
        assert led.result().status == followed.result().status == 502
        assert led.result().json()["error"] == followed.result().json()["error"]
        assert followed.result().json()["upstream_status"] == 500
        assert len(bureau.calls) == 1


async def test_followers_that_accept_nothing_old_take_turns(hire: Hire, bureau: Bureau, redis: Redis) -> None:
    async with hire(3, flight_lease=60, flight_wait=300) as edges:
        source = spec(bureau.url, timeout=100)
        key = await key_of(edges[0], source)
        bids = [_counted_bids(edge) for edge in edges]
        bureau.gate.clear()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(edges[0].post(request(source, max_age=0)))]
            await bureau.arrived.wait()
            tasks += [group.create_task(edge.post(request(source, max_age=0))) for edge in edges[1:]]
            await until(lambda: bids[1][0] == bids[2][0] == 1)
            await somebody_waits(redis, key)
            bureau.gate.set()
        assert [task.result().status for task in tasks] == [200] * 3
        assert len(bureau.calls) == 3
        assert sum(made for (made,) in bids) <= 8  # one each at first, one for each bell heard: nobody spins


def _counted_bids(edge: InProcess) -> list[int]:
    instance: Any = edge.edge.fleet
    bid, made = instance.bid, [0]

    async def counted(*arguments: Any) -> Any:
        answer = await bid(*arguments)
        made[0] += 1
        return answer

    instance.bid = counted
    return made


async def test_more_fetches_at_once_than_connections_to_redis_break_nothing(hire: Hire, bureau: Bureau) -> None:
    async with hire(1) as (edge,):
        source = spec(f"{bureau.url}/{{{{ id }}}}", timeout=100)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(edge.post(request(source, {"id": str(number)}))) for number in range(150)]
        assert {task.result().status for task in tasks} == {200}
        assert await count(edge, 'broker_edge_flights_total{role="broken"}') == 0
        assert await count(edge, 'broker_edge_tier_errors_total{tier="hot"}') == 0


async def test_a_flushed_redis_refetches_nothing_that_is_fresh(tmp_path: Path, bureau: Bureau, own_redis: Valkey) -> None:
    async with in_process(settings(tmp_path, bureau.port, redis_url=own_redis.url)) as edge:
        sources = [spec(f"{bureau.url}/{number}") for number in range(5)]
        first = [(await edge.post(request(source))).json() for source in sources]
        client = Redis.from_url(own_redis.url)
        await client.flushall()
        again = [(await edge.post(request(source))).json() for source in sources]
        assert [answer["data_object_id"] for answer in again] == [answer["data_object_id"] for answer in first]
        assert {answer["origin"] for answer in again} == {"CACHE"}
        assert len(bureau.calls) == 5
        assert await client.exists(*(f"be:{{{answer['key']}}}" for answer in first)) == 5
        await client.aclose()


@pytest.mark.parametrize("outage", ["killed", "paused"])
async def test_without_redis_requests_are_answered_and_few_of_them_wait_for_it(
    tmp_path: Path, bureau: Bureau, own_redis: Valkey, outage: str
) -> None:
    chosen = settings(tmp_path, bureau.port, redis_url=own_redis.url, redis_timeout=0.1)
    async with in_process(chosen) as edge:
        source = spec(f"{bureau.url}/{{{{ id }}}}")
        kept = await edge.post(request(source, {"id": "kept"}))
        own_redis.kill() if outage == "killed" else own_redis.pause()
        tried = _commands(edge)
        misses = [await edge.post(request(source, {"id": str(number)})) for number in range(40)]
        again = await edge.post(request(source, {"id": "kept"}))
        if outage == "paused":
            own_redis.resume()
    assert {answer.status for answer in misses} == {200}
    assert (again.status, again.json()["origin"]) == (200, "CACHE")
    assert again.json()["data_object_id"] == kept.json()["data_object_id"]
    # Looked up, bid for and stored: each request would try Redis three times. A breaker lets a probe a second through.
    assert 0 < len(tried) < 40


def _commands(edge: InProcess) -> list[None]:
    """One item for every use of the connection to Redis from now on, but for the subscription's."""
    lane: Any = edge.edge.hot._redis.lane  # type: ignore[attr-defined]
    execute, made = lane.execute, []

    async def counted(*arguments: Any) -> Any:
        made.append(None)
        return await execute(*arguments)

    lane.execute = counted
    return made


async def test_without_redis_what_could_not_be_asked_is_counted_as_broken_and_not_as_a_miss(
    tmp_path: Path, bureau: Bureau, own_redis: Valkey
) -> None:
    async with in_process(settings(tmp_path, bureau.port, redis_url=own_redis.url)) as edge:
        own_redis.kill()
        assert (await edge.post(request(spec(bureau.url)))).status == 200
        assert await count(edge, 'broker_edge_tier_lookups_total{result="broken",tier="hot"}') == 1
        assert await count(edge, 'broker_edge_tier_lookups_total{result="miss",tier="hot"}') == 0
        assert await count(edge, 'broker_edge_flights_total{role="broken"}') == 1
        assert await count(edge, 'broker_edge_tier_errors_total{tier="hot"}') >= 1


async def test_a_redis_that_is_back_is_used_again(tmp_path: Path, bureau: Bureau, own_redis: Valkey) -> None:
    async with in_process(settings(tmp_path, bureau.port, redis_url=own_redis.url)) as edge:
        source = spec(bureau.url)
        own_redis.kill()
        for _ in range(5):
            assert (await edge.post(request(source))).status == 200
        own_redis.start()
        await until(lambda: _is_hot(edge, source))
        await until(lambda: edge.edge.fleet.hearing.is_set())  # type: ignore[attr-defined]
        assert len(bureau.calls) == 1


async def _is_hot(edge: InProcess, source: dict[str, Any]) -> bool:
    """Whether a request is answered by the hot tier."""
    sample = 'broker_edge_tier_lookups_total{result="hit",tier="hot"}'
    before = await count(edge, sample)
    answer: Answer = await edge.post(request(source))
    assert answer.status == 200
    return await count(edge, sample) > before
