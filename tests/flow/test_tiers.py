"""Hot over durable: what is found where, what goes back up, and what becomes of an object that the database can't take."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from broker_edge.backends.memory import MemoryHot
from broker_edge.backends.spool import FileSpool
from broker_edge.core.exchange import Entry
from broker_edge.core.trail import Record
from broker_edge.errors import EdgeError, TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.journal import Journal
from broker_edge.flow.tiers import Nothing, Tiers
from broker_edge.ports import HotTier
from tests.flow.doubles import BrokenHot, Database, entry_of, item, record

LIMIT = 100_000


class NotingHot(MemoryHot):
    """Notes the lifetimes that it is given."""

    def __init__(self) -> None:
        super().__init__(2**24)
        self.puts: list[tuple[str, float | None]] = []
        self.gets: list[list[str]] = []

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        self.gets.append(list(keys))
        return await super().get_many(keys)

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        self.puts.append((key, lifetime))
        await super().put(key, entry, lifetime, only_if_absent=only_if_absent)


class Setup:
    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.chance = 0.0
        self.hot = NotingHot()
        self.database = Database()
        self.spool = FileSpool(directory / "spool", segment_bytes=2**16, max_bytes=2**24)
        self.rejected = FileSpool(directory / "rejected", segment_bytes=2**16, max_bytes=2**24)
        self.journal = Journal(self.spool, self.database, self.rejected, uuid.uuid4)
        self.background = Background(lambda *_: None)

    def tiers(self, hot: HotTier | None = None, *, durable_timeout: float = 30) -> Tiers:
        return Tiers(
            hot or self.hot,
            self.database,
            self.journal,
            self.background,
            durable_timeout=durable_timeout,
            hot_max_value=LIMIT,
            random=lambda: self.chance,
            now=lambda: self.now,
        )


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.background.drain(10)
    setup.spool.close()
    setup.rejected.close()


def facts(of: Record) -> list[tuple[str, str, str]]:
    return [(fact.kind, fact.subject, fact.result) for fact in of.facts]


async def test_a_hit_asks_the_hot_tier_alone(setup: Setup) -> None:
    one, trail = entry_of(item()), record()
    await setup.hot.put("key", one, 60)
    assert await setup.tiers().hot("key", trail) == one
    assert facts(trail) == [("lookup", "hot", "hit")]
    assert setup.database.lookups == []


async def test_what_is_not_there_is_absent(setup: Setup) -> None:
    tiers, trail = setup.tiers(), record()
    assert await tiers.hot("key", trail) is Nothing.ABSENT
    assert await tiers.durable("key", 60, trail) is Nothing.ABSENT
    assert facts(trail) == [("lookup", "hot", "miss"), ("lookup", "durable", "miss")]


async def test_a_broken_hot_tier_is_broken_and_not_a_miss(setup: Setup) -> None:
    tiers, trail = setup.tiers(BrokenHot()), record()
    assert await tiers.hot("key", trail) is Nothing.BROKEN
    assert facts(trail) == [("lookup", "hot", "broken")]


async def test_a_broken_database_is_broken_and_not_a_miss(setup: Setup) -> None:
    setup.database.down = True
    trail = record()
    assert await setup.tiers().durable("key", 60, trail) is Nothing.BROKEN
    assert facts(trail) == [("lookup", "durable", "broken")]


async def test_a_tier_that_is_known_to_be_dead_is_not_asked_again_for_a_while(setup: Setup) -> None:
    dead = BrokenHot()
    tiers, trail = setup.tiers(dead), record()
    for _ in range(20):
        assert await tiers.hot("key", trail) is Nothing.BROKEN
    assert dead.calls < 20
    assert facts(trail) == [("lookup", "hot", "broken")] * 20


async def test_a_durable_hit_refills_the_hot_tier_with_the_time_that_is_left(setup: Setup) -> None:
    one, tiers, trail = item(created_at=1000), setup.tiers(), record()
    await setup.database.store([one])
    setup.now = 1040.0
    assert await tiers.durable("key", 100, trail) == entry_of(one)
    assert setup.hot.puts == [("key", 60.0)]
    assert facts(trail) == [("lookup", "durable", "hit"), ("store", "hot", "ok")]
    assert await tiers.hot("key", trail) == entry_of(one)


@pytest.mark.parametrize(("chance", "lifetime"), [(0.0, 60.0), (0.5, 58.5), (0.999999, 57.00000003)])
async def test_lifetimes_are_jittered_downward_by_up_to_a_twentieth(setup: Setup, chance: float, lifetime: float) -> None:
    one = item(created_at=1000)
    await setup.database.store([one])
    setup.now, setup.chance = 1040.0, chance
    await setup.tiers().durable("key", 100, record())
    assert setup.hot.puts[0][1] == pytest.approx(lifetime, abs=1e-5)
    assert 57 <= (setup.hot.puts[0][1] or 0) <= 60


async def test_what_never_expires_is_held_without_a_lifetime(setup: Setup) -> None:
    one, tiers = item(created_at=0), setup.tiers()
    await tiers.store(one, entry_of(one), None, record())
    await tiers.durable("key", None, record())
    assert setup.hot.puts == [("key", None), ("key", None)]


@pytest.mark.parametrize("age", [100.0, 100.1, 1e6])
async def test_what_has_expired_is_found_and_not_put_into_the_hot_tier(setup: Setup, age: float) -> None:
    one, trail = item(created_at=1000), record()
    await setup.database.store([one])
    setup.now = 1000 + age
    assert await setup.tiers().durable("key", 100, trail) == entry_of(one)
    assert setup.hot.puts == []
    assert facts(trail) == [("lookup", "durable", "hit")]


@pytest.mark.parametrize(("size", "held"), [(LIMIT, True), (LIMIT + 1, False)])
async def test_large_values_are_kept_in_the_durable_tier_alone(setup: Setup, size: int, held: bool) -> None:
    body = b'"' + b"x" * (size - 2) + b'"'
    one, tiers, trail = item(body=body), setup.tiers(), record()
    await tiers.store(one, entry_of(one, body), 60, trail)
    assert bool(setup.hot.puts) is held
    assert await tiers.durable("key", 60, trail) == entry_of(one, body)
    assert len(setup.hot.puts) == 2 * held
    assert set(setup.database.objects) == {one.object_id}


async def test_a_very_large_value_is_shaped_like_any_other(setup: Setup) -> None:
    one = item(body=b'{"x":"' + b"y" * (300 * 1024) + b'"}')
    await setup.database.store([one])
    assert await setup.tiers().durable("key", 60, record()) == entry_of(one, one.body)


async def test_a_store_is_durable_first_and_then_hot(setup: Setup) -> None:
    one, trail = item(created_at=990), record()
    await setup.tiers().store(one, entry_of(one), 60, trail)
    assert facts(trail) == [("store", "durable", "ok"), ("store", "hot", "ok")]
    assert set(setup.database.objects) == {one.object_id}
    assert setup.hot.puts == [("key", 50.0)]


async def test_nothing_is_hot_before_it_is_durable(setup: Setup) -> None:
    one, tiers = item(), setup.tiers()
    setup.database.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(tiers.store(one, entry_of(one), 60, record()))
        await setup.database.called.wait()
        assert await tiers.hot("key", record()) is Nothing.ABSENT
        setup.database.gate.set()
    assert await tiers.hot("key", record()) == entry_of(one)


async def test_what_may_not_be_reused_never_gets_hot(setup: Setup) -> None:
    one, trail = item(reusable=False), record()
    await setup.tiers().store(one, entry_of(one), None, trail)
    assert facts(trail) == [("store", "durable", "ok")]
    assert setup.hot.puts == []


async def test_a_hot_tier_that_can_not_take_it_is_counted_and_no_more(setup: Setup) -> None:
    one, trail = item(), record()
    await setup.tiers(BrokenHot()).store(one, entry_of(one), 60, trail)
    assert facts(trail) == [("store", "durable", "ok"), ("store", "hot", "broken")]


async def test_what_the_database_can_not_take_waits_in_the_spool_and_arrives_later(setup: Setup) -> None:
    one, trail = item(), record()
    setup.database.down = True
    await setup.tiers().store(one, entry_of(one), 60, trail)
    assert facts(trail) == [("store", "durable", "spooled"), ("store", "hot", "ok")]
    assert setup.spool.backlog_frames == 1
    setup.database.down = False
    assert await setup.journal.flush(60)
    assert setup.database.objects == {one.object_id: one}


async def test_while_the_database_is_known_to_be_dead_objects_go_to_the_spool_at_once(setup: Setup) -> None:
    setup.database.down = True
    tiers, objects = setup.tiers(), [item(str(number)) for number in range(10)]
    for one in objects:
        await tiers.store(one, entry_of(one), 60, record())
    assert setup.spool.backlog_frames == 10
    setup.database.down = False
    assert await setup.journal.flush(60)
    assert set(setup.database.objects) == {one.object_id for one in objects}


async def test_without_database_and_spool_the_store_fails(setup: Setup, tmp_path: Path) -> None:
    full = FileSpool(tmp_path / "full", segment_bytes=4096, max_bytes=10)
    setup.journal = Journal(full, setup.database, setup.rejected, uuid.uuid4)
    setup.database.down = True
    one = item()
    with pytest.raises(TierBroken):
        await setup.tiers().store(one, entry_of(one), 60, record())
    assert [key for key, _ in setup.hot.puts] == ["key"]  # paid for: the next caller finds it


async def test_an_object_that_the_database_refuses_fails_alone(setup: Setup) -> None:
    setup.database.refuses = lambda one: getattr(one, "key", "") == "bad"
    tiers, objects = setup.tiers(), [item("a"), item("bad"), item("b")]
    setup.database.gate.clear()
    stores = [tiers.store(one, entry_of(one), 60, record()) for one in objects]
    asyncio.get_running_loop().call_soon(setup.database.gate.set)
    failures = await asyncio.gather(*stores, return_exceptions=True)
    assert [type(failure) for failure in failures] == [type(None), EdgeError, type(None)]
    assert {one.key for one in setup.database.objects.values()} == {"a", "b"}


async def test_look_ups_of_one_tick_share_a_round_trip(setup: Setup) -> None:
    tiers, keys = setup.tiers(), [str(number) for number in range(20)]
    await asyncio.gather(*(tiers.hot(key, record()) for key in keys))
    assert setup.hot.gets == [keys]


async def test_a_herd_of_one_key_asks_the_database_for_it_once(setup: Setup) -> None:
    one, tiers = item(), setup.tiers()
    await setup.database.store([one])
    found = await asyncio.gather(*(tiers.durable("key", 60, record()) for _ in range(50)))
    assert found == [entry_of(one)] * 50
    assert setup.database.lookups == [["key"]]


async def test_commits_of_one_tick_share_a_transaction(setup: Setup) -> None:
    tiers, objects = setup.tiers(), [item(str(number)) for number in range(20)]
    await asyncio.gather(*(tiers.store(one, entry_of(one), 60, record()) for one in objects))
    assert setup.database.batches == [(0, 20)]


async def test_a_kept_object_that_can_no_longer_be_read_is_absent(setup: Setup) -> None:
    await setup.database.store([item(body=b"{not json")])
    trail = record()
    assert await setup.tiers().durable("key", 60, trail) is Nothing.ABSENT
    assert facts(trail) == [("lookup", "durable", "miss")]


async def test_a_caller_that_leaves_does_not_count_against_the_tier(setup: Setup) -> None:
    tiers = setup.tiers()
    setup.database.gate.clear()
    for _ in range(5):
        async with asyncio.TaskGroup() as group:
            leaver = group.create_task(tiers.durable("key", 60, record()))
            await asyncio.sleep(0)
            leaver.cancel()
    setup.database.gate.set()
    assert await tiers.durable("key", 60, record()) is Nothing.ABSENT


async def test_look_ups_that_the_database_never_answers_hold_up_no_others(setup: Setup) -> None:
    tiers = setup.tiers(durable_timeout=0.05)
    setup.database.gate.clear()
    async with asyncio.TaskGroup() as group:
        hung = []
        for lane in ("one", "two"):
            setup.database.called.clear()
            hung.append(group.create_task(tiers.durable(lane, 60, record())))
            await setup.database.called.wait()
    assert [task.result() for task in hung] == [Nothing.BROKEN] * 2
    setup.database.gate = asyncio.Event()  # those that hang still do
    setup.database.gate.set()
    assert await tiers.durable("key", 60, record()) is Nothing.ABSENT


async def test_what_is_paid_for_when_the_process_ends_is_in_the_spool(setup: Setup) -> None:
    one, trail = item(), record()
    setup.database.gate.clear()
    store = setup.background.spawn("store", setup.tiers().store(one, entry_of(one), 60, trail))
    await setup.database.called.wait()
    assert await setup.background.drain(0) == 2
    assert store.cancelled()
    assert facts(trail) == [("store", "durable", "spooled"), ("store", "hot", "ok")]
    setup.database.gate.set()
    assert await setup.journal.flush(60)
    assert setup.database.objects == {one.object_id: one}


async def test_the_hot_tier_holds_what_may_be_of_use_past_its_ttl(setup: Setup) -> None:
    one, tiers = item(created_at=1000), setup.tiers()
    await tiers.store(one, entry_of(one), 60, record(), grace=100)
    setup.hot.puts.clear()
    await setup.hot.delete("key")
    setup.now = 1090.0
    assert await tiers.durable("key", 60, record(), grace=100) == entry_of(one)
    assert setup.hot.puts == [("key", 70.0)]


async def test_what_is_kept_is_found_with_its_object_and_not_promoted(setup: Setup) -> None:
    one, trail = item(created_at=1000), record()
    await setup.database.store([one])
    assert await setup.tiers().kept("key", trail) == (entry_of(one), one)
    assert setup.hot.puts == []
    assert facts(trail) == [("lookup", "durable", "hit")]


@pytest.mark.parametrize("over", [True, False])
async def test_a_promotion_takes_another_entry_s_place_only_where_it_may(setup: Setup, over: bool) -> None:
    older, newer = entry_of(item()), entry_of(item())
    await setup.hot.put("key", older, None)
    await setup.tiers().promote("key", newer, 60, record(), over=over)
    assert await setup.tiers().hot("key", record()) == (newer if over else older)


async def test_an_error_s_status_takes_an_entry_s_place_for_its_time(setup: Setup) -> None:
    tiers, trail = setup.tiers(), record()
    await tiers.remember("key", 404, 30.0, trail)
    assert await tiers.hot("key", record()) == Entry(uuid.UUID(int=0), setup.now, b"", 404)
    assert setup.hot.puts == [("key", 30.0)]
    assert facts(trail) == [("store", "hot", "ok")]
    assert setup.database.objects == {}


async def test_an_object_that_was_validated_is_as_old_as_its_confirmation(setup: Setup) -> None:
    one = item(created_at=1000, validated_at=1080.0)
    await setup.database.store([one])
    setup.now = 1090.0
    found = await setup.tiers().durable("key", 60, record())
    assert found == Entry(one.object_id, 1080.0, b'{"score":700}')
    assert setup.hot.puts == [("key", 50.0)]
