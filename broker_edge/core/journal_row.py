"""The audit row of one answer, and the frames of the spool that carry rows and data objects to the database."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import msgspec

from broker_edge.core.exchange import DataObject
from broker_edge.core.trail import Trail


class RequestRow(msgspec.Struct, frozen=True, array_like=True, tag="row"):
    """One `run_data_request` row; times are epoch seconds."""

    run_data_request_id: UUID
    created_at: float
    run_id: UUID | None
    data_object_id: UUID | None
    data_source_id: UUID | None
    data_origin: Literal["REQUEST", "CACHE"] | None
    start_time: float | None
    end_time: float | None
    error: dict[str, Any] | None
    project_id: UUID | None
    key: str | None
    outcome: str
    status_code: int
    trace_id: str


class ObjectFrame(msgspec.Struct, frozen=True, array_like=True, tag="object"):
    """A data object that the database could not take when it was fetched."""

    object_id: UUID
    data_source_id: UUID
    key: str
    body: bytes
    created_at: float
    content_type: str | None
    response_type: str
    status: int
    reusable: bool

    @classmethod
    def of(cls, item: DataObject) -> ObjectFrame:
        return cls(*(getattr(item, name) for name in cls.__struct_fields__))

    def restore(self) -> DataObject:
        return DataObject(**msgspec.structs.asdict(self))


Frame = RequestRow | ObjectFrame


def row_of(trail: Trail, row_id: UUID) -> RequestRow:
    """The row of a closed trail. Start and end are the upstream call's; a failure without a call has the request's own."""
    fetched, error = trail.fetched, trail.error
    called = fetched is not None and fetched.origin == "REQUEST"
    return RequestRow(
        row_id,
        trail.ended_at or trail.started_at,
        trail.run_id,
        fetched.entry.object_id if fetched else None,
        trail.source_id,
        fetched.origin if fetched else None,
        fetched.started_at if fetched and called else (trail.started_at if error else None),
        fetched.ended_at if fetched and called else (trail.ended_at if error else None),
        error.member() if error else None,
        UUID(trail.project) if trail.project else None,
        trail.key,
        trail.outcome,
        trail.status,
        f"{trail.context.trace_id:032x}",
    )
