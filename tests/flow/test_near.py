"""The near tier: what it takes and what it forgets, how much it holds, and that no look-up brings back what was invalidated."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from broker_edge.backends.memory import MemoryHot
from broker_edge.backends.near import NearCache
from broker_edge.backends.spool import FileSpool
from broker_edge.core.exchange import Entry
from broker_edge.core.trail import Record
from broker_edge.flow.background import Background
from broker_edge.flow.journal import Journal
from broker_edge.flow.near import NoNear
from broker_edge.flow.tiers import Nothing, Tiers
from broker_edge.ports import NearTier
from tests.flow.doubles import Database, entry_of, item, record

BOUND = 2**20
KEY = "0123456789abcdef0123456789abcdef"


def entry(value: bytes = b'{"score":700}') -> Entry:
    return Entry(uuid.uuid4(), 1000.0, value)


def keys(count: int) -> list[str]:
    return [f"{number:032x}" for number in range(count)]


@pytest.fixture
def near() -> NearCache:
    near = NearCache(BOUND)
    near.open()
    return near


def put(near: NearCache, key: str, one: Entry) -> None:
    near.offer(key, one, near.begin(key))


def test_what_is_offered_is_found(near: NearCache) -> None:
    one = entry()
    put(near, KEY, one)
    assert near.get(KEY) is one


def test_an_entry_that_is_offered_again_replaces_the_former(near: NearCache) -> None:
    put(near, KEY, entry())
    size, newer = near.bytes_held, entry()
    put(near, KEY, newer)
    assert (near.get(KEY), near.bytes_held) == (newer, size)


def test_what_is_forgotten_is_gone_and_nothing_else(near: NearCache) -> None:
    names = keys(100)
    for name in names:
        put(near, name, entry())
    near.forget([*names[:50], "never seen"])
    assert [near.get(name) is None for name in names] == [True] * 50 + [False] * 50


def test_what_changed_since_it_was_asked_for_is_not_taken(near: NearCache) -> None:
    begun = near.begin(KEY)
    near.forget([KEY])
    near.offer(KEY, entry(), begun)
    assert near.get(KEY) is None


def test_what_is_asked_for_after_the_change_is_taken(near: NearCache) -> None:
    near.forget([KEY])
    put(near, KEY, entry())
    assert near.get(KEY) is not None


def test_a_change_of_other_keys_seldom_keeps_an_entry_out(near: NearCache) -> None:
    names = keys(300)
    begun = [near.begin(name) for name in names]
    near.forget(["another key", "and one more"])
    for name, stamp in zip(names, begun, strict=True):
        near.offer(name, entry(), stamp)
    assert sum(near.get(name) is not None for name in names) > 280


def test_a_tier_that_was_never_opened_takes_nothing() -> None:
    near = NearCache(BOUND)
    put(near, KEY, entry())
    assert near.get(KEY) is None


@pytest.mark.parametrize("happens", [["close"], ["drop"], ["close", "open"], ["open"]], ids="+".join)
def test_what_was_asked_for_before_a_break_is_not_taken_after_it(near: NearCache, happens: list[str]) -> None:
    begun = near.begin(KEY)
    for what in happens:
        getattr(near, what)()
    near.offer(KEY, entry(), begun)
    assert near.get(KEY) is None


@pytest.mark.parametrize("happens", ["close", "drop"])
def test_a_break_drops_everything(near: NearCache, happens: str) -> None:
    names = keys(200)
    for name in names:
        put(near, name, entry())
    getattr(near, happens)()
    assert {near.get(name) for name in names} == {None}
    assert near.bytes_held == 0


def test_it_serves_again_once_it_is_opened_again(near: NearCache) -> None:
    near.close()
    near.open()
    put(near, KEY, entry())
    assert near.get(KEY) is not None


@pytest.mark.parametrize(("size", "taken"), [(BOUND // 32, True), (BOUND // 16 + 1, False)])
def test_a_value_that_would_drive_out_too_many_is_not_taken(near: NearCache, size: int, taken: bool) -> None:
    put(near, KEY, entry(b"x" * size))
    assert (near.get(KEY) is not None) is taken


def test_it_never_holds_more_bytes_than_its_bound(near: NearCache) -> None:
    for number, name in enumerate(keys(5000)):
        put(near, name, entry(b"x" * (number * 37 % 5000)))
    assert BOUND // 2 < near.bytes_held <= BOUND


def test_a_scan_does_not_drive_out_what_is_asked_for_often(near: NearCache) -> None:
    often, hits = keys(100), 0
    for number in range(20_000):
        # Each of the hundred comes round after 2,000 others, which are more than the bound holds.
        name = often[number // 20 % 100] if number % 20 == 0 else f"scanned {number}"
        if near.get(name) is None:
            put(near, name, entry())
        else:
            hits += 1
    assert near.bytes_held > BOUND * 0.9
    assert hits > 500


_GROWTH = """
import random, sys, uuid
import psutil
from broker_edge.backends.near import NearCache
from broker_edge.core.exchange import Entry
bound, near = 32 * 2**20, NearCache(32 * 2**20)
near.open()
before = psutil.Process().memory_info().rss
draw = random.Random(1)
for number in range(150_000):
    key, size = f"{number:032x}", int(draw.choice((20, 1024, 1024, 1024, 6000)))
    near.offer(key, Entry(uuid.UUID(int=number), 1e9 + number, b"x" * size), near.begin(key))
print((psutil.Process().memory_info().rss - before) / bound, near.bytes_held / bound)
"""


def test_the_process_grows_by_the_bound_and_no_more_however_many_keys_are_seen() -> None:
    line = [sys.executable, "-c", _GROWTH]
    grown, held = map(float, subprocess.run(line, capture_output=True, text=True, check=True, timeout=100).stdout.split())
    assert held > 0.9
    assert 0.5 < grown <= 1.1


# Under the tiers


class GatedHot(MemoryHot):
    """Reads at once and answers when `gate` opens, as a reply does that is on its way; the same for puts."""

    def __init__(self) -> None:
        super().__init__(2**24)
        self.gate = asyncio.Event()
        self.gate.set()
        self.read = asyncio.Event()
        self.written = asyncio.Event()
        self.gets = 0

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        self.gets += 1
        answers = await super().get_many(keys)
        self.read.set()
        await self.gate.wait()
        return answers

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        await super().put(key, entry, lifetime, only_if_absent=only_if_absent)
        self.written.set()
        await self.gate.wait()


class Setup:
    def __init__(self, directory: Path) -> None:
        self.near = NearCache(BOUND)
        self.near.open()
        self.hot = GatedHot()
        self.database = Database()
        self.spools = [FileSpool(directory / name, segment_bytes=2**16, max_bytes=2**24) for name in ("spool", "rejected")]
        self.background = Background(lambda *_: None)
        self.tiers = self.tiers_over(self.near)

    def tiers_over(self, near: NearTier | None) -> Tiers:
        return Tiers(
            self.hot,
            self.database,
            Journal(self.spools[0], self.database, self.spools[1], uuid.uuid4),
            self.background,
            durable_timeout=30,
            hot_max_value=2**20,
            near=near,
            random=lambda: 0.0,
            now=lambda: 1000.0,
        )

    async def looked_up(self, way: str) -> Entry | Nothing:
        if way == "hot":
            return await self.tiers.hot(KEY, record())
        answer: asyncio.Future[Entry | Nothing] = asyncio.get_running_loop().create_future()
        self.tiers.look(KEY, record(), answer.set_result)
        return await answer


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.background.drain(10)
    for spool in setup.spools:
        spool.close()


def facts(of: Record) -> list[tuple[str, str, str]]:
    return [(fact.kind, fact.subject, fact.result) for fact in of.facts]


WAYS = pytest.mark.parametrize("way", ["hot", "look"])


@WAYS
async def test_a_hot_hit_is_near_the_next_time_and_asks_nobody(setup: Setup, way: str) -> None:
    one, trail = entry(), record()
    await setup.hot.put(KEY, one, 60)
    assert setup.tiers.near(KEY, trail) is None
    assert await setup.looked_up(way) == one
    gets = setup.hot.gets
    assert setup.tiers.near(KEY, trail) == one
    assert setup.hot.gets == gets
    assert facts(trail) == [("lookup", "near", "hit")]


@WAYS
async def test_an_answer_on_its_way_when_its_key_changes_is_given_and_not_kept(setup: Setup, way: str) -> None:
    old, new = entry(b'"old"'), entry(b'"new"')
    await setup.hot.put(KEY, old, 60)
    setup.hot.gate.clear()
    async with asyncio.TaskGroup() as group:
        late = group.create_task(setup.looked_up(way))
        await setup.hot.read.wait()
        await MemoryHot.put(setup.hot, KEY, new, 60)
        setup.near.forget([KEY])
        setup.hot.gate.set()
    assert late.result() == old
    assert setup.near.get(KEY) is None
    assert await setup.looked_up(way) == new
    assert setup.near.get(KEY) == new


@WAYS
async def test_an_answer_on_its_way_when_the_news_break_off_is_not_kept(setup: Setup, way: str) -> None:
    await setup.hot.put(KEY, entry(), 60)
    setup.hot.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(setup.looked_up(way))
        await setup.hot.read.wait()
        setup.near.close()
        setup.near.open()
        setup.hot.gate.set()
    assert setup.near.get(KEY) is None


async def test_what_is_stored_here_is_not_near_any_more_when_the_store_returns(setup: Setup) -> None:
    put(setup.near, KEY, entry(b'"old"'))
    one = item(KEY)
    await setup.tiers.store(one, entry_of(one), 60, record())
    assert setup.near.get(KEY) is None


@WAYS
async def test_what_is_read_while_a_store_is_under_way_is_not_kept(setup: Setup, way: str) -> None:
    await setup.hot.put(KEY, entry(b'"old"'), 60)
    setup.hot.written.clear()
    setup.hot.gate.clear()
    one = item(KEY)
    async with asyncio.TaskGroup() as group:
        group.create_task(setup.looked_up(way))
        await setup.hot.read.wait()
        group.create_task(setup.tiers.store(one, entry_of(one), 60, record()))
        await setup.hot.written.wait()
        setup.hot.gate.set()
    assert setup.near.get(KEY) in (None, entry_of(one))


async def test_what_is_stored_or_promoted_is_not_near_before_the_hot_tier_has_vouched_for_it(setup: Setup) -> None:
    one = item(KEY)
    await setup.tiers.store(one, entry_of(one), 60, record())
    await setup.hot.delete(KEY)
    assert await setup.tiers.durable(KEY, 60, record()) == entry_of(one)
    assert setup.near.get(KEY) is None


@pytest.mark.parametrize("none", [None, NoNear()], ids=["unset", "null"])
async def test_without_a_near_tier_every_look_up_goes_to_the_hot_tier(setup: Setup, none: NearTier | None) -> None:
    setup.tiers, trail = setup.tiers_over(none), record()
    one = item(KEY)
    await setup.tiers.store(one, entry_of(one), 60, record())
    for _ in range(3):
        assert setup.tiers.near(KEY, trail) is None
        assert await setup.tiers.hot(KEY, trail) == entry_of(one)
    assert facts(trail) == [("lookup", "hot", "hit")] * 3
