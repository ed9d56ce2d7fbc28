"""Sealed secrets over SQLAlchemy Core, SQLite and Postgres: `ports.SecretStore`. No value ever passes here, only envelopes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker_edge.backends.bus_postgres import announce
from broker_edge.backends.sql_errors import time_of, translated
from broker_edge.backends.sql_secret_rows import KEPT, Change, Kept, change_of, metas_of
from broker_edge.backends.tables import data_source, secret_access, secret_use
from broker_edge.core.record import Reading, SealedSecret, SecretKind, SecretMeta
from broker_edge.errors import CallerError


class SqlSecrets:
    """`writer` is held where the database has one writer at a time; `new_id` names the rows of the audit."""

    def __init__(
        self,
        engine: AsyncEngine,
        writer: contextlib.AbstractAsyncContextManager[Any] | None = None,
        *,
        new_id: Callable[[], UUID] = uuid4,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._writer = writer or contextlib.nullcontext()
        self._new_id, self._now = new_id, now
        self._postgres = engine.dialect.name == "postgresql"
        add = (postgres_insert if self._postgres else sqlite_insert)(secret_use)
        self._count = add.on_conflict_do_update(
            index_elements=["secret_id", "version"],
            set_={
                "uses": secret_use.c.uses + add.excluded.uses,
                "last_used_at": sa.case(
                    (add.excluded.last_used_at > secret_use.c.last_used_at, add.excluded.last_used_at),
                    else_=secret_use.c.last_used_at,
                ),
            },
        )

    async def read(self, data_source_id: UUID, reading: Reading) -> Sequence[SealedSecret]:
        async with translated(), self._writer, self._engine.begin() as connection:
            found = [
                secret
                for kept in KEPT.values()
                for secret in await self._sealed(connection, kept, kept.table.c.data_source_id == data_source_id)
            ]
            if found:
                await connection.execute(secret_access.insert(), [self._access(secret, reading) for secret in found])
        return found

    async def write(
        self, data_source_id: UUID, kind: SecretKind, secrets: Sequence[SealedSecret], *, complete: bool
    ) -> Sequence[SecretMeta]:
        """Raises `CallerError` DATA_SOURCE_NOT_FOUND where the source is archived or gone.

        An envelope that is there already changes nothing. What changes gets a version that no value of that secret had before.
        A credential has no unset form: without an envelope it is taken away.
        """
        kept = KEPT[kind]
        async with translated(), self._writer, self._engine.connect() as connection:
            # First of all: its row is the lock under which the secrets of one source are changed.
            await _raise_revision(connection, data_source_id)
            stored = await self._sealed(connection, kept, kept.table.c.data_source_id == data_source_id)
            change = change_of(stored, secrets, complete=complete)
            await self._apply(connection, kept, change)
            metas = await metas_of(connection, [data_source_id], [kind])
            if any(change):
                await announce(connection, data_source_id)
                await connection.commit()
        return [meta for _, meta in metas]

    async def count(self, uses: Mapping[tuple[UUID, int], int], at: float) -> None:
        # Sorted: two transactions that count the same secrets in different orders would deadlock.
        rows = [
            {"secret_id": secret_id, "version": version, "uses": uses[secret_id, version], "last_used_at": time_of(at)}
            for secret_id, version in sorted(uses)
        ]
        if rows:
            async with translated(), self._writer, self._engine.begin() as connection:
                await connection.execute(self._count, rows)

    async def sealed_otherwise(self, prefix: str, most: int) -> Sequence[SealedSecret]:
        found: list[SealedSecret] = []
        async with translated(), self._engine.connect() as connection:
            for kept in KEPT.values():
                envelope = kept.envelope(postgres=self._postgres)
                otherwise = sa.func.substr(envelope, 1, len(prefix)) != prefix
                found += await self._sealed(connection, kept, otherwise, most - len(found))
        return found

    async def reseal(self, secret: SealedSecret, sealed: str) -> bool:
        kept = KEPT[secret.kind]
        same = sa.and_(kept.id == secret.secret_id, kept.envelope(postgres=self._postgres) == secret.sealed)
        async with translated(), self._writer, self._engine.begin() as connection:
            return (await connection.execute(kept.table.update().where(same).values(value=sealed))).rowcount == 1

    async def _apply(self, connection: AsyncConnection, kept: Kept, change: Change) -> None:
        """One statement for all rows of a kind of change: other writers wait for it, in SQLite all others."""
        at = time_of(self._now())
        one = kept.id == sa.bindparam("secret")
        for statement, rows in (
            (kept.table.delete().where(one), [{"secret": each.secret_id} for each in change.dropped]),
            (kept.table.insert(), [{**_named(kept, each), **_told(each, at), "created_at": at} for each in change.added]),
            (kept.table.update().where(one), [{"secret": each.secret_id, **_told(each, at)} for each in change.renewed]),
        ):
            if rows:
                await connection.execute(statement, rows)

    async def _sealed(
        self, connection: AsyncConnection, kept: Kept, where: sa.ColumnElement[bool], most: int | None = None
    ) -> list[SealedSecret]:
        envelope = kept.envelope(postgres=self._postgres).label("sealed")
        columns = kept.select(envelope, data_source.c.project_id).join_from(kept.table, data_source)
        rows = await connection.execute(columns.where(where).order_by(kept.id).limit(most))
        return [
            SealedSecret(
                row.secret_id,
                row.data_source_id,
                row.project_id,
                kept.kind,
                row.name,
                row.version,
                row.sealed,
                row.value_type,
            )
            for row in rows
        ]

    def _access(self, secret: SealedSecret, reading: Reading) -> dict[str, Any]:
        return {
            "secret_access_id": self._new_id(),
            "secret_id": secret.secret_id,
            "data_source_id": secret.data_source_id,
            "kind": secret.kind,
            "name": secret.name,
            "version": secret.version,
            "purpose": reading.purpose,
            "run_id": reading.run_id,
            "trace_id": reading.trace_id,
            "created_at": time_of(reading.at),
        }


async def _raise_revision(connection: AsyncConnection, data_source_id: UUID) -> None:
    columns = data_source.c
    lives = sa.and_(columns.data_source_id == data_source_id, columns.status != "ARCHIVED")
    raised = await connection.execute(data_source.update().where(lives).values(revision=columns.revision + 1))
    if raised.rowcount != 1:
        raise CallerError("DATA_SOURCE_NOT_FOUND", "there is no such data source")


def _named(kept: Kept, secret: SealedSecret) -> dict[str, Any]:
    return {kept.id.name: secret.secret_id, kept.name.name: secret.name, "data_source_id": secret.data_source_id}


def _told(secret: SealedSecret, at: datetime) -> dict[str, Any]:
    return {"value": secret.sealed, "version": secret.version, "value_type": secret.value_type, "last_updated_at": at}
