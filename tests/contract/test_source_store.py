"""The contract of `ports.SourceStore`, over SQLite and Postgres."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.backends.sql_sources import SqlSources
from broker_edge.backends.tables import data_source, data_source_credential, data_source_env_var
from broker_edge.core.lifecycle import archived, published
from broker_edge.core.record import SourceRecord
from broker_edge.errors import CallerError, TierBroken
from broker_edge.ports import SourceStore
from tests import servers
from tests.contract.registry_rows import database_of, record, secret


@pytest.fixture
def store(engine: AsyncEngine) -> SourceStore:
    return SqlSources(engine, SqlDurable(engine).writer)


@pytest.fixture
def secrets(engine: AsyncEngine) -> SqlSecrets:
    return SqlSecrets(engine, SqlDurable(engine).writer)


async def one(store: SourceStore, source: SourceRecord) -> SourceRecord:
    [found] = await store.read([source.data_source_id])
    return found


async def taken(call: Awaitable[object]) -> str:
    with pytest.raises(CallerError) as caught:
        await call
    assert caught.value.code == "DATA_SOURCE_ALREADY_EXISTS"
    return caught.value.message


async def test_what_was_created_is_read_as_it_was_given(store: SourceStore) -> None:
    source = record(
        project=uuid.uuid4(),
        source={
            "url": "https://api.example.com/{{ id }}",
            "params": {"zz": 1e5, "b": 1.0, "a": 10**30},
            "body": {"y": 1, "x": [None]},
        },
        caching={"enabled": True, "ttl": {"hours": 1}},
        terms={"cost_per_call": "0.50", "billable": True},
        description="caf\u00e9 \U0001f600",
        metadata={"b": {"null": None}, "a": "\u2028"},
    )
    await store.create(source)
    found = await one(store, source)
    assert found == source
    assert msgspec.json.encode(found) == msgspec.json.encode(source), "the order of members and the form of numbers are kept"


async def test_the_columns_for_readers_of_the_table_say_what_the_spec_means(store: SourceStore, engine: AsyncEngine) -> None:
    for caching, enabled, ttl in (
        ({"enabled": True, "ttl": {"minutes": 1, "seconds": 0.2}}, True, 61),
        ({"enabled": True}, True, None),
        ({"ttl": 0}, False, 0),
    ):
        source = record(caching=caching)
        await store.create(source)
        async with engine.connect() as connection:
            row = (await connection.execute(sa.select(data_source).where(data_source.c.name == source.name))).one()
        assert (row.caching_enabled, row.caching_ttl) == (enabled, ttl)
        assert (list(row.runtime_params), list(row.variables)) == (["id"], ["token"])


async def test_reading_answers_those_that_there_are(store: SourceStore) -> None:
    sources = [record() for _ in range(3)]
    for source in sources:
        await store.create(source)
    found = await store.read([uuid.uuid4(), *(source.data_source_id for source in sources)])
    assert {each.data_source_id for each in found} == {source.data_source_id for source in sources}
    assert await store.read([]) == []


async def test_many_are_read_in_one_go(store: SourceStore) -> None:
    sources = [record() for _ in range(3)]
    for source in sources:
        await store.create(source)
    ids = [uuid.uuid4() for _ in range(40_000)] + [source.data_source_id for source in sources]
    assert len(await store.read(ids)) == 3


async def test_a_name_is_taken_once_in_a_project(store: SourceStore) -> None:
    project, other, name = uuid.uuid4(), uuid.uuid4(), uuid.uuid4().hex
    for owner in (project, other, None):
        await store.create(record(name, owner))
    for owner in (project, other, None):
        assert "name" in await taken(store.create(record(name, owner)))


async def test_the_longest_name_is_kept(store: SourceStore) -> None:
    longest = "".join(random.choices([chr(code) for code in range(0x1F300, 0x1F650)], k=255))
    source = record(longest, uuid.uuid4())
    await store.create(source)
    assert (await one(store, source)).name == longest


async def test_an_id_is_taken_once(store: SourceStore) -> None:
    source = record()
    await store.create(source)
    message = await taken(store.create(msgspec.structs.replace(source, name=uuid.uuid4().hex)))
    assert message == "the id is taken by another data source"


async def test_a_name_is_free_again_once_its_source_is_archived(store: SourceStore) -> None:
    for project in (None, uuid.uuid4()):
        name = uuid.uuid4().hex
        for _ in range(3):
            source = record(name, project)
            await store.create(source)
            assert await store.replace(archived(source, 1.0), expected=source.revision)
        await store.create(record(name, project))


async def test_of_those_that_create_one_name_at_once_one_wins(store: SourceStore) -> None:
    for project in (None, uuid.uuid4()):
        name = uuid.uuid4().hex
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_outcome(store.create(record(name, project)))) for _ in range(8)]
        assert sorted(task.result() for task in tasks) == ["", *["DATA_SOURCE_ALREADY_EXISTS"] * 7]


async def _outcome(call: Awaitable[object]) -> str:
    try:
        await call
    except CallerError as error:
        return error.code
    return ""


async def test_a_replacement_takes_the_place_of_exactly_what_was_expected(store: SourceStore) -> None:
    source = record()
    await store.create(source)
    wanted = published(source, 2.0)
    assert not await store.replace(wanted, expected=source.revision + 1)
    assert await one(store, source) == source
    assert await store.replace(wanted, expected=source.revision)
    assert await one(store, source) == wanted
    assert not await store.replace(wanted, expected=source.revision)
    assert not await store.replace(record(), expected=1)


async def test_of_replacements_at_once_one_is_made(store: SourceStore) -> None:
    source = record()
    await store.create(source)
    wanted = [msgspec.structs.replace(published(source, 2.0), description=str(number)) for number in range(8)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(store.replace(each, expected=source.revision)) for each in wanted]
    [winner] = [each for each, task in zip(wanted, tasks, strict=True) if task.result()]
    assert await one(store, source) == winner


async def test_a_replacement_can_not_take_a_name_that_is_taken(store: SourceStore) -> None:
    first, second = record(), record()
    await store.create(first)
    await store.create(second)
    stolen = msgspec.structs.replace(published(second, 2.0), name=first.name)
    await taken(store.replace(stolen, expected=second.revision))
    assert await one(store, second) == second


async def test_a_removal_takes_exactly_what_was_expected_and_its_secrets(
    store: SourceStore, secrets: SqlSecrets, engine: AsyncEngine
) -> None:
    source, other = record(), record()
    for each in (source, other):
        await store.create(each)
        await secrets.write(each.data_source_id, "variable", [secret(each, "token", "v1.k.x")], complete=True)
        await secrets.write(each.data_source_id, "credential", [secret(each, "PASSWORD", "v1.k.y", "credential")], complete=True)
    assert not await store.remove(source.data_source_id, expected=source.revision)
    assert len((await one(store, source)).secrets) == 2
    assert await store.remove(source.data_source_id, expected=source.revision + 2)
    assert await store.read([source.data_source_id]) == []
    async with engine.connect() as connection:
        for table in (data_source_env_var, data_source_credential):
            owners = (await connection.execute(sa.select(table.c.data_source_id))).scalars()
            assert source.data_source_id not in set(owners)
    assert len((await one(store, other)).secrets) == 2
    assert not await store.remove(source.data_source_id, expected=source.revision + 2)


async def test_reading_tells_of_secrets_what_may_be_told(store: SourceStore, secrets: SqlSecrets) -> None:
    source = record()
    await store.create(source)
    wanted = [secret(source, "b", "v1.k.b"), secret(source, "a", None)]
    told = await secrets.write(source.data_source_id, "variable", wanted, complete=True)
    told = [
        *told,
        *await secrets.write(
            source.data_source_id, "credential", [secret(source, "USERNAME", "v1.k.u", "credential")], complete=False
        ),
    ]
    found = await one(store, source)
    assert found.secrets == tuple(told)
    assert [(each.kind, each.name, each.is_set) for each in found.secrets] == [
        ("variable", "a", False),
        ("variable", "b", True),
        ("credential", "USERNAME", True),
    ]
    assert "v1.k" not in repr(found)


async def test_a_source_is_read_before_its_secrets(store: SourceStore, engine: AsyncEngine) -> None:
    """The other way round a new revision could stand beside old secrets, and nothing would ever find it."""
    source, tables = record(), []
    await store.create(source)

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        tables.append(statement.partition("FROM ")[2].split()[0].rpartition(".")[2])

    sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    await store.read([source.data_source_id])
    assert tables == ["data_source", "data_source_env_var", "data_source_credential"]


async def test_revisions_follow_every_change_and_are_the_same_object_while_there_is_none(
    store: SourceStore, secrets: SqlSecrets
) -> None:
    source = record()
    await store.create(source)
    first = await store.revisions()
    assert first[source.data_source_id] == source.revision
    assert await store.revisions() is first
    await secrets.write(source.data_source_id, "variable", [secret(source, "token", "v1.k.x")], complete=True)
    assert (await store.revisions())[source.data_source_id] == source.revision + 1
    assert await store.remove(source.data_source_id, expected=source.revision + 1)
    assert source.data_source_id not in await store.revisions()


async def test_revisions_tell_of_archived_sources_too(store: SourceStore) -> None:
    source = record()
    await store.create(source)
    gone = archived(source, 2.0)
    await store.replace(gone, expected=source.revision)
    assert (await store.revisions())[source.data_source_id] == gone.revision


async def test_a_source_that_this_version_can_not_compile_can_be_archived(store: SourceStore, engine: AsyncEngine) -> None:
    source = record(caching={"enabled": True, "ttl": 5})
    await store.create(source)
    async with engine.begin() as connection:
        strange = {"url": "https://api.example.com", "method": "TRACE"}
        await connection.execute(data_source.update().where(data_source.c.name == source.name).values(source=strange))
    gone = archived(await one(store, source), 2.0)
    assert await store.replace(gone, expected=source.revision)
    assert (await one(store, source)).status == "ARCHIVED"


async def test_an_empty_registry_has_no_revisions(tmp_path: Any, request: pytest.FixtureRequest) -> None:
    for kind in ("sqlite", "postgres"):
        url = await asyncio.to_thread(database_of, kind, request, tmp_path)
        engine = make_engine(url)
        assert await SqlSources(engine).revisions() == {}
        await engine.dispose()


async def test_a_database_that_is_gone_is_a_broken_tier() -> None:
    engine = make_engine(f"postgresql+psycopg://nobody@127.0.0.1:{servers.free_port()}/none")
    store, source = SqlSources(engine), record()
    for call in (
        store.revisions(),
        store.read([source.data_source_id]),
        store.create(source),
        store.replace(source, expected=1),
        store.remove(source.data_source_id, expected=1),
    ):
        with pytest.raises(TierBroken) as caught:
            await call
        assert "127.0.0.1" not in caught.value.message
    await engine.dispose()
