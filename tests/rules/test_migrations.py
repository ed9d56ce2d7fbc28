"""Migrations amount to the tables, on both databases, and the tables have the columns that others rely on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade
from alembic.migration import MigrationContext

from broker_edge.backends.migrations import _config, current, head, migrate
from broker_edge.backends.sql_durable import make_engine
from broker_edge.backends.tables import SCHEMA, metadata
from broker_edge.settings import load

# From the decision record and the predecessor's schema page: columns may be added, none of these is renamed.
CONTRACT = {
    "data_object": {"data_object_id", "data_source_id", "key", "value", "created_at"},
    "run_data_cache": {"key", "data_object_id", "created_at"},
    "run_data_request": {
        *("run_data_request_id", "run_id", "data_object_id", "data_source_id", "data_origin"),
        *("start_time", "end_time", "error", "created_at"),
    },
}
PARTITION = re.compile("(run_data_request|data_object)_([0-9]+|before|default)")
NULLABLE = {"run_id", "data_object_id", "data_source_id", "data_origin", "start_time", "end_time", "error"}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    given = f"sqlite:///{tmp_path / 'edge.sqlite3'}" if request.param == "sqlite" else None
    return load({}, database_url=given or request.getfixturevalue("postgres_server").create()).database


def differences(connection: sa.Connection, expected: sa.MetaData) -> list[Any]:
    """What autogeneration would put into the next migration."""
    postgres = connection.dialect.name == "postgresql"
    if not postgres:  # SQLite has no schemas
        expected = copied(expected, None)

    def ours(name: str | None, kind: str, _parents: Any) -> bool:
        if kind == "table" and PARTITION.fullmatch(name or ""):
            return False
        return kind != "schema" or name == (SCHEMA if postgres else None)

    def whole(item: Any, _name: str | None, kind: str, _reflected: bool, _compared: Any) -> bool:
        """Postgres keeps a foreign key for each partition that it may lead to, beside the one that was declared."""
        return kind != "foreign_key_constraint" or not PARTITION.fullmatch(item.referred_table.name)

    options = {
        "include_schemas": postgres,
        "include_name": ours,
        "include_object": whole,
        "version_table_schema": SCHEMA if postgres else None,
        "compare_type": True,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), expected))


def copied(tables: sa.MetaData, schema: str | None) -> sa.MetaData:
    copy = sa.MetaData(schema=schema, naming_convention=tables.naming_convention)
    for table in tables.sorted_tables:
        table.to_metadata(copy, schema=schema, referred_schema_fn=lambda *_: schema or sa.BLANK_SCHEMA)  # type: ignore[return-value]
    return copy


async def compared(url: str, expected: sa.MetaData) -> list[Any]:
    engine = make_engine(url)
    await migrate(engine)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences, expected)
    await engine.dispose()
    return found


async def test_migrations_amount_to_the_tables(url: str) -> None:
    assert await compared(url, metadata) == []


async def test_a_column_without_a_migration_would_be_noticed(url: str) -> None:
    other = copied(metadata, SCHEMA)
    other.tables[f"{SCHEMA}.data_object"].append_column(sa.Column("novelty", sa.Integer))
    assert [change[0] for change in await compared(url, other)] == ["add_column"]


async def test_migrating_says_where_it_got_and_twice_is_fine(url: str) -> None:
    engine = make_engine(url)
    assert await current(engine) is None
    assert await migrate(engine) == head()
    assert await migrate(engine) == head()
    assert await current(engine) == head()
    await engine.dispose()


_MIGRATE = """
import asyncio, sys
from broker_edge.backends.migrations import migrate
from broker_edge.backends.sql_durable import make_engine
engine = make_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
asyncio.run(migrate(engine))
"""


def test_processes_that_migrate_at_once_all_succeed(url: str) -> None:
    line = [sys.executable, "-c", _MIGRATE, url]
    started = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0, 0, 0]
    for process in started:
        assert process.stdout is not None
        process.stdout.close()


async def test_a_migration_that_fails_half_way_leaves_nothing(url: str) -> None:
    engine = make_engine(url)
    postgres = engine.dialect.name == "postgresql"
    async with engine.begin() as connection:
        if postgres:
            await connection.execute(sa.text(f"CREATE SCHEMA {SCHEMA}"))
        await connection.execute(sa.text(f"CREATE TABLE {SCHEMA + '.' if postgres else ''}run_data_request (x INTEGER)"))
    with pytest.raises(sa.exc.DBAPIError):
        await migrate(engine)
    assert await current(engine) is None
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"DROP TABLE {SCHEMA + '.' if postgres else ''}run_data_request"))
    assert await migrate(engine) == head()
    await engine.dispose()


async def test_migrations_can_be_taken_back(url: str) -> None:
    engine = make_engine(url)
    await migrate(engine)

    def take_back(connection: sa.Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        downgrade(config, "base")

    async with engine.begin() as connection:
        await connection.run_sync(take_back)
    assert await current(engine) is None
    assert await migrate(engine) == head()
    await engine.dispose()


async def test_tables_have_the_columns_that_others_rely_on(url: str) -> None:
    engine = make_engine(url)
    await migrate(engine)

    def columns(connection: sa.Connection) -> dict[str, dict[str, bool]]:
        inspector = sa.inspect(connection)
        schema = SCHEMA if connection.dialect.name == "postgresql" else None
        names = inspector.get_table_names(schema=schema)
        return {name: {one["name"]: one["nullable"] for one in inspector.get_columns(name, schema=schema)} for name in names}

    async with engine.connect() as connection:
        found = await connection.run_sync(columns)
    for table, names in CONTRACT.items():
        assert names <= set(found[table]), table
    assert {name for name in CONTRACT["run_data_request"] if found["run_data_request"][name]} == NULLABLE
    await engine.dispose()
