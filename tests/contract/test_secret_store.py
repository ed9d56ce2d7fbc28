"""The contract of `ports.SecretStore`, over SQLite and Postgres."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.sql_seals import SqlSeals
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.backends.sql_sources import SqlSources
from broker_edge.backends.tables import data_source_env_var, secret_access, secret_use
from broker_edge.core.lifecycle import archived
from broker_edge.core.record import Reading, SealedSecret, SecretMeta, SourceRecord
from broker_edge.errors import CallerError, Overtaken, TierBroken
from tests import servers
from tests.contract.registry_rows import record, secret

READING = Reading("fetch", 1_700_000_000.25)


@pytest.fixture
def secrets(engine: AsyncEngine) -> SqlSecrets:
    times = itertools.count(1_700_000_000)
    return SqlSecrets(engine, SqlDurable(engine).writer, now=lambda: float(next(times)))


@pytest.fixture
async def source(engine: AsyncEngine) -> SourceRecord:
    made = record(project=uuid.uuid4())
    await SqlSources(engine).create(made)
    return made


async def revision(engine: AsyncEngine, source: SourceRecord) -> int:
    [found] = await SqlSources(engine).read([source.data_source_id])
    return found.revision


async def put(secrets: SqlSecrets, source: SourceRecord, *wanted: SealedSecret, complete: bool = True) -> list[SecretMeta]:
    return list(await secrets.write(source.data_source_id, wanted[0].kind, wanted, complete=complete))


async def by_name(secrets: SqlSecrets, source: SourceRecord) -> dict[str, SealedSecret]:
    return {each.name: each for each in await secrets.read(source.data_source_id, READING)}


async def rows(engine: AsyncEngine, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(sa.select(table).where(*where)))


@pytest.mark.parametrize("kind", ["variable", "credential"])
async def test_what_was_written_is_read(secrets: SqlSecrets, source: SourceRecord, kind: Any) -> None:
    wanted = [
        secret(source, "USERNAME", "v1.k.\u00e9'\"\\", kind),
        secret(source, "PASSWORD", "v1.k.b", kind, value_type="number"),
    ]
    told = await put(secrets, source, *wanted)
    assert [(each.name, each.version, each.value_type, each.kind) for each in told] == [
        ("PASSWORD", 1, "number", kind),
        ("USERNAME", 1, "string", kind),
    ]
    assert sorted(await secrets.read(source.data_source_id, READING), key=lambda each: each.name) == wanted[::-1]


async def test_variables_and_credentials_are_written_apart_and_read_together(secrets: SqlSecrets, source: SourceRecord) -> None:
    await put(secrets, source, secret(source, "token", "v1.k.a"))
    await put(secrets, source, secret(source, "PASSWORD", "v1.k.b", "credential"))
    await put(secrets, source, secret(source, "other", "v1.k.c"))
    assert set(await by_name(secrets, source)) == {"other", "PASSWORD"}


async def test_a_variable_may_be_known_and_unset(secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine) -> None:
    [meta] = await put(secrets, source, secret(source, "token", None))
    assert not meta.is_set
    assert (await by_name(secrets, source))["token"].sealed is None
    [row] = await rows(engine, data_source_env_var, data_source_env_var.c.data_source_env_var_id == meta.secret_id)
    assert row.value is None


async def test_a_credential_that_is_unset_is_none(secrets: SqlSecrets, source: SourceRecord) -> None:
    kept = secret(source, "USERNAME", "v1.k.a", "credential")
    await put(secrets, source, kept, secret(source, "PASSWORD", "v1.k.b", "credential"))
    await put(secrets, source, secret(source, "PASSWORD", None, "credential"), complete=False)
    assert set(await by_name(secrets, source)) == {"USERNAME"}


async def test_a_change_raises_the_version_and_the_sources_revision(
    secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine
) -> None:
    first = secret(source, "token", "v1.k.a")
    [before] = await put(secrets, source, first)
    [after] = await put(secrets, source, msgspec.structs.replace(first, sealed="v1.k.b", version=2))
    assert (before.version, after.version) == (1, 2)
    assert before.secret_id == after.secret_id
    assert after.created_at == before.created_at < after.last_updated_at
    assert await revision(engine, source) == source.revision + 2


async def test_what_is_the_same_changes_nothing(secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine) -> None:
    kept, unset = secret(source, "token", "v1.k.a"), secret(source, "unset", None)
    before = await put(secrets, source, kept, unset)
    assert await put(secrets, source, kept, unset) == before
    assert await put(secrets, source, kept, complete=False) == before
    assert await revision(engine, source) == source.revision + 1


async def test_others_stay_unless_the_list_is_complete(secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine) -> None:
    one, two, three = (secret(source, name, f"v1.k.{name}") for name in ("one", "two", "three"))
    await put(secrets, source, one, two)
    assert [each.name for each in await put(secrets, source, three, complete=False)] == ["one", "three", "two"]
    assert [each.name for each in await put(secrets, source, two)] == ["two"]
    assert await secrets.write(source.data_source_id, "variable", [], complete=False) != []
    assert await secrets.write(source.data_source_id, "variable", [], complete=True) == []
    assert await revision(engine, source) == source.revision + 4


@pytest.mark.parametrize("kind", ["variable", "credential"])
async def test_a_change_takes_as_many_statements_however_many_secrets_it_is_of(
    secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine, kind: Any
) -> None:
    said: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement.split()[0])

    sa.event.listen(engine.sync_engine, "before_cursor_execute", hear)
    old = [secret(source, f"s{number}", "v1.k.a", kind) for number in range(200)]
    await put(secrets, source, *old)
    assert said.count("INSERT") == 1
    said.clear()
    renewed = [msgspec.structs.replace(each, sealed=f"v1.k.{each.name}", version=2) for each in old[:100]]
    added = [secret(source, f"new{number}", "v1.k.c", kind) for number in range(100)]
    told = await put(secrets, source, *renewed, *added)
    # Another update is of the source: its revision.
    assert [said.count(word) for word in ("DELETE", "INSERT", "UPDATE")] == [1, 1, 2]
    assert {each.name: each.version for each in told} == {each.name: each.version for each in renewed + added}
    assert {name: each.sealed for name, each in (await by_name(secrets, source)).items()} == {
        each.name: each.sealed for each in renewed + added
    }


async def test_a_secret_that_comes_back_is_another_one(secrets: SqlSecrets, source: SourceRecord) -> None:
    first, again = secret(source, "token", "v1.k.a"), secret(source, "token", "v1.k.b")
    [before] = await put(secrets, source, first)
    await secrets.write(source.data_source_id, "variable", [], complete=True)
    [after] = await put(secrets, source, again)
    assert after.secret_id == again.secret_id != before.secret_id


async def test_who_goes_on_from_a_secret_that_is_gone_is_refused_whole(secrets: SqlSecrets, source: SourceRecord) -> None:
    first = secret(source, "token", "v1.k.a")
    await put(secrets, source, first)
    await secrets.write(source.data_source_id, "variable", [], complete=True)
    with pytest.raises(Overtaken):
        await put(secrets, source, secret(source, "a", "v1.k.x"), msgspec.structs.replace(first, sealed="v1.k.b", version=2))
    assert await by_name(secrets, source) == {}


async def test_who_knew_nothing_of_a_secret_takes_its_place_under_an_id_of_its_own(
    secrets: SqlSecrets, source: SourceRecord
) -> None:
    one, two = secret(source, "token", "v1.k.a"), secret(source, "token", "v1.k.b")
    await put(secrets, source, one)
    [meta] = await put(secrets, source, two)
    assert meta.secret_id == two.secret_id
    assert await by_name(secrets, source) == {"token": two}


async def test_writers_at_once_never_give_two_values_one_version(secrets: SqlSecrets, source: SourceRecord) -> None:
    first = secret(source, "token", "v1.k.0")
    await put(secrets, source, first)
    changes = [msgspec.structs.replace(first, sealed=f"v1.k.{number}", version=2) for number in range(1, 9)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(put(secrets, source, each)) for each in changes]
    assert sorted(task.result()[0].version for task in tasks) == list(range(2, 10))
    assert (await by_name(secrets, source))["token"].version == 9


async def test_secrets_of_a_source_that_is_archived_or_gone_can_not_be_written(
    secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine
) -> None:
    await SqlSources(engine).replace(archived(source, 2.0), expected=source.revision)
    for owner in (source, record()):
        with pytest.raises(CallerError) as caught:
            await put(secrets, owner, secret(owner, "token", "v1.k.a"))
        assert caught.value.code == "DATA_SOURCE_NOT_FOUND"
    assert await by_name(secrets, source) == {}


async def test_every_read_is_written_down(secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine) -> None:
    token, password = secret(source, "token", "v1.k.a"), secret(source, "PASSWORD", "v1.k.b", "credential")
    await put(secrets, source, token)
    await put(secrets, source, password)
    readings = [
        Reading("fetch", 1_700_000_000.25, uuid.uuid4(), "0af7651916cd43dd8448eb211c80319c"),
        Reading("test", 1_700_000_001.0),
    ]
    for reading in readings:
        await secrets.read(source.data_source_id, reading)
    found = await rows(engine, secret_access, secret_access.c.data_source_id == source.data_source_id)
    told = {(row.secret_id, row.kind, row.name, row.version, row.purpose, row.run_id, row.trace_id) for row in found}
    assert told == {
        (each.secret_id, each.kind, each.name, 1, reading.purpose, reading.run_id, reading.trace_id)
        for each in (token, password)
        for reading in readings
    }
    assert len(found) == 4
    assert "v1.k" not in repr(found)


async def test_what_can_not_be_written_down_is_not_read(secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine) -> None:
    await put(secrets, source, secret(source, "token", "v1.k.a"))
    same = uuid.uuid4()
    stuck = SqlSecrets(engine, new_id=lambda: same)
    await stuck.read(source.data_source_id, READING)
    with pytest.raises(TierBroken):
        await stuck.read(source.data_source_id, READING)


async def test_uses_are_added_up(secrets: SqlSecrets, engine: AsyncEngine) -> None:
    one, two = uuid.uuid4(), uuid.uuid4()
    await secrets.count({(one, 1): 2, (two, 1): 1}, 1_700_000_005.0)
    await secrets.count({(one, 1): 3, (one, 2): 1}, 1_700_000_004.0)
    await secrets.count({}, 1_700_000_009.0)
    found = await rows(engine, secret_use, secret_use.c.secret_id.in_([one, two]))
    assert {(row.secret_id, row.version): row.uses for row in found} == {(one, 1): 5, (one, 2): 1, (two, 1): 1}
    assert {row.last_used_at.second for row in found if row.version == 1} == {25}, "the latest use, whoever tells of it first"


async def test_uses_that_are_counted_at_once_are_all_counted(secrets: SqlSecrets, engine: AsyncEngine) -> None:
    ids = [uuid.uuid4() for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            order = ids if number % 2 else ids[::-1]
            group.create_task(secrets.count({(each, 1): 1 for each in order}, 1_700_000_000.0 + number))
    assert {row.uses for row in await rows(engine, secret_use, secret_use.c.secret_id.in_(ids))} == {10}


async def test_what_is_sealed_otherwise_is_found_and_sealed_anew(
    secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine
) -> None:
    new = [secret(source, "new", "v1.new_.a"), secret(source, "NEW", "v1.new_.b", "credential")]
    old = [secret(source, "old", "v1.newX.a"), secret(source, "OLD", "v1.old.b", "credential"), secret(source, "unset", None)]
    await put(secrets, source, new[0], old[0], old[2])
    await put(secrets, source, new[1], old[1])
    before = await revision(engine, source)

    async def left() -> dict[str, SealedSecret]:
        found = await secrets.sealed_otherwise("v1.new_.", 100_000)
        return {each.name: each for each in found if each.data_source_id == source.data_source_id}

    assert await left() == {"old": old[0], "OLD": old[1]}
    assert len(await secrets.sealed_otherwise("v1.new_.", 1)) == 1
    assert await secrets.sealed_otherwise("v1.new_.", 0) == []
    for each in old[:2]:
        assert await secrets.reseal(each, "v1.new_.c")
        assert not await secrets.reseal(each, "v1.new_.d"), "it is another envelope by now"
    assert await left() == {}
    assert (await by_name(secrets, source))["OLD"] == msgspec.structs.replace(old[1], sealed="v1.new_.c"), "no new version"
    assert await revision(engine, source) == before, "the value is the same"


async def test_secrets_are_counted_by_the_key_that_they_are_sealed_with(
    secrets: SqlSecrets, source: SourceRecord, engine: AsyncEngine
) -> None:
    seals = SqlSeals(engine)
    before = await seals.counts()
    await put(
        secrets, source, secret(source, "a", "v1.count_1.a"), secret(source, "b", "v1.count-2.b"), secret(source, "c", None)
    )
    await put(secrets, source, secret(source, "A", "v1.count_1.x", "credential"))
    after = await seals.counts()
    assert {key_id: after[key_id] - before.get(key_id, 0) for key_id in ("count_1", "count-2")} == {"count_1": 2, "count-2": 1}
    odd = ["plain", "v1", "v1.nothing", "", "v2.k.a"]
    await put(secrets, source, *(secret(source, f"odd{number}", text) for number, text in enumerate(odd)))
    again = await seals.counts()
    strange = {key_id: count - after.get(key_id, 0) for key_id, count in again.items() if key_id not in ("count_1", "count-2")}
    assert sum(strange.values()) == len(odd)
    assert strange.get("k", 0) == 0


async def test_a_secret_that_changed_meanwhile_is_not_sealed_over(secrets: SqlSecrets, source: SourceRecord) -> None:
    first = secret(source, "token", "v1.k.a")
    await put(secrets, source, first)
    changed = msgspec.structs.replace(first, sealed="v1.k.b", version=2)
    await put(secrets, source, changed)
    assert not await secrets.reseal(first, "v1.new.a")
    assert await by_name(secrets, source) == {"token": changed}


async def test_a_database_that_is_gone_is_a_broken_tier() -> None:
    engine = make_engine(f"postgresql+psycopg://nobody@127.0.0.1:{servers.free_port()}/none")
    store, one = SqlSecrets(engine), secret(record(), "token", "v1.k.a")
    for call in (
        store.read(one.data_source_id, READING),
        store.write(one.data_source_id, "variable", [one], complete=True),
        store.count({(one.secret_id, 1): 1}, 1.0),
        store.sealed_otherwise("v1.", 10),
        store.reseal(one, "v1.k.b"),
        SqlSeals(engine).counts(),
    ):
        with pytest.raises(TierBroken):
            await call
    await engine.dispose()
