"""The contract of `ports.HotTier`, over memory and Redis; what is Redis's own stands at the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from broker_edge.backends.memory import MemoryHot
from broker_edge.backends.redis_link import RedisHot, connect
from broker_edge.core.exchange import Entry
from broker_edge.core.packing import pack
from broker_edge.errors import TierBroken
from broker_edge.ports import HotTier
from tests import servers

FORMS = {"redis": "redis_server", "cluster": "redis_cluster", "sentinel": "redis_watched"}


def key() -> str:
    return uuid.uuid4().hex


def entry(value: bytes = b'{"score":700}', created_at: float = 1_700_000_000.123456) -> Entry:
    return Entry(uuid.uuid4(), created_at, value)


def stored(name: str) -> str:
    return f"be:{{{name}}}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", *FORMS])
async def hot(request: pytest.FixtureRequest) -> AsyncIterator[HotTier]:
    tier: HotTier
    if request.param == "memory":
        tier = MemoryHot(64 * 2**20)
    else:
        tier = RedisHot(connect(request.getfixturevalue(FORMS[request.param]).url, 10))
    yield tier
    await tier.aclose()


async def test_answers_come_in_the_order_of_the_keys(hot: HotTier) -> None:
    names = [key() for _ in range(5)]
    entries = [entry(b"%d" % number) for number in range(5)]
    for name, item in zip(names[:4], entries, strict=False):
        await hot.put(name, item, 60)
    asked = [names[2], names[4], names[0], names[2], names[3], names[1]]
    assert await hot.get_many(asked) == [entries[2], None, entries[0], entries[2], entries[3], entries[1]]


async def test_a_negative_entry_is_held_like_any_other(hot: HotTier) -> None:
    name, negative = key(), Entry(uuid.UUID(int=0), 1_700_000_000.5, b"", 404)
    await hot.put(name, entry(), None)
    await hot.put(name, negative, 60)
    assert await hot.get_many([name]) == [negative]
    await hot.put(name, entry(b"1"), 60, only_if_absent=True)
    assert await hot.get_many([name]) == [negative]


async def test_nothing_asked_is_nothing_answered(hot: HotTier) -> None:
    assert list(await hot.get_many([])) == []


async def test_a_later_entry_replaces_an_earlier_one(hot: HotTier) -> None:
    name, second = key(), entry(b"2")
    await hot.put(name, entry(b"1"), None)
    await hot.put(name, second, None)
    assert await hot.get_many([name]) == [second]


async def test_a_deleted_entry_is_absent(hot: HotTier) -> None:
    name = key()
    await hot.put(name, entry(), None)
    await hot.delete(name)
    await hot.delete(name)
    assert await hot.get_many([name]) == [None]


@pytest.mark.parametrize("value", [b"", b"\x00\xff\r\n", b'"' + b"x" * (5 * 2**20) + b'"'], ids=["empty", "binary", "large"])
async def test_values_come_back_byte_for_byte(hot: HotTier, value: bytes) -> None:
    name, item = key(), entry(value)
    await hot.put(name, item, 60)
    assert await hot.get_many([name]) == [item]


async def test_a_lifetime_below_a_millisecond_still_ends(hot: HotTier) -> None:
    name = key()
    await hot.put(name, entry(), 0.0004)
    async with asyncio.timeout(20):
        while True:
            if await hot.get_many([name]) == [None]:
                return
            await asyncio.sleep(0)


async def test_a_tier_that_works_answers_a_ping(hot: HotTier) -> None:
    await hot.ping()


# Memory.


async def test_memory_honours_lifetimes_by_its_clock() -> None:
    clock = Clock()
    hot, item = MemoryHot(2**20, clock), entry()
    await hot.put("short", item, 10)
    await hot.put("endless", item, None)
    clock.now += 9.999
    assert await hot.get_many(["short", "endless"]) == [item, item]
    clock.now += 0.001
    assert await hot.get_many(["short", "endless"]) == [None, item]
    clock.now += 1e9
    assert await hot.get_many(["endless"]) == [item]


async def test_memory_gives_an_expired_entry_s_bytes_back() -> None:
    clock = Clock()
    hot = MemoryHot(2**20, clock)
    await hot.put("a", entry(b"x" * 1000), 1)
    clock.now += 2
    await hot.get_many(["a"])
    assert hot.bytes_held == 0


async def test_memory_drops_the_least_recently_used_first() -> None:
    hot = MemoryHot(10_000)
    for name in "abcd":
        await hot.put(name, entry(b"x" * 2000), None)
    await hot.get_many(["a"])
    await hot.put("e", entry(b"x" * 2000), None)
    found = await hot.get_many(list("abcde"))
    assert [item is not None for item in found] == [True, False, True, True, True]


async def test_memory_stays_within_its_bytes() -> None:
    hot, sizes = MemoryHot(50_000), random.Random(1)
    for number in range(500):
        await hot.put(str(number % 90), entry(b"x" * sizes.randrange(5000)), None)
        assert hot.bytes_held <= 50_000
    for number in range(90):
        await hot.delete(str(number))
    assert hot.bytes_held == 0


async def test_memory_refuses_what_could_never_fit_and_keeps_the_rest() -> None:
    hot, small = MemoryHot(10_000), entry(b"1")
    await hot.put("small", small, None)
    await hot.put("huge", entry(b"x" * 10_000), None)
    assert await hot.get_many(["small", "huge"]) == [small, None]


async def test_memory_forgets_an_entry_whose_successor_could_never_fit() -> None:
    hot = MemoryHot(10_000)
    await hot.put("a", entry(b"old"), None)
    await hot.put("a", entry(b"x" * 10_000), None)
    assert await hot.get_many(["a"]) == [None]


# Redis.


@pytest.fixture
async def redis(redis_server: servers.Valkey) -> AsyncIterator[Redis]:
    client = connect(redis_server.url, 10)
    yield client
    await client.aclose()


@pytest.fixture
def own_server() -> Iterator[servers.Valkey]:
    """A Redis that a test may kill and pause."""
    with servers.valkey() as server:
        yield server


@contextlib.asynccontextmanager
async def tier_of(server: servers.Valkey, timeout: float) -> AsyncIterator[RedisHot]:
    hot = RedisHot(connect(server.url, timeout))
    try:
        yield hot
    finally:
        await hot.aclose()


async def test_redis_holds_an_entry_under_a_native_lifetime(redis: Redis) -> None:
    hot, name = RedisHot(redis), key()
    await hot.put(name, entry(), 100.5)
    left = await redis.pttl(stored(name))
    assert 40_000 < left <= 100_500


async def test_redis_never_expires_an_entry_without_a_lifetime(redis: Redis) -> None:
    hot, name = RedisHot(redis), key()
    await hot.put(name, entry(), 100)
    await hot.put(name, entry(), None)
    assert await redis.pttl(stored(name)) == -1


async def test_redis_takes_a_lifetime_of_ten_years(redis: Redis) -> None:
    name = key()
    await RedisHot(redis).put(name, entry(), 10 * 366 * 86_400.0)
    assert await redis.ttl(stored(name)) > 10 * 365 * 86_400


UNREADABLE = ("nothing", "a byte", "json", "another layout", "zeros", "cut header")


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"{}", b"\x02" + pack(entry())[1:], b"\x00" * 100, pack(entry())[:24]], ids=UNREADABLE
)
async def test_what_this_version_can_not_read_is_absent(redis: Redis, data: bytes) -> None:
    name = key()
    await redis.set(stored(name), data)
    assert await RedisHot(redis).get_many([name]) == [None]


async def test_a_key_of_another_type_breaks_that_key_alone(redis: Redis) -> None:
    hot, good, bad, item = RedisHot(redis), key(), key(), entry()
    await hot.put(good, item, 60)
    await redis.lpush(stored(bad), "a list")
    answers = await hot.get_many([good, bad, good])
    assert [answers[0], answers[2]] == [item, item]
    assert isinstance(answers[1], TierBroken)


async def test_a_key_of_another_type_is_replaced_by_the_next_entry(redis: Redis) -> None:
    hot, name, item = RedisHot(redis), key(), entry()
    await redis.lpush(stored(name), "a list")
    await hot.put(name, item, 60)
    assert await hot.get_many([name]) == [item]


async def test_all_names_of_a_key_share_a_cluster_slot(redis: Redis) -> None:
    name = key()
    await RedisHot(redis).put(name, entry(), 60)
    assert [found async for found in redis.scan_iter(f"*{name}*")] == [f"be:{{{name}}}".encode()]


async def test_a_redis_that_is_gone_is_broken_and_one_that_is_back_is_used(own_server: servers.Valkey) -> None:
    async with tier_of(own_server, 5) as hot:
        item = entry()
        await hot.put("a", item, 60)
        own_server.kill()
        for call in (hot.get_many(["a"]), hot.put("a", item, 60), hot.delete("a"), hot.ping()):
            with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
                await call
        own_server.start()
        await hot.put("a", item, 60)
        assert await hot.get_many(["a"]) == [item]


async def test_a_paused_redis_is_broken_and_not_waited_for_twice(own_server: servers.Valkey) -> None:
    async with tier_of(own_server, 0.3) as hot, tier_of(own_server, 30) as patient:
        await hot.ping()
        await patient.ping()
        before = await connections_received(patient)
        own_server.pause()
        with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
            await hot.get_many(["a"])
        own_server.resume()
        assert await connections_received(patient) == before


async def connections_received(hot: RedisHot) -> int:
    """How often a client has connected: another try is another connection, even to a server that doesn't answer."""
    return int((await hot._redis.info("stats"))["total_connections_received"])


async def test_a_redis_that_was_paused_is_used_again(own_server: servers.Valkey) -> None:
    async with tier_of(own_server, 1) as hot:
        own_server.pause()
        with pytest.raises(TierBroken):
            await hot.put("a", entry(), 60)
        own_server.resume()
        item = entry()
        await hot.put("a", item, 60)
        assert await hot.get_many(["a"]) == [item]


async def test_an_idle_connection_that_redis_closed_is_replaced_unnoticed(own_server: servers.Valkey) -> None:
    async with tier_of(own_server, 5) as hot:
        item = entry()
        await hot.put("a", item, 60)
        own_server.kill()
        own_server.start()
        assert await hot.get_many(["a"]) == [None]


async def test_more_calls_at_once_than_connections_wait_for_their_turn(redis_server: servers.Valkey) -> None:
    async with tier_of(redis_server, 30) as hot:
        names, item = [key() for _ in range(600)], entry()
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(hot.put(name, item, 600))
        assert await hot.get_many(names) == [item] * 600
        assert len(await hot._redis.client_list()) <= 80


async def test_cancelled_look_ups_never_hand_their_answers_to_others(redis_server: servers.Valkey) -> None:
    chance = random.Random(7)
    async with tier_of(redis_server, 30) as hot:
        names = [key() for _ in range(600)]
        entries = {name: entry(name.encode()) for name in names}
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(hot.put(name, entries[name], 600))
        tasks: dict[str, asyncio.Task[Any]] = {}
        async with asyncio.TaskGroup() as group:
            victims = set(chance.sample(names, 200))
            for name in names:
                tasks[name] = group.create_task(hot.get_many([name]))
                if name in victims:  # before it begins, before it is sent, or before it is answered
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                    tasks[name].cancel()
        answers = {name: task.result() for name, task in tasks.items() if not task.cancelled()}
        assert [name for name, answer in answers.items() if answer != [entries[name]]] == []
        assert 400 <= len(answers) < 590
        assert await hot.get_many(names) == [entries[name] for name in names]


async def test_look_ups_that_are_cancelled_once_they_are_sent_shift_no_answers(own_server: servers.Valkey) -> None:
    async with tier_of(own_server, 60) as hot:
        names = [key() for _ in range(600)]
        entries = {name: entry(name.encode() * (1 + number % 3 * 900)) for number, name in enumerate(names)}
        for name in names:
            await hot.put(name, entries[name], 600)
        own_server.pause()
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(hot.get_many([name])) for name in names}
            for _ in range(5):
                await asyncio.sleep(0)
            for name in random.Random(7).sample(names, 200):
                tasks[name].cancel()
            own_server.resume()
        answered = [name for name in names if not tasks[name].cancelled()]
        assert len(answered) == 400
        assert [tasks[name].result() for name in answered] == [[entries[name]] for name in answered]
