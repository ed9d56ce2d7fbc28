"""The database's revision: what it is, what it must be, and the way there (Alembic, migrations/)."""

from __future__ import annotations

from pathlib import Path

from alembic.command import upgrade
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.tables import SCHEMA

_ADVISORY_LOCK = 0x62726F6B6572  # "broker": two instances that start together migrate one after the other


def _config() -> Config:
    packaged = Path(__file__).parents[1] / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"))
    return config


def head() -> str:
    """The revision that this version of the code needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def is_newer(revision: str | None) -> bool:
    """Whether a later version of the code has migrated: each knows its own revisions and those before."""
    return revision is not None and all(
        one.revision != revision for one in ScriptDirectory.from_config(_config()).walk_revisions()
    )


class NewerDatabase(Exception):
    """The database is at a revision that this version does not know."""

    def __init__(self) -> None:
        super().__init__("the database is newer than this version: install the newer one")


async def current(engine: AsyncEngine) -> str | None:
    """The revision that the database has; None for an empty one."""
    async with engine.connect() as connection:
        return await connection.run_sync(_current)


async def migrate(engine: AsyncEngine) -> str:
    """Bring the database up to `head()`; waits for another process that does the same. Raises `NewerDatabase`."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)
    return head()


def _current(connection: Connection) -> str | None:
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    return MigrationContext.configure(connection, opts={"version_table_schema": schema}).get_current_revision()


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    else:
        # sqlite3 begins no transaction for DDL by itself: a process that died half-way would leave tables without a revision.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if is_newer(_current(connection)):
        raise NewerDatabase
    config = _config()
    config.attributes["connection"] = connection
    upgrade(config, "head")
