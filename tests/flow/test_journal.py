"""One row for every answer, none lost: from the spool into the database, whatever the database says."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker_edge.backends.spool import FileSpool
from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import Frame, ObjectFrame, RequestRow, pack_row, row_of
from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.journal import Journal
from tests.flow.doubles import Database, closed_trail, item


def spool_in(directory: Path, max_bytes: int = 2**26) -> FileSpool:
    return FileSpool(directory, segment_bytes=2**16, max_bytes=max_bytes)


class Setup:
    """A journal over real spools and a scripted database."""

    def __init__(self, directory: Path) -> None:
        self.database = Database()
        self.spool = spool_in(directory / "spool")
        self.rejected = spool_in(directory / "rejected")
        self.journal = self.another()

    def another(self) -> Journal:
        return Journal(self.spool, self.database, self.rejected, uuid.uuid4)

    def record(self, count: int) -> list[uuid.UUID]:
        runs = [uuid.uuid4() for _ in range(count)]
        for run in runs:
            self.journal.record(closed_trail(run))
        return runs

    @property
    def runs(self) -> list[uuid.UUID | None]:
        return [row.run_id for row in self.database.rows.values()]

    def set_aside(self) -> list[Frame]:
        decoder = msgspec.msgpack.Decoder[Frame](Frame)
        return [decoder.decode(frame) for frame in self.rejected.read(10_000)]

    def close(self) -> None:
        self.spool.close()
        self.rejected.close()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    setup.close()


async def test_a_row_is_in_the_spool_when_record_returns(setup: Setup) -> None:
    setup.record(1)
    assert (setup.spool.backlog_frames, setup.journal.appended, setup.database.rows) == (1, 1, {})


async def test_a_batch_takes_rows_in_order_and_forgets_them(setup: Setup) -> None:
    runs = setup.record(50)
    assert await setup.journal.ship_batch() == 50
    assert setup.runs == runs
    assert setup.database.batches == [(50, 0)]
    assert (setup.spool.backlog_frames, setup.journal.shipped) == (0, 50)
    assert await setup.journal.ship_batch() == 0


async def test_rows_and_objects_travel_in_one_transaction(setup: Setup) -> None:
    one = item(body=b"\x00\xff", content_type=None)
    setup.record(2)
    setup.journal.keep(one)
    assert await setup.journal.ship_batch() == 3
    assert setup.database.batches == [(2, 1)]
    assert setup.database.objects == {one.object_id: one}
    assert (setup.journal.appended, setup.journal.shipped) == (2, 2)


async def test_a_large_backlog_goes_in_bounded_batches(setup: Setup) -> None:
    runs = setup.record(4500)
    assert await setup.journal.flush(60)
    assert setup.runs == runs
    assert max(rows for rows, _ in setup.database.batches) <= 2000
    assert len(setup.database.batches) < 60


async def test_a_database_that_is_gone_loses_nothing(setup: Setup) -> None:
    runs = setup.record(5)
    setup.database.down = True
    for _ in range(3):
        with pytest.raises(TierBroken):
            await setup.journal.ship_batch()
    assert setup.journal.failing
    assert setup.spool.backlog_frames == 5
    runs += setup.record(2)
    setup.database.down = False
    assert await setup.journal.flush(60)
    assert setup.runs == runs
    assert not setup.journal.failing
    assert setup.journal.shipped == 7


async def test_what_a_process_left_is_shipped_by_the_next_one(setup: Setup, tmp_path: Path) -> None:
    runs = setup.record(5)
    setup.close()
    second = Setup(tmp_path)
    assert await second.journal.flush(60)
    assert second.runs == runs
    second.close()


@pytest.mark.parametrize("count", [1, 2, 100])
async def test_one_row_that_is_refused_holds_up_nothing(setup: Setup, count: int) -> None:
    runs = setup.record(count)
    bad = random.Random(count).choice(runs)
    setup.database.refuses = lambda one: isinstance(one, RequestRow) and one.run_id == bad
    assert await setup.journal.ship_batch() == count
    assert sorted(setup.runs) == sorted(run for run in runs if run != bad)
    assert [frame.run_id for frame in setup.set_aside() if isinstance(frame, RequestRow)] == [bad]
    assert (setup.journal.shipped, setup.journal.rejected) == (count - 1, 1)
    assert setup.spool.backlog_frames == 0
    assert len(setup.database.batches) <= 2 * count.bit_length() + 1


async def test_an_object_that_is_refused_holds_up_nothing(setup: Setup) -> None:
    good, bad = item("good"), item("bad")
    runs = setup.record(3)
    setup.journal.keep(bad)
    setup.journal.keep(good)
    setup.database.refuses = lambda one: isinstance(one, DataObject) and one.key == "bad"
    await setup.journal.ship_batch()
    assert sorted(setup.runs) == sorted(runs)
    assert set(setup.database.objects) == {good.object_id}
    assert setup.set_aside() == [ObjectFrame.of(bad)]
    assert (setup.journal.shipped, setup.journal.rejected) == (3, 1)


async def test_an_outage_while_a_bad_row_is_looked_for_loses_and_doubles_nothing(setup: Setup) -> None:
    runs = setup.record(16)
    bad = {runs[0], runs[9]}
    setup.database.refuses = lambda one: isinstance(one, RequestRow) and one.run_id in bad
    attempts = 0

    def fail_at_times() -> None:
        nonlocal attempts
        attempts += 1
        setup.database.down = attempts % 8 == 0 and attempts < 40

    setup.database.before = fail_at_times
    failures = 0
    while setup.spool.backlog_frames:
        try:
            await setup.journal.ship_batch()
        except TierBroken:
            failures += 1
            setup.database.before = fail_at_times if failures < 3 else lambda: None
            setup.database.down = False
    assert failures == 3
    assert sorted(setup.runs) == sorted(set(runs) - bad)
    assert [frame.run_id for frame in setup.set_aside() if isinstance(frame, RequestRow)] == [runs[0], runs[9]]
    assert (setup.journal.shipped, setup.journal.rejected) == (14, 2)


@pytest.mark.parametrize("frame", [b"\x00", b"\xc1", msgspec.msgpack.encode(["novelty", 1]), msgspec.msgpack.encode(["row", 1])])
async def test_a_frame_that_this_version_can_not_read_is_set_aside(setup: Setup, frame: bytes) -> None:
    before = setup.record(2)
    setup.spool.append(frame)
    after = setup.record(2)
    assert await setup.journal.flush(60)
    assert setup.runs == before + after
    assert list(setup.rejected.read(10)) == [frame]
    assert (setup.journal.shipped, setup.journal.rejected) == (4, 1)


async def test_rows_that_an_earlier_version_spooled_are_shipped_among_the_others(setup: Setup) -> None:
    runs = setup.record(2)
    old = uuid.uuid4()
    setup.spool.append(msgspec.msgpack.encode(row_of(closed_trail(old), uuid.uuid4())))
    runs += [old, *setup.record(2)]
    assert await setup.journal.flush(60)
    assert setup.runs == runs
    assert setup.journal.shipped == 5


async def test_rows_that_were_packed_before_rows_had_money_in_them_are_shipped_among_the_others(setup: Setup) -> None:
    runs = setup.record(2)
    old = uuid.uuid4()
    frame = pack_row(row_of(closed_trail(old), uuid.uuid4()))
    setup.spool.append(b"\x00\x0e" + frame[2:-16])  # fourteen fields
    runs += [old, *setup.record(2)]
    assert await setup.journal.flush(60)
    assert setup.runs == runs
    assert setup.journal.shipped == 5
    assert setup.set_aside() == []


async def test_an_earlier_version_s_row_that_no_column_can_hold_is_set_aside(setup: Setup) -> None:
    row = msgspec.structs.replace(row_of(closed_trail(uuid.uuid4()), uuid.uuid4()), status_code=2**40)
    setup.spool.append(msgspec.msgpack.encode(row))
    runs = setup.record(1)
    assert await setup.journal.flush(60)
    assert setup.runs == runs
    assert setup.set_aside() == [row]


async def test_ids_may_be_drawn_as_bytes(setup: Setup) -> None:
    drawn = uuid.uuid4()
    journal = Journal(setup.spool, setup.database, setup.rejected, lambda: drawn.bytes)
    journal.record(closed_trail(uuid.uuid4()))
    await journal.ship_batch()
    assert list(setup.database.rows) == [drawn]


async def test_nothing_is_forgotten_while_the_refused_can_not_be_set_aside(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.rejected = spool_in(tmp_path / "small", max_bytes=10)
    setup.journal = setup.another()
    runs = setup.record(3)
    setup.database.refuses = lambda one: isinstance(one, RequestRow) and one.run_id == runs[1]
    with pytest.raises(TierBroken):
        await setup.journal.ship_batch()
    assert setup.spool.backlog_frames == 3
    setup.close()


async def test_a_full_spool_refuses_the_row(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.spool = spool_in(tmp_path / "small", max_bytes=600)
    setup.journal = setup.another()
    with pytest.raises(TierBroken):
        setup.record(10)
    kept = setup.journal.appended
    assert 0 < kept == setup.spool.backlog_frames
    assert await setup.journal.flush(60)
    assert len(setup.database.rows) == kept
    setup.close()


async def test_a_flush_is_bounded_and_leaves_the_rest(setup: Setup) -> None:
    runs = setup.record(3)
    setup.database.gate.clear()
    assert not await setup.journal.flush(0.01)
    assert setup.spool.backlog_frames == 3
    setup.database.gate.set()
    assert await setup.journal.flush(60)
    assert setup.runs == runs


async def test_a_flush_without_a_database_says_so(setup: Setup) -> None:
    setup.record(1)
    setup.database.down = True
    assert not await setup.journal.flush(60)


async def test_there_is_nothing_to_flush_at_first(setup: Setup) -> None:
    assert await setup.journal.flush(60)
    assert setup.database.batches == []


async def test_two_that_ship_at_once_lose_and_double_nothing(setup: Setup) -> None:
    runs = setup.record(3)
    setup.database.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(setup.journal.ship_batch())
        await setup.database.called.wait()
        runs += setup.record(2)
        second = group.create_task(setup.journal.flush(60))
        await asyncio.sleep(0)
        setup.database.gate.set()
    assert first.result() == 3
    assert second.result()
    assert setup.runs == runs
    assert setup.journal.shipped == 5


async def test_a_shipper_that_is_cancelled_half_way_loses_nothing(setup: Setup) -> None:
    runs = setup.record(3)
    setup.database.gate.clear()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(setup.journal.ship_batch())
        await setup.database.called.wait()
        task.cancel()
    setup.database.gate.set()
    assert await setup.journal.flush(60)
    assert setup.runs == runs


async def test_the_shipper_ships_what_comes_and_gets_over_outages(setup: Setup) -> None:
    background = Background(lambda *_: None)
    background.supervise("journal", setup.journal.ship_forever)
    runs = setup.record(2)
    await until_shipped(setup, 2)
    setup.database.down = True
    setup.database.called.clear()
    runs += setup.record(2)
    await setup.database.called.wait()
    setup.database.down = False
    await until_shipped(setup, 4)
    await background.stop()
    assert setup.runs == runs


async def test_the_shipper_begins_with_what_it_finds(setup: Setup, tmp_path: Path) -> None:
    setup.record(2)
    setup.close()
    second, background = Setup(tmp_path), Background(lambda *_: None)
    background.supervise("journal", second.journal.ship_forever)
    await until_shipped(second, 2)
    await background.stop()
    second.close()


async def until_shipped(setup: Setup, count: int) -> None:
    async with asyncio.timeout(30):
        while True:
            if setup.journal.shipped >= count:
                return
            await asyncio.sleep(0.005)


async def test_the_age_of_the_backlog_is_zero_where_there_is_none(setup: Setup) -> None:
    assert setup.journal.waiting_for() == 0
    setup.record(1)
    await asyncio.sleep(0.002)
    assert setup.journal.waiting_for() > 0
    await setup.journal.flush(60)
    assert setup.journal.waiting_for() == 0


async def test_an_object_alone_in_the_spool_has_an_age_too(setup: Setup) -> None:
    setup.journal.keep(item())
    await asyncio.sleep(0.002)
    assert setup.journal.waiting_for() > 0


async def test_what_an_earlier_process_left_has_an_age_while_the_database_is_gone(setup: Setup, tmp_path: Path) -> None:
    setup.record(1)
    setup.close()
    second = Setup(tmp_path)
    second.database.down = True
    with pytest.raises(TierBroken):
        await second.journal.ship_batch()
    await asyncio.sleep(0.002)
    assert second.journal.waiting_for() > 0
    second.close()


async def test_a_database_that_falls_silent_is_given_up_and_loses_nothing(setup: Setup) -> None:
    journal = Journal(setup.spool, setup.database, setup.rejected, uuid.uuid4, within=0.01)
    runs = setup.record(3)
    setup.database.gate.clear()
    async with asyncio.timeout(30):
        with pytest.raises(TierBroken):
            await journal.ship_batch()
    assert journal.failing
    setup.database.gate.set()
    assert await journal.ship_batch() == 3
    assert setup.runs == runs
    assert not journal.failing


@pytest.mark.parametrize("moment", [float("inf"), float("-inf"), float("nan"), 1e300])
async def test_a_row_from_the_end_of_time_is_set_aside(setup: Setup, moment: float) -> None:
    row = msgspec.structs.replace(row_of(closed_trail(uuid.uuid4()), uuid.uuid4()), created_at=moment)
    setup.spool.append(msgspec.msgpack.encode(row))
    runs = setup.record(1)
    assert await setup.journal.ship_batch() == 2
    assert setup.runs == runs
    assert setup.journal.rejected == 1
