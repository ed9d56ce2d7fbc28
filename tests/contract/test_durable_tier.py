"""The contract of `ports.DurableTier`, over SQLite and Postgres."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_direct import Connection, statement
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.tables import data_object, run_data_cache, run_data_request
from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import ObjectFrame, PackedRows, RequestRow, pack_row
from broker_edge.errors import TierBroken
from broker_edge.ports import Refused
from broker_edge.settings import load
from tests import servers

ODD = "caf\u00e9 \U0001f600 \\ \t \n \\N \\. \x00 \ud800 '\""


def item(key: str | None = None, **members: Any) -> DataObject:
    values: dict[str, Any] = {
        "object_id": uuid.uuid4(),
        "data_source_id": uuid.uuid4(),
        "key": key or uuid.uuid4().hex,
        "body": b'{"score": 700}',
        "created_at": 1_700_000_000.123456,
        "content_type": "application/json",
        "response_type": "JSON",
        "status": 200,
        "reusable": True,
    }
    return DataObject(**{**values, **members})


def row(**members: Any) -> RequestRow:
    values: dict[str, Any] = {
        "run_data_request_id": uuid.uuid4(),
        "created_at": 1_700_000_000.654321,
        "run_id": uuid.uuid4(),
        "data_object_id": uuid.uuid4(),
        "data_source_id": uuid.uuid4(),
        "data_origin": "REQUEST",
        "start_time": 1_700_000_000.1,
        "end_time": 1_700_000_000.9,
        "error": None,
        "project_id": uuid.uuid4(),
        "key": uuid.uuid4().hex,
        "outcome": "fetched",
        "status_code": 200,
        "trace_id": f"{random.getrandbits(128):032x}",
        "calls": 2,
        "cost_micros": 2**40,
        "saved_micros": 2**41,
        "currency": "BRL",
    }
    return RequestRow(**{**values, **members})


def bare_row() -> RequestRow:
    """A request that was refused before anything was known of it."""
    names = ("run_id", "data_object_id", "data_source_id", "data_origin", "start_time", "end_time", "error", "project_id", "key")
    money = ("calls", "cost_micros", "saved_micros", "currency")
    return row(**dict.fromkeys((*names, *money)), outcome="invalid_request", status_code=400)


def url_of(kind: str, request: pytest.FixtureRequest, directory: Path) -> str:
    url = f"sqlite:///{directory / 'edge.sqlite3'}" if kind == "sqlite" else request.getfixturevalue("postgres_server").create()
    return load({}, database_url=url).database


@pytest.fixture
def tier(engine: AsyncEngine) -> SqlDurable:
    return SqlDurable(engine)


async def rows_of(engine: AsyncEngine, wanted: list[RequestRow]) -> dict[uuid.UUID, Any]:
    ids = [one.run_data_request_id for one in wanted]
    async with engine.connect() as connection:
        found = await connection.execute(sa.select(run_data_request).where(run_data_request.c.run_data_request_id.in_(ids)))
        return {one.run_data_request_id: one for one in found}


async def objects_of(engine: AsyncEngine, wanted: list[DataObject]) -> set[uuid.UUID]:
    ids = [one.object_id for one in wanted]
    async with engine.connect() as connection:
        found = await connection.execute(sa.select(data_object.c.data_object_id).where(data_object.c.data_object_id.in_(ids)))
        return set(found.scalars())


async def test_look_ups_answer_in_the_order_of_the_keys(tier: SqlDurable) -> None:
    one, two = item(), item(body=b"<x/>", response_type="XML", content_type=None, status=203)
    await tier.store([one, two])
    assert await tier.lookup([two.key, "unknown", one.key, two.key]) == [two, None, one, two]


async def test_nothing_asked_is_nothing_answered(tier: SqlDurable) -> None:
    assert list(await tier.lookup([])) == []
    await tier.store([])
    await tier.append([], [])


@pytest.mark.parametrize("body", [b"", b"\x00\xff\\x00", b"x" * (6 * 2**20)], ids=["empty", "binary", "large"])
async def test_bodies_come_back_byte_for_byte(tier: SqlDurable, body: bytes) -> None:
    one = item(body=body)
    await tier.store([one])
    found = (await tier.lookup([one.key]))[0]
    assert found is not None
    assert found.body == body
    assert type(found.body) is bytes


@pytest.mark.parametrize("created_at", [0.0, 1.000001, 1_700_000_000.999999, 4_102_444_800.000001])
async def test_times_survive_to_the_microsecond(tier: SqlDurable, created_at: float) -> None:
    one = item(created_at=created_at)
    await tier.store([one])
    found = (await tier.lookup([one.key]))[0]
    assert found is not None
    assert abs(found.created_at - created_at) < 1e-6


async def test_storing_twice_changes_nothing(tier: SqlDurable, engine: AsyncEngine) -> None:
    one = item()
    await tier.store([one])
    await tier.store([one, one])
    assert await tier.lookup([one.key]) == [one]
    assert await objects_of(engine, [one]) == {one.object_id}


async def test_an_object_is_immutable(tier: SqlDurable) -> None:
    one = item()
    await tier.store([one])
    await tier.store([item(one.key, object_id=one.object_id, body=b"else")])
    found = (await tier.lookup([one.key]))[0]
    assert found is not None
    assert found.body == one.body


VALIDATED = {"project_id": uuid.uuid4(), "etag": 'W/"v1"', "last_modified": "Wed, 21 Oct 2015 07:28:00 GMT"}


@pytest.mark.parametrize("beside", [0, 3])
async def test_an_object_keeps_its_project_and_its_validators(tier: SqlDurable, engine: AsyncEngine, beside: int) -> None:
    items = [item(**VALIDATED), *(item() for _ in range(beside))]
    await tier.store(items)
    assert await tier.lookup([one.key for one in items]) == items
    async with engine.connect() as connection:
        columns = data_object.c.project_id, data_object.c.etag, data_object.c.last_modified
        statement = sa.select(*columns).where(data_object.c.data_object_id == items[0].object_id)
        assert tuple((await connection.execute(statement)).one()) == tuple(VALIDATED.values())


@pytest.mark.parametrize("beside", [0, 3])
async def test_an_object_that_is_validated_is_renewed_and_stays_what_it_is(
    tier: SqlDurable, engine: AsyncEngine, beside: int
) -> None:
    one, others = item(created_at=1000.5, **VALIDATED), [item() for _ in range(beside)]
    await tier.store([one])
    renewed = msgspec.structs.replace(one, validated_at=2000.25)
    await tier.store([renewed, *others])
    assert await tier.lookup([one.key, *(other.key for other in others)]) == [renewed, *others]
    async with engine.connect() as connection:
        statement = sa.select(data_object.c.created_at).where(data_object.c.key == one.key)
        [created_at] = (await connection.execute(statement)).scalars()
        assert created_at.replace(tzinfo=UTC).timestamp() == 1000.5


@pytest.mark.parametrize("beside", [0, 3])
async def test_a_renewed_object_gives_way_to_what_is_newer_than_its_renewal_only(tier: SqlDurable, beside: int) -> None:
    one = item(created_at=1000)
    renewed, between = msgspec.structs.replace(one, validated_at=2000.0), item(one.key, created_at=1500)
    newer = item(one.key, created_at=2000.5)
    await tier.store([renewed])
    await tier.store([between, *(item() for _ in range(beside))])
    assert await tier.lookup([one.key]) == [renewed]
    await tier.store([newer, msgspec.structs.replace(one, validated_at=2000.25), *(item() for _ in range(beside))])
    assert await tier.lookup([one.key]) == [newer]


async def test_a_renewal_that_arrives_late_by_way_of_the_spool_changes_nothing(tier: SqlDurable) -> None:
    one = item(created_at=1000)
    late, renewed = (msgspec.structs.replace(one, validated_at=time) for time in (1500.0, 2000.0))
    await tier.store([renewed])
    await tier.append([row()], [ObjectFrame.of(late).restore()])
    assert await tier.lookup([one.key]) == [renewed]


@pytest.mark.parametrize("together", [True, False])
async def test_an_older_object_never_replaces_a_newer_one(tier: SqlDurable, engine: AsyncEngine, together: bool) -> None:
    newer = item(created_at=2000.5)
    older = item(newer.key, created_at=2000.499999)
    newest = item(newer.key, created_at=2000.500001)
    if together:
        await tier.store([newer, older])
    else:
        await tier.store([newer])
        await tier.store([older])
    assert await tier.lookup([newer.key]) == [newer]
    await tier.store([newest])
    assert await tier.lookup([newer.key]) == [newest]
    assert await objects_of(engine, [newer, older, newest]) == {newer.object_id, older.object_id, newest.object_id}


async def test_an_object_that_may_not_be_reused_is_kept_and_never_found(tier: SqlDurable, engine: AsyncEngine) -> None:
    one = item(reusable=False)
    await tier.store([one])
    assert await objects_of(engine, [one]) == {one.object_id}
    assert await tier.lookup([one.key]) == [None]
    async with engine.connect() as connection:
        assert (await connection.execute(sa.select(run_data_cache).where(run_data_cache.c.key == one.key))).all() == []


async def test_one_that_may_not_be_reused_leaves_the_one_that_may(tier: SqlDurable) -> None:
    one = item(created_at=1000)
    await tier.store([one])
    await tier.store([item(one.key, created_at=2000, reusable=False)])
    assert await tier.lookup([one.key]) == [one]


@pytest.mark.parametrize("count", [1, 7, 8, 500])
async def test_rows_arrive_whole_however_many_there_are(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    error = {"code": "TIMEOUT", "message": "late", "source": "upstream", "retryable": True, "upstream_status": 504}
    rows = [(row(), bare_row(), row(error=error, data_origin=None, data_object_id=None))[number % 3] for number in range(count)]
    await tier.append(rows, [])
    found = await rows_of(engine, rows)
    assert len(found) == count
    for wanted in rows:
        kept = dict(found[wanted.run_data_request_id]._mapping)
        kept["created_at"] = kept["created_at"].strftime("%Y-%m-%d %H:%M:%S.%f")
        expected = {**msgspec.structs.asdict(wanted), "created_at": "2023-11-14 22:13:20.654321"}
        assert kept == expected


@pytest.mark.parametrize("count", [1, 7, 8, 500])
async def test_odd_text_in_an_error_is_no_obstacle(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    rows = [row(error={"code": "INVALID_REQUEST", "message": f"{ODD}{number}"}) for number in range(count)]
    await tier.append(rows, [item(content_type=f"text/{ODD}")])
    found = await rows_of(engine, rows)
    for number, wanted in enumerate(rows):
        message = found[wanted.run_data_request_id].error["message"]
        assert message == ODD.replace("\x00", "\ufffd").replace("\ud800", "?") + str(number)


@pytest.mark.parametrize("count", [1, 500])
async def test_a_row_without_an_error_has_none_rather_than_a_json_null(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    rows = [row() for _ in range(count)]
    await tier.append(rows, [])
    ids = [one.run_data_request_id for one in rows]
    table = run_data_request.c
    statement = sa.select(sa.func.count()).where(table.run_data_request_id.in_(ids), table.error.is_(sa.null()))
    async with engine.connect() as connection:
        assert (await connection.execute(statement)).scalar_one() == count


@pytest.mark.parametrize("count", [1, 8, 500])
async def test_rows_that_come_twice_are_there_once(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    rows, more = [row() for _ in range(count)], [row() for _ in range(count)]
    await tier.append(rows, [])
    await tier.append([*more, *rows], [])
    assert len(await rows_of(engine, [*rows, *more])) == 2 * count


@pytest.mark.parametrize("count", [2, 500])
async def test_a_row_twice_in_one_batch_is_there_once(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    rows = [row() for _ in range(count // 2)] * 2
    await tier.append(rows, [])
    assert len(await rows_of(engine, rows)) == count // 2


@pytest.mark.parametrize("count", [1, 500])
async def test_what_the_database_refuses_leaves_nothing_behind(
    tier: SqlDurable, engine: AsyncEngine, forbidden: str, count: int
) -> None:
    rows, one = [row() for _ in range(count)], item()
    rows[count // 2] = row(outcome=forbidden)
    with pytest.raises(Refused):
        await tier.append(rows, [one])
    assert await rows_of(engine, rows) == {}
    assert await objects_of(engine, [one]) == set()
    assert await tier.lookup([one.key]) == [None]
    await tier.append([kept for kept in rows if kept.outcome != forbidden], [one])
    assert await tier.lookup([one.key]) == [one]


@pytest.fixture
async def forbidden(engine: AsyncEngine) -> str:
    """An outcome that the database's own rules forbid: somebody has added one that this version doesn't know."""
    if engine.dialect.name == "sqlite":
        when = "BEFORE INSERT ON run_data_request WHEN NEW.outcome = 'forbidden'"
        statements = [f"CREATE TRIGGER IF NOT EXISTS strict {when} BEGIN SELECT RAISE(ABORT, 'no'); END"]
    else:
        table = "data_broker.run_data_request"
        statements = [
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS strict",
            f"ALTER TABLE {table} ADD CONSTRAINT strict CHECK (outcome <> 'forbidden')",
        ]
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))
    return "forbidden"


@pytest.mark.parametrize("count", [1, 500])
@pytest.mark.parametrize("bad", [{"status_code": 2**80}, {"outcome": "a\ud800b"}, {"error": {"code": {1, 2}}}], ids=repr)
async def test_a_value_that_can_not_be_written_is_refused_rather_than_waited_for(
    tier: SqlDurable, engine: AsyncEngine, count: int, bad: dict[str, Any]
) -> None:
    rows = [row() for _ in range(count - 1)] + [row(**bad)]
    with pytest.raises(Refused) as refusal:
        await tier.append(rows, [])
    assert str(refusal.value).isidentifier()
    assert await rows_of(engine, rows) == {}
    await tier.append(rows[:-1], [])


async def test_a_refusal_names_no_value(tier: SqlDurable, forbidden: str) -> None:
    bad = row(outcome=forbidden, error={"code": "X", "message": "canary-4711"})
    for rows in ([bad], [bad] * 20):
        with pytest.raises(Refused) as refusal:
            await tier.append(rows, [])
        assert "canary" not in f"{refusal.value!r} {refusal.value.__cause__!r}"
        assert refusal.value.__suppress_context__


async def test_an_object_is_there_for_others_when_store_returns(tier: SqlDurable, database: str) -> None:
    one = item()
    await tier.store([one])
    other = SqlDurable(make_engine(database))
    assert await other.lookup([one.key]) == [one]
    await other.aclose()


async def test_concurrent_stores_of_the_same_keys_all_succeed(tier: SqlDurable, engine: AsyncEngine) -> None:
    chance, keys = random.Random(3), [uuid.uuid4().hex for _ in range(12)]
    batches = []
    for number in range(24):
        chance.shuffle(keys)
        batches.append([item(key, created_at=1000.0 + number) for key in keys])
    async with asyncio.TaskGroup() as group:
        for batch in batches:
            group.create_task(tier.store(batch))
    found = await tier.lookup(keys)
    assert {one.created_at for one in found if one} == {1023.0}
    assert len(await objects_of(engine, [one for batch in batches for one in batch])) == 24 * 12


async def test_the_same_objects_and_rows_from_many_sides_in_any_order_do_no_harm(tier: SqlDurable, engine: AsyncEngine) -> None:
    chance = random.Random(4)
    for _ in range(4):
        objects, rows = [item() for _ in range(60)], [row() for _ in range(60)]
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                mixed = chance.sample(rows, 60), chance.sample(objects, 60)
                group.create_task(tier.append(*mixed))
        assert len(await objects_of(engine, objects)) == 60
        assert len(await rows_of(engine, rows)) == 60


async def test_a_cancelled_store_gives_its_connection_back(tier: SqlDurable) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tier.store([item(body=b"x" * 100_000)])) for _ in range(40)]
        for _ in range(5):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
    one = item()
    await tier.store([one])
    assert await tier.lookup([one.key]) == [one]


async def test_a_database_that_works_answers_a_ping(tier: SqlDurable) -> None:
    await tier.ping()


# Batches, which take another way than a lone object or key.


async def test_a_batch_of_new_objects_is_found_whole(tier: SqlDurable) -> None:
    items = [item(body=f"{number}".encode(), created_at=1000.25 + number, status=200 + number) for number in range(30)]
    items += [item(content_type=None, response_type="XML"), item(body=b""), item(body=bytes(range(256)) * 50)]
    await tier.store(random.Random(1).sample(items, len(items)))
    assert await tier.lookup([one.key for one in items]) == items


async def test_an_object_that_comes_twice_in_a_batch_is_stored_once(tier: SqlDurable, engine: AsyncEngine) -> None:
    one, two = item(), item()
    await tier.store([one, two, one])
    assert await tier.lookup([one.key, two.key]) == [one, two]
    assert await objects_of(engine, [one, two]) == {one.object_id, two.object_id}


async def test_of_a_batch_s_objects_under_one_key_the_newest_reusable_one_is_found(tier: SqlDurable, engine: AsyncEngine) -> None:
    key, other = uuid.uuid4().hex, item()
    items = [item(key, created_at=1000.0 + number % 7) for number in range(13)]
    newest = item(key, created_at=1007.0)
    unusable = item(key, created_at=1008.0, reusable=False)
    batch = [*items, other, newest, unusable]
    await tier.store(random.Random(2).sample(batch, len(batch)))
    assert await tier.lookup([key, other.key]) == [newest, other]
    assert len(await objects_of(engine, batch)) == len(batch)


async def test_odd_text_and_large_bodies_in_a_batch_are_no_obstacle(tier: SqlDurable) -> None:
    batch = [item(content_type=f"text/{ODD}", body=b"x" * size) for size in (10, 3 * 2**20, 6 * 2**20)]
    await tier.store(batch)
    await tier.store(batch[:2])
    found = await tier.lookup([one.key for one in batch])
    assert [one and one.body for one in found] == [one.body for one in batch]
    assert {one and one.content_type for one in found} == {"text/" + ODD.replace("\x00", "\ufffd").replace("\ud800", "?")}


@pytest.mark.parametrize("bad", [{"status": 2**80}, {"key": "a\ud800b"}, {"response_type": "a\ud800b"}], ids=repr)
async def test_an_object_that_can_not_be_written_takes_its_batch_with_it(
    tier: SqlDurable, engine: AsyncEngine, bad: dict[str, Any]
) -> None:
    good = [item() for _ in range(5)]
    with pytest.raises(Refused) as refusal:
        await tier.store([*good, item(**bad)])
    assert str(refusal.value).isidentifier()
    assert await objects_of(engine, good) == set()
    await tier.store(good)
    assert await tier.lookup([one.key for one in good]) == good


async def test_packed_rows_arrive_like_any_others(tier: SqlDurable, engine: AsyncEngine) -> None:
    rows = [row(error={"code": "X"}) if number % 3 else bare_row() for number in range(20)]
    frames = [pack_row(one) for one in rows]
    random.Random(5).shuffle(frames)
    await tier.append(PackedRows(frames), [])
    await tier.append(PackedRows(frames[:7]), [])
    found = await rows_of(engine, rows)
    assert {name: (one.outcome, one.error, one.start_time) for name, one in found.items()} == {
        one.run_data_request_id: (one.outcome, one.error, one.start_time) for one in rows
    }


@pytest.mark.parametrize("count", [1, 20])
async def test_what_only_looks_like_a_packed_row_is_refused(tier: SqlDurable, engine: AsyncEngine, count: int) -> None:
    rows = [row() for _ in range(count)]
    frames = [pack_row(one) for one in rows]
    for bad in (frames[0][:-1], frames[0] + b"x", frames[0][:50]):
        with pytest.raises(Refused):
            await tier.append(PackedRows([*frames[1:], bad]), [])
    assert await rows_of(engine, rows) == {}


async def test_batches_and_lone_objects_of_the_same_keys_from_many_sides_all_succeed(tier: SqlDurable) -> None:
    chance, keys = random.Random(6), [uuid.uuid4().hex for _ in range(6)]
    objects = [item(key, created_at=1000.0 + number) for number in range(6) for key in keys]
    async with asyncio.TaskGroup() as group:
        for number in range(30):
            mixed = chance.sample(objects, len(objects))
            group.create_task(tier.store(mixed))
            group.create_task(tier.append([row() for _ in range(number)], mixed[:20]))
            group.create_task(tier.store(mixed[:1]))
    assert [one and one.created_at for one in await tier.lookup(keys)] == [1005.0] * 6


async def test_cancelled_batches_give_their_connections_back(postgres_server: servers.Postgres) -> None:
    tier = SqlDurable(make_engine(load({}, database_url=postgres_server.create()).database))
    await migrate(tier._engine)
    keys = [item().key for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[Any]] = []
        tasks += [group.create_task(tier.store([item(body=b"x" * 50_000), item(), item()])) for _ in range(20)]
        tasks += [group.create_task(tier.lookup(keys)) for _ in range(20)]
        for number, task in enumerate(random.Random(7).sample(tasks, 30)):
            await asyncio.sleep(0.0005 * (number % 3))
            task.cancel()
    batch = [item(), item()]
    for _ in range(10):
        await tier.store(batch)
        assert await tier.lookup([one.key for one in batch]) == batch
    await tier.aclose()


# Outages.


async def test_a_postgres_that_restarts_costs_batches_nothing() -> None:
    with servers.postgres() as server:
        tier = SqlDurable(make_engine(load({}, database_url=server.create()).database, timeout=20))
        await migrate(tier._engine)
        batch = [item(), item()]
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(tier.store(batch))
        server.kill()
        server.start()
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(tier.store(batch))
        assert await tier.lookup([one.key for one in batch]) == batch
        await tier.aclose()


async def test_a_pooler_that_forgets_prepared_statements_is_got_along_with(postgres_server: servers.Postgres) -> None:
    engine = make_engine(load({}, database_url=postgres_server.create()).database, pool_size=1)
    tier = SqlDurable(engine)
    await migrate(engine)
    batch = [item(), item()]
    for _ in range(3):
        await tier.store(batch)
        assert await tier.lookup([one.key for one in batch]) == batch
        async with engine.connect() as connection:
            await connection.exec_driver_sql("DEALLOCATE ALL")
    await tier.aclose()


Call = Callable[[SqlDurable], Any]
CALLS: dict[str, Call] = {
    "lookup": lambda tier: tier.lookup(["a"]),
    "store": lambda tier: tier.store([item()]),
    "append": lambda tier: tier.append([row()], []),
    "copy": lambda tier: tier.append([row() for _ in range(50)], []),
    "ping": lambda tier: tier.ping(),
    "lookup of several": lambda tier: tier.lookup(["a", "b"]),
    "store of several": lambda tier: tier.store([item(), item()]),
}


async def test_a_postgres_that_is_gone_is_broken_and_one_that_is_back_is_used() -> None:
    with servers.postgres() as server:
        tier = SqlDurable(make_engine(load({}, database_url=server.create()).database, timeout=20))
        await migrate(tier._engine)
        one = item()
        await tier.store([one])
        for name, call in CALLS.items():
            # Each call meets a connection that broke while it was idle, and then no server at all.
            server.kill()
            for _ in range(2):
                with pytest.raises(TierBroken) as broken:
                    await call(tier)
                assert "127.0.0.1" not in str(broken.value)
            server.start()
            assert await tier.lookup([one.key]) == [one], name
        await tier.aclose()


async def test_a_postgres_that_restarts_costs_at_most_one_call() -> None:
    with servers.postgres() as server:
        tier = SqlDurable(make_engine(load({}, database_url=server.create()).database, timeout=20))
        await migrate(tier._engine)
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(tier.ping())
        server.kill()
        server.start()
        failures = 0
        for _ in range(8):
            try:
                await tier.append([row() for _ in range(50)], [])
            except TierBroken:
                failures += 1
        assert failures <= 1
        await tier.aclose()


async def test_a_locked_sqlite_is_broken_and_used_when_it_is_free(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'edge.sqlite3'}"
    tier, other = SqlDurable(make_engine(url, timeout=0.2)), make_engine(url)
    await migrate(other)
    one = item()
    async with other.connect() as holder:
        await holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(TierBroken):
            await tier.store([one])
        assert await tier.lookup([one.key]) == [None]  # readers are not held up by a writer
        await holder.rollback()
    await tier.store([one])
    assert await tier.lookup([one.key]) == [one]
    await tier.aclose()
    await other.dispose()


async def test_an_exhausted_pool_is_broken_after_its_time_out(postgres_server: servers.Postgres) -> None:
    engine = make_engine(load({}, database_url=postgres_server.create()).database, pool_size=1, timeout=0.2)
    tier = SqlDurable(engine)
    async with engine.connect():
        started = time.monotonic()
        with pytest.raises(TierBroken):
            await tier.ping()
        assert time.monotonic() - started >= 0.19
    await tier.ping()
    await tier.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_database_without_tables_is_broken_rather_than_refusing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tier = SqlDurable(make_engine(url_of(kind, request, tmp_path)))
    for name in ("lookup", "store", "append", "copy", "lookup of several", "store of several"):
        with pytest.raises(TierBroken):
            await CALLS[name](tier)
    await tier.aclose()


async def test_rows_that_come_twice_need_no_right_to_temporary_tables(postgres_server: servers.Postgres) -> None:
    owner = make_engine(load({}, database_url=postgres_server.create()).database)
    await migrate(owner)
    name = f"edge_{uuid.uuid4().hex}"
    async with owner.begin() as connection:
        await connection.exec_driver_sql(f'REVOKE TEMPORARY ON DATABASE "{owner.url.database}" FROM PUBLIC')
        await connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
        await connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA data_broker TO {name}")
        await connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA data_broker TO {name}")
    engine = make_engine(owner.url.set(username=name).render_as_string(hide_password=False))
    tier, rows, one = SqlDurable(engine), [row(), bare_row(), row(error={"code": ODD})], item()
    await tier.append(PackedRows([pack_row(each) for each in rows[:2]]), [])
    await tier.append(PackedRows([pack_row(each) for each in rows]), [one])
    found = await rows_of(engine, rows)
    assert set(found) == {each.run_data_request_id for each in rows}
    assert found[rows[0].run_data_request_id].created_at.timestamp() == rows[0].created_at
    assert await tier.lookup([one.key]) == [one]
    await tier.aclose()
    async with owner.begin() as connection:
        await connection.exec_driver_sql(f"DROP OWNED BY {name}")
        await connection.exec_driver_sql(f"DROP ROLE {name}")
    await owner.dispose()


@pytest.mark.parametrize("name", ["lookup", "store", "append", "lookup of several", "store of several"])
async def test_a_call_that_is_given_up_hangs_up_on_a_postgres_that_says_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_edge.backends.sql_direct._LAST_WORD", 0.05)
    hung_up: list[bool] = []
    cancel_safe = Connection.cancel_safe

    async def watched(self: Connection, **options: Any) -> None:
        try:
            await cancel_safe(self, **options)
        finally:
            hung_up.append(self.closed)

    monkeypatch.setattr(Connection, "cancel_safe", watched)
    with servers.postgres() as server:
        engine = make_engine(load({}, database_url=server.create()).database, pool_size=1)
        tier = SqlDurable(engine)
        await migrate(engine)
        await tier.ping()
        assert server.process is not None
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        try:
            for process in family:
                process.suspend()
            async with asyncio.timeout(30):
                with pytest.raises((TimeoutError, TierBroken)):  # the latter where COPY meets the closed connection
                    async with asyncio.timeout(0.2):
                        await CALLS[name](tier)
        finally:
            for process in family:
                process.resume()
        assert hung_up == [True]
        await tier.ping()
        await tier.aclose()


def test_another_statement_is_prepared_under_another_name() -> None:
    names = {statement(name, text, 1).name for name in ("store", "lookup") for text in (b"SELECT 1", b"SELECT 2")}
    assert len(names) == 4
    assert max(map(len, names)) < 64  # Postgres' bound for identifiers
