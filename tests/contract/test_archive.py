"""The contract of `ports.Archive`, over SQLite and Postgres."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_archive import SqlArchive
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.core.exchange import DataObject
from broker_edge.core.ids import uuid7
from broker_edge.errors import TierBroken
from broker_edge.ports import ObjectNote
from broker_edge.settings import load
from tests.servers import free_port

PROJECTS = [None, uuid.UUID(int=7)]
_EPOCH = 1_700_000_000.25


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    embedded = request.param == "sqlite"
    url = (
        f"sqlite:///{tmp_path / 'edge.sqlite3'}" if embedded else request.getfixturevalue("postgres_server").create(migrated=True)
    )
    engine = make_engine(load({}, database_url=url).database)
    await migrate(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def archive(engine: AsyncEngine) -> SqlArchive:
    return SqlArchive(engine)


def item(source: uuid.UUID, at: float = _EPOCH, **members: Any) -> DataObject:
    values: dict[str, Any] = {
        "object_id": uuid7(at, uuid.uuid4().int >> 54),
        "data_source_id": source,
        "key": uuid.uuid4().hex,
        "body": b'{"score": 700}',
        "created_at": at,
        "content_type": "application/json",
        "response_type": "JSON",
        "status": 200,
        "reusable": False,
    }
    return DataObject(**{**values, **members})


async def kept(engine: AsyncEngine, *items: DataObject) -> None:
    await SqlDurable(engine).store(items)


def ids(notes: Any) -> list[uuid.UUID]:
    return [note.object_id for note in notes]


async def test_a_source_without_objects_has_none(archive: SqlArchive) -> None:
    assert await archive.objects(uuid.uuid4(), None, most=10, after=None) == []
    assert await archive.object(uuid.uuid4(), None, uuid.uuid4()) is None


@pytest.mark.parametrize("project", PROJECTS)
async def test_an_object_comes_back_as_it_was_kept(archive: SqlArchive, engine: AsyncEngine, project: uuid.UUID | None) -> None:
    one = item(uuid.uuid4(), project_id=project, body=b"\x00\xff\xfe", content_type=None, response_type="CSV", status=203)
    await kept(engine, one)
    assert await archive.object(one.data_source_id, project, one.object_id) == one
    notes = await archive.objects(one.data_source_id, project, most=10, after=None)
    assert notes == [ObjectNote(one.object_id, one.data_source_id, one.key, one.created_at)]


async def test_pages_are_the_newest_first_and_end(archive: SqlArchive, engine: AsyncEngine) -> None:
    source = uuid.uuid4()
    items = [item(source, _EPOCH + 86_400 * number) for number in range(7)]  # over months, and so over partitions
    await kept(engine, *items[::2], *items[1::2])
    newest = [each.object_id for each in reversed(items)]
    seen: list[uuid.UUID] = []
    while page := await archive.objects(source, None, most=3, after=seen[-1] if seen else None):
        assert len(page) <= 3
        seen += ids(page)
    assert seen == newest


async def test_an_object_that_comes_meanwhile_shifts_no_page(archive: SqlArchive, engine: AsyncEngine) -> None:
    source = uuid.uuid4()
    items = [item(source, _EPOCH + number) for number in range(4)]
    await kept(engine, *items)
    first = ids(await archive.objects(source, None, most=2, after=None))
    await kept(engine, item(source, _EPOCH + 9))
    assert ids(await archive.objects(source, None, most=2, after=first[-1])) == [items[1].object_id, items[0].object_id]


async def test_other_sources_and_other_projects_see_nothing(archive: SqlArchive, engine: AsyncEngine) -> None:
    source, others = uuid.uuid4(), [None, uuid.uuid4(), uuid.uuid4()]
    for project in others:
        one = item(source, project_id=project)
        await kept(engine, one, item(uuid.uuid4(), project_id=project))
        for asking in others[: others.index(project)] + others[others.index(project) + 1 :]:
            assert await archive.object(source, asking, one.object_id) is None
        assert await archive.object(uuid.uuid4(), project, one.object_id) is None
        assert ids(await archive.objects(source, project, most=10, after=None)) == [one.object_id]


async def test_one_page_of_a_large_source_reads_no_more_than_itself(engine: AsyncEngine) -> None:
    """By an index that leads to the source and is in the order of ids: neither a sort nor a walk over other sources' objects."""
    source = uuid.uuid4()
    async with engine.begin() as connection:
        await connection.execute(sa.text("ANALYZE"))
    statement = (
        f"SELECT data_object_id FROM {'data_broker.' if engine.dialect.name == 'postgresql' else ''}data_object "
        f"WHERE data_source_id = '{source}' AND project_id IS NULL AND data_object_id < '{source}' "
        "ORDER BY data_object_id DESC LIMIT 101"
    )
    async with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(sa.text("SET enable_seqscan = off"))
            await connection.execute(sa.text("SET enable_sort = off"))
            plan = json.dumps((await connection.execute(sa.text(f"EXPLAIN (FORMAT JSON) {statement}"))).scalar_one())
            assert '"Node Type": "Sort"' not in plan
        else:
            plan = "\n".join(row[3] for row in await connection.execute(sa.text(f"EXPLAIN QUERY PLAN {statement}")))
            assert "TEMP B-TREE" not in plan
    assert "data_source_id_data_object_id" in plan


async def test_a_broken_database_is_no_empty_archive() -> None:
    engine = make_engine(load({}, database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none").database)
    for call in (
        SqlArchive(engine).objects(uuid.uuid4(), None, most=1, after=None),
        SqlArchive(engine).object(uuid.uuid4(), None, uuid.uuid4()),
    ):
        with pytest.raises(TierBroken):
            await call
    await engine.dispose()
