"""`ports.Archive` over SQLAlchemy Core, Postgres and SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_errors import epoch_of, translated
from broker_edge.backends.tables import data_object
from broker_edge.core.exchange import DataObject
from broker_edge.ports import ObjectNote

_C = data_object.c


class SqlArchive:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def objects(
        self, data_source_id: UUID, project_id: UUID | None, *, most: int, after: UUID | None
    ) -> Sequence[ObjectNote]:
        chosen = sa.select(_C.data_object_id, _C.data_source_id, _C.key, _C.created_at)
        statement = _of(chosen, data_source_id, project_id).order_by(_C.data_object_id.desc()).limit(most)
        if after is not None:
            statement = statement.where(_C.data_object_id < after)
        async with translated(), self._engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
        return [ObjectNote(row.data_object_id, row.data_source_id, row.key, epoch_of(row.created_at)) for row in rows]

    async def object(self, data_source_id: UUID, project_id: UUID | None, object_id: UUID) -> DataObject | None:
        statement = _of(sa.select(data_object), data_source_id, project_id).where(_C.data_object_id == object_id)
        async with translated(), self._engine.connect() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else _object_of(row)


def _of(statement: sa.Select[Any], data_source_id: UUID, project_id: UUID | None) -> sa.Select[Any]:
    # Not IS NOT DISTINCT FROM, which Postgres finds in no index.
    same = _C.project_id.is_(None) if project_id is None else _C.project_id == project_id
    return statement.where(_C.data_source_id == data_source_id, same)


def _object_of(row: sa.Row[Any]) -> DataObject:
    return DataObject(
        row.data_object_id,
        row.data_source_id,
        row.key,
        bytes(row.value),
        epoch_of(row.created_at),
        row.content_type,
        row.response_type,
        row.status_code,
        reusable=False,  # whether a cache row names it is nothing that its reader needs
        project_id=row.project_id,
        etag=row.etag,
        last_modified=row.last_modified,
    )
