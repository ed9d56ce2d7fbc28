"""Rows of the tables from the values of the core, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Row

from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import PackedRows, RequestRow, pack_row
from broker_edge.core.row_packing import plain_text

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
        "project_id": item.project_id,
        "etag": item.etag,
        "last_modified": item.last_modified,
    }


def cache_row(item: DataObject) -> dict[str, Any]:
    return {"key": item.key, "data_object_id": item.object_id, "created_at": _time(item.confirmed_at)}


def request_row(row: RequestRow) -> dict[str, Any]:
    values = msgspec.structs.asdict(row)
    values["created_at"] = _time(row.created_at)
    if row.error is not None:
        values["error"] = {name: plain_text(value) if isinstance(value, str) else value for name, value in row.error.items()}
    return values


def request_frames(rows: Sequence[RequestRow]) -> list[bytes]:
    """The rows as tuples of binary COPY, by id, which leads in each; raises ValueError or TypeError where one can't be packed."""
    return sorted(rows.frames if isinstance(rows, PackedRows) else map(pack_row, rows))


def rollup_order(row: RequestRow) -> tuple[object, ...]:
    """By the sums of the day that a row belongs to, then by id: rows that are inserted one by one lock their sums one by one, and
    in another order two batches could each wait for the other's."""
    day = row.created_at // 86_400
    return str(row.data_source_id or ""), str(row.project_id or ""), day, row.currency or "", row.run_data_request_id


def newest_of_keys(objects: Sequence[DataObject]) -> dict[str, DataObject]:
    """The reusable object of each key that its cache row may name, by key."""
    newest: dict[str, DataObject] = {}
    for item in sorted((item for item in objects if item.reusable), key=lambda item: (item.key, item.confirmed_at)):
        newest[item.key] = item
    return newest


def object_of(row: Row[Any]) -> DataObject:
    created, validated = _epoch(row.created_at), _epoch(row.validated_at)
    return DataObject(
        row.data_object_id,
        row.data_source_id,
        row.key,
        bytes(row.value),
        created,
        row.content_type,
        row.response_type,
        row.status_code,
        reusable=True,
        project_id=row.project_id,
        etag=row.etag,
        last_modified=row.last_modified,
        validated_at=validated if validated > created else None,
    )


def _time(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)


def _epoch(time: datetime) -> float:
    """SQLite keeps no zone: what it gives back is the UTC that was put in."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
