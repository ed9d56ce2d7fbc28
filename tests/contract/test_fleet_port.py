"""The contract of `ports.Fleet`, over the fleet of one and Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from broker_edge.backends.memory import LoneFleet, MemoryHot
from broker_edge.backends.redis_link import RedisFleet, RedisHot, connect
from broker_edge.core.exchange import Entry
from broker_edge.errors import TierBroken
from broker_edge.ports import Fleet, HotTier, Lead
from tests import servers

LONG = 60.0
FORMS = {"redis": "redis_server", "cluster": "redis_cluster", "sentinel": "redis_watched"}


@pytest.fixture(params=["memory", *FORMS])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Fleet, HotTier]]:
    """A fleet that hears its bells, and the hot tier it looks into."""
    if request.param == "memory":
        memory = MemoryHot(2**20)
        yield LoneFleet(memory), memory
        return
    redis = connect(request.getfixturevalue(FORMS[request.param]).url, 10)
    fleet = RedisFleet(redis)
    async with asyncio.TaskGroup() as group:
        hearing = group.create_task(fleet.hear())
        await fleet.hearing.wait()
        yield fleet, RedisHot(redis)
        hearing.cancel()
    await redis.aclose()


@pytest.fixture
def fleet(both: tuple[Fleet, HotTier]) -> Fleet:
    return both[0]


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


async def lapsed(fleet: Fleet, key: str, token: str) -> Lead:
    """Bid until the lease of somebody else is over."""
    async with asyncio.timeout(30):
        while True:
            lead = await fleet.bid(key, token, LONG)
            if lead.won:
                return lead
            await asyncio.sleep(lead.lease_left)


async def test_the_first_bid_wins_and_the_second_hears_how_long_the_lease_lasts(fleet: Fleet, key: str) -> None:
    assert (await fleet.bid(key, "one", LONG)).won
    lost = await fleet.bid(key, "two", LONG)
    assert not lost.won
    assert lost.entry is None
    assert 0 < lost.lease_left <= LONG


async def test_a_won_bid_answers_what_the_hot_tier_holds_by_then(both: tuple[Fleet, HotTier], key: str) -> None:
    fleet, hot = both
    entry = Entry(uuid.uuid4(), 1.5, b"[1]")
    await hot.put(key, entry, 60)
    assert (await fleet.bid(key, "one", LONG)).entry == entry
    other = await fleet.bid(uuid.uuid4().hex, "one", LONG)
    assert other.won
    assert other.entry is None


async def test_one_of_many_bids_wins(fleet: Fleet, key: str) -> None:
    async with asyncio.TaskGroup() as group:
        bids = [group.create_task(fleet.bid(key, str(number), LONG)) for number in range(100)]
    assert sum(bid.result().won for bid in bids) == 1


async def test_a_settled_lease_is_free_again(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", LONG)
    await fleet.settle(key, "one", b"stored")
    assert (await fleet.bid(key, "two", LONG)).won


async def test_only_the_holder_settles(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", LONG)
    async with fleet.listen(key) as bell:
        assert not (await fleet.bid(key, "two", LONG)).won
        await fleet.settle(key, "two", b"not mine")
        assert await bell.ring(0.05) is None
    assert not (await fleet.bid(key, "two", LONG)).won


async def test_a_lease_that_is_not_renewed_lapses(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", 0.05)
    assert (await lapsed(fleet, key, "two")).won
    assert not await fleet.renew(key, "one", LONG)


async def test_a_lapsed_lease_can_not_be_renewed(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", 0.001)
    await asyncio.sleep(0.01)
    assert not await fleet.renew(key, "one", LONG)
    assert (await fleet.bid(key, "two", LONG)).won


async def test_only_the_holder_renews(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", 10)
    assert not await fleet.renew(key, "two", LONG)
    assert await fleet.renew(key, "one", LONG)
    assert (await fleet.bid(key, "two", LONG)).lease_left > 10


async def test_settling_after_the_lease_has_gone_to_another_changes_nothing(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", 0.05)
    await lapsed(fleet, key, "two")
    await fleet.settle(key, "one", b"stored")
    assert await fleet.renew(key, "two", LONG)


async def test_settling_rings_all_who_listened_before_they_bid(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", LONG)
    async with fleet.listen(key) as first, fleet.listen(key) as second:
        await fleet.bid(key, "two", LONG)
        await fleet.settle(key, "one", b"\x00 stored \xff")
        assert [await first.ring(30), await second.ring(30)] == [b"\x00 stored \xff"] * 2


async def test_a_bell_of_another_key_stays_silent(fleet: Fleet, key: str) -> None:
    other = uuid.uuid4().hex
    await fleet.bid(key, "one", LONG)
    async with fleet.listen(key) as bell, fleet.listen(other) as silent:
        await fleet.bid(key, "two", LONG)
        await fleet.settle(key, "one", b"stored")
        assert await bell.ring(30) == b"stored"
        assert await silent.ring(0.02) is None


async def test_a_bell_rings_once_for_each_message(fleet: Fleet, key: str) -> None:
    async with fleet.listen(key) as bell:
        for message in (b"first", b"second"):
            assert (await fleet.bid(key, "one", LONG)).won
            await fleet.bid(key, "two", LONG)
            await fleet.settle(key, "one", message)
            assert await bell.ring(30) == message
        assert await bell.ring(0.02) is None


async def test_a_bell_that_nobody_strikes_ends_its_wait(fleet: Fleet, key: str) -> None:
    async with fleet.listen(key) as bell:
        assert await bell.ring(0.02) is None


async def test_a_cancelled_listener_leaves_the_others(fleet: Fleet, key: str) -> None:
    await fleet.bid(key, "one", LONG)
    listening = asyncio.Event()

    async def leave() -> None:
        async with fleet.listen(key) as bell:
            listening.set()
            await bell.ring(60)

    async with fleet.listen(key) as bell, asyncio.TaskGroup() as group:
        leaver = group.create_task(leave())
        await listening.wait()
        leaver.cancel()
        await fleet.bid(key, "two", LONG)
        await fleet.settle(key, "one", b"stored")
        assert await bell.ring(30) == b"stored"


async def test_leadership_is_broken_while_redis_is_gone() -> None:
    with servers.valkey() as server:
        redis = connect(server.url, 5)
        fleet = RedisFleet(redis)
        assert (await fleet.bid("k", "one", LONG)).won
        server.kill()
        for call in (fleet.bid("k", "two", LONG), fleet.renew("k", "one", LONG), fleet.settle("k", "one", b""), fleet.hear()):
            with pytest.raises(TierBroken, match=r"^Redis can't be reached$"):
                await call
        server.start()
        assert (await fleet.bid("k", "two", LONG)).won  # its scripts, which the new server doesn't know, are loaded again
        await redis.aclose()


async def test_a_redis_without_followers_publishes_nothing(redis_server: servers.Valkey, key: str) -> None:
    redis = connect(redis_server.url, 10)
    fleet = RedisFleet(redis)
    await fleet.bid(key, "one", LONG)
    async with redis.pubsub() as subscription:
        await subscription.subscribe("be:bells")
        await fleet.settle(key, "one", b"quiet")
        await redis.publish("be:bells", b"end of " + key.encode())
        heard = []
        async for message in subscription.listen():
            if message["type"] == "message":
                heard.append(message["data"])
                if message["data"].endswith(key.encode()):
                    break
        assert not any(data.startswith(key.encode()) for data in heard)
    await redis.aclose()
