"""Rows of the tables from the values of the core, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Row

from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import PackedRows, RequestRow, pack_row, plain_text

REQUEST_COLUMNS = RequestRow.__struct_fields__


def object_row(item: DataObject) -> dict[str, Any]:
    return {
        "data_object_id": item.object_id,
        "data_source_id": item.data_source_id,
        "key": item.key,
        "value": item.body,
        "created_at": _time(item.created_at),
        "content_type": None if item.content_type is None else plain_text(item.content_type),
        "response_type": item.response_type,
        "status_code": item.status,
    }


def cache_row(item: DataObject) -> dict[str, Any]:
    return {"key": item.key, "data_object_id": item.object_id, "created_at": _time(item.created_at)}


def request_row(row: RequestRow) -> dict[str, Any]:
    values = msgspec.structs.asdict(row)
    values["created_at"] = _time(row.created_at)
    if row.error is not None:
        values["error"] = {name: plain_text(value) if isinstance(value, str) else value for name, value in row.error.items()}
    return values


def request_frames(rows: Sequence[RequestRow]) -> list[bytes]:
    """The rows as tuples of binary COPY, by id, which leads in each; raises ValueError or TypeError where one can't be packed."""
    return sorted(rows.frames if isinstance(rows, PackedRows) else map(pack_row, rows))


def newest_of_keys(objects: Sequence[DataObject]) -> dict[str, DataObject]:
    """The reusable object of each key that its cache row may name, by key."""
    newest: dict[str, DataObject] = {}
    for item in sorted((item for item in objects if item.reusable), key=lambda item: (item.key, item.created_at)):
        newest[item.key] = item
    return newest


def object_of(row: Row[Any]) -> DataObject:
    # SQLite keeps no zone: what it gives back is the UTC that was put in.
    created = row.created_at if row.created_at.tzinfo else row.created_at.replace(tzinfo=UTC)
    return DataObject(
        row.data_object_id,
        row.data_source_id,
        row.key,
        bytes(row.value),
        created.timestamp(),
        row.content_type,
        row.response_type,
        row.status_code,
        reusable=True,
    )


def _time(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)
