"""What Redis tells of its keys reaches the near tier, and a connection that breaks, or is mute, or is refused, closes it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from broker_edge.backends import redis_tracking
from broker_edge.backends.near import NearCache
from broker_edge.backends.redis_link import connect
from broker_edge.backends.redis_tracking import RedisTracking
from broker_edge.core.exchange import Entry
from broker_edge.errors import TierBroken
from tests.scenarios.herds import PATIENCE, until
from tests.servers import Valkey, Watched, valkey


def name_of(key: str) -> str:
    return f"be:{{{key}}}"


async def opened(near: NearCache) -> None:
    await until(lambda: near.is_open)


async def gone(near: NearCache, key: str) -> None:
    await until(lambda: near.get(key) is None)


def held(near: NearCache) -> str:
    """A new key with an entry near."""
    key = uuid.uuid4().hex
    near.offer(key, Entry(uuid.uuid4(), 1000.0, b"1"), near.begin(key))
    assert near.get(key) is not None
    return key


class Following:
    def __init__(self, url: str, patience: float = 20.0) -> None:
        self.near = NearCache(2**20)
        self.tracking = RedisTracking(connect(url, patience), self.near, patience)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[NearCache]:
        async with contextlib.aclosing(self.tracking), asyncio.TaskGroup() as group:
            follower = group.create_task(self.tracking.follow())
            try:
                await opened(self.near)
                yield self.near
            finally:
                follower.cancel()

    async def breaks(self) -> str:
        """How `follow` ends by itself."""
        with pytest.raises(TierBroken) as caught:
            async with asyncio.timeout(PATIENCE):
                await self.tracking.follow()
        return str(caught.value)


@pytest.fixture
async def near(redis_server: Valkey) -> AsyncIterator[NearCache]:
    async with Following(redis_server.url).running() as near:
        yield near


@pytest.fixture
async def redis(redis_server: Valkey) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
def own_redis() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.mark.parametrize("how", ["SET", "DEL", "EXPIRE", "SCRIPT"])
async def test_an_entry_that_changes_in_redis_is_forgotten(near: NearCache, redis: Redis, how: str) -> None:
    key, other = held(near), held(near)
    name = name_of(key)
    if how == "SET":
        await redis.set(name, b"2")
    elif how == "SCRIPT":
        await redis.eval("return redis.call('SET', KEYS[1], '2')", 1, name)
    else:
        await redis.set(name_of(other), b"2")
        await redis.set(name, b"2")
        await gone(near, key)
        await gone(near, other)
        near.offer(key, Entry(uuid.uuid4(), 1000.0, b"1"), near.begin(key))
        near.offer(other, Entry(uuid.uuid4(), 1000.0, b"1"), near.begin(other))
        await (redis.delete(name) if how == "DEL" else redis.pexpire(name, 1))
    await gone(near, key)
    assert near.get(other) is not None


async def test_what_is_read_in_redis_stays(near: NearCache, redis: Redis) -> None:
    stays, changes = held(near), held(near)
    await redis.get(name_of(stays))
    await redis.set(name_of(changes), b"2")
    await gone(near, changes)
    assert near.get(stays) is not None


async def test_leases_and_bells_of_a_key_leave_its_entry_alone(near: NearCache, redis: Redis) -> None:
    stays, changes = held(near), held(near)
    await redis.set(f"{name_of(stays)}:lead", b"token")
    await redis.set(f"{name_of(stays)}:bell", b"1")
    await redis.set("be:odd \xff", b"1")
    await redis.set(name_of(changes), b"2")
    await gone(near, changes)
    assert near.get(stays) is not None


async def test_many_changes_at_once_are_all_heard(near: NearCache, redis: Redis) -> None:
    changing = [held(near) for _ in range(500)]
    async with redis.pipeline(transaction=False) as pipeline:
        for key in changing:
            pipeline.set(name_of(key), b"2")
        await pipeline.execute()
    for key in changing:
        await gone(near, key)


async def test_changes_in_any_database_of_the_server_are_heard(near: NearCache, redis_server: Valkey) -> None:
    key = held(near)
    async with Redis.from_url(redis_server.url, db=3) as client:
        await client.set(name_of(key), b"2")
    await gone(near, key)


async def test_a_flush_drops_everything_and_the_tier_stays_open(own_redis: Valkey) -> None:
    async with Following(own_redis.url).running() as near, Redis.from_url(own_redis.url) as redis:
        keys = [held(near) for _ in range(50)]
        await redis.flushall()
        await gone(near, keys[0])
        assert {near.get(key) for key in keys} == {None}
        assert near.is_open
        assert held(near)


async def test_a_connection_that_is_killed_closes_the_tier_until_it_is_back(own_redis: Valkey) -> None:
    following = Following(own_redis.url)
    async with Redis.from_url(own_redis.url) as redis, asyncio.TaskGroup() as group:
        broken = group.create_task(following.breaks())
        await opened(following.near)
        key = held(following.near)
        (listener,) = [client for client in await redis.client_list() if "t" in client["flags"]]
        await redis.client_kill_filter(_id=listener["id"])
        await broken
        assert following.near.get(key) is None
        assert not following.near.is_open
    async with following.running() as near:
        assert near.get(key) is None
        assert held(near)


async def test_a_loop_that_is_stopped_closes_the_tier(redis_server: Valkey) -> None:
    following = Following(redis_server.url)
    async with following.running() as near:
        key = held(near)
    assert following.near.get(key) is None
    assert not following.near.is_open


async def test_without_redis_the_tier_stays_closed(own_redis: Valkey) -> None:
    own_redis.kill()
    following = Following(own_redis.url)
    assert await following.breaks() == "Redis can't be reached"
    assert not following.near.is_open


async def test_a_redis_that_falls_silent_closes_the_tier(own_redis: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_tracking, "_SILENCE", 0.05)
    following = Following(own_redis.url, patience=1.0)
    async with asyncio.TaskGroup() as group:
        broken = group.create_task(following.breaks())
        await opened(following.near)
        key = held(following.near)
        own_redis.pause()
        try:
            await broken
        finally:
            own_redis.resume()
    assert following.near.get(key) is None
    await following.tracking.aclose()


async def test_a_quiet_redis_is_asked_whether_it_is_there_and_the_tier_stays_open(
    own_redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tracking, "_SILENCE", 0.01)
    async with Following(own_redis.url).running() as near, Redis.from_url(own_redis.url) as redis:
        key = held(near)

        async def asked() -> bool:
            return bool((await redis.info("commandstats")).get("cmdstat_ping", {"calls": 0})["calls"] >= 3)

        await until(asked)
        assert near.get(key) is not None


async def test_a_server_that_refuses_is_not_asked_again_at_once(own_redis: Valkey) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        await redis.acl_setuser("edge", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+@all", "-client|tracking"])
        following = Following(f"redis://edge:s3cret@127.0.0.1:{own_redis.port}/0")
        assert await following.breaks() == "Redis refuses to tell what changes"
        assert not following.near.is_open
        connected = (await redis.info("stats"))["total_connections_received"]
        async with asyncio.TaskGroup() as group:
            again = group.create_task(following.tracking.follow())
            for _ in range(20):
                await redis.ping()
                await asyncio.sleep(0)
            assert (await redis.info("stats"))["total_connections_received"] == connected
            again.cancel()


async def test_credentials_of_the_url_are_used(own_redis: Valkey) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        await redis.config_set("requirepass", "s3cret")
    async with Following(f"redis://:s3cret@127.0.0.1:{own_redis.port}/2").running() as near:
        assert held(near)
    assert await Following(own_redis.url).breaks() == "Redis can't be reached"


async def test_the_primary_that_a_sentinel_names_is_listened_to(redis_watched: Watched) -> None:
    async with Following(redis_watched.url).running() as near, Redis.from_url(redis_watched.servers[0].url) as redis:
        key = held(near)
        await redis.set(name_of(key), b"2")
        await gone(near, key)
