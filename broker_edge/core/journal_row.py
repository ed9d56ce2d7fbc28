"""The audit row of one answer, and the frames of the spool that carry rows and data objects to the database.

A row's frame is the row as Postgres' binary COPY wants it (documentation of COPY, "Binary Format", one tuple): big-endian lengths
before the fields, -1 for NULL. It is packed once, before the answer, and shipping has nothing left to do but to join frames.
It begins with the number of its fields: an earlier version's had fewer, and gets NULLs for those that it lacks. Frames of data
objects, and rows of a still earlier version, are MessagePack arrays, which begin otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload
from uuid import UUID

import msgspec
import orjson

from broker_edge.core.exchange import DataObject
from broker_edge.core.ids import uuid_of
from broker_edge.core.money import Price
from broker_edge.core.row_packing import EARLIER_HEAD, HEAD, LENGTH, NO_MONEY, POSTGRES_EPOCH, money, packed
from broker_edge.core.trail import FlightTrail, Record, Trail


class RequestRow(msgspec.Struct, frozen=True, array_like=True, tag="row"):
    """One `run_data_request` row; times are epoch seconds, amounts millionths of `currency`."""

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
    calls: int | None = None
    cost_micros: int | None = None
    saved_micros: int | None = None
    currency: str | None = None


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
    # Frames of an earlier version end here.
    project_id: UUID | None = None
    etag: str | None = None
    last_modified: str | None = None
    validated_at: float | None = None

    @classmethod
    def of(cls, item: DataObject) -> ObjectFrame:
        return cls(*(getattr(item, name) for name in cls.__struct_fields__))

    def restore(self) -> DataObject:
        return DataObject(**msgspec.structs.asdict(self))


Frame = RequestRow | ObjectFrame


def frame_of(trail: Trail, row_id: bytes) -> bytes:
    """The packed row of a closed trail. Start and end are the upstream call's; a failure without a call has the request's own."""
    fetched, error = trail.fetched, trail.error
    start, end = (trail.started_at, trail.ended_at) if error else (None, None)
    if fetched is not None and fetched.origin == "REQUEST":
        start, end = fetched.started_at, fetched.ended_at
    return packed(
        row_id,
        trail.ended_at or trail.started_at,
        trail.run_id,
        fetched.entry.object_id if fetched is not None else None,
        trail.source_id,
        fetched.origin if fetched is not None else None,
        start,
        end,
        error.member() if error else None,
        UUID(trail.project) if trail.project else None,
        trail.key,
        trail.outcome,
        trail.status,
        b"%032x" % trail.context.trace_id,
        NO_MONEY if trail.price is None and not trail.calls else _money_of(trail, trail.price, trail.saved),
    )


def refill_frame(flight: FlightTrail, opener: Trail, row_id: bytes) -> bytes:
    """The packed row of a flight that has ended, and whose charge no request's row carries: `opener` is the one that began it.

    Outcome `refill`; times are the call's where an answer came, else the flight's own.
    """
    fetched, error = flight.fetched, flight.error
    bought = fetched is not None and fetched.started_at is not None
    ended_at = flight.ended_at or flight.started_at
    return packed(
        row_id,
        ended_at,
        opener.run_id,
        fetched.entry.object_id if fetched is not None else None,
        opener.source_id,
        fetched.origin if fetched is not None else None,
        fetched.started_at if fetched is not None and bought else flight.started_at,
        fetched.ended_at if fetched is not None and bought else ended_at,
        error.member() if error else None,
        UUID(opener.project) if opener.project else None,
        opener.key,
        "refill",
        error.kind.status if error else 200,
        b"%032x" % flight.context.trace_id,
        _money_of(flight, opener.price, None),
    )


def row_of(trail: Trail, row_id: UUID) -> RequestRow:
    """The row of a closed trail, as it will be read."""
    return unpack_row(frame_of(trail, row_id.bytes))


def pack_row(row: RequestRow) -> bytes:
    """The frame of a row; raises ValueError or TypeError where a column can't hold its value."""
    try:
        return packed(
            row.run_data_request_id.bytes,
            row.created_at,
            row.run_id,
            row.data_object_id,
            row.data_source_id,
            row.data_origin,
            row.start_time,
            row.end_time,
            row.error,
            row.project_id,
            row.key,
            row.outcome,
            row.status_code,
            row.trace_id.encode(),
            money(row.calls, row.cost_micros, row.saved_micros, row.currency),
        )
    except (struct.error, OverflowError):  # the latter for an infinite time
        raise ValueError("a number is too large for its column") from None


def _money_of(record: Record, price: Price | None, saved: int | None) -> bytes:
    if price is None:  # a budget counts the calls of a source whose price nobody told
        return money(record.calls, None, None, None)
    return money(record.calls or None, record.cost if record.calls else None, saved, price.currency)


def is_packed_row(frame: bytes) -> bool:
    return frame.startswith(HEAD)


def upgraded(frame: bytes) -> bytes | None:
    """A row that was packed before rows had money in them, as it is packed by now; None where the frame is none."""
    return HEAD + frame[len(EARLIER_HEAD) :] + NO_MONEY if frame.startswith(EARLIER_HEAD) else None


def unpack_row(frame: bytes) -> RequestRow:
    """The row of a frame; raises ValueError where it is none."""
    position = 2
    values: list[Any] = []
    try:
        for read in _READERS:
            (length,) = LENGTH.unpack_from(frame, position)
            position += 4
            if length < 0:
                values.append(None)
            else:
                values.append(read(frame[position : position + length]))
                position += length
    except struct.error:
        raise ValueError("a length or a number is cut short") from None
    if position != len(frame):
        raise ValueError("the fields don't end where the frame does")
    return RequestRow(*values)


def _number(code: str) -> Callable[[bytes], Any]:
    unpack = struct.Struct(f">{code}").unpack
    return lambda data: unpack(data)[0]


def _time(data: bytes) -> float:
    return (int.from_bytes(data, "big", signed=True) + POSTGRES_EPOCH) / 1e6


_READERS: tuple[Callable[[bytes], Any], ...] = (
    *(uuid_of, _time, uuid_of, uuid_of, uuid_of),
    *(bytes.decode, _number("d"), _number("d")),
    *(lambda data: orjson.loads(data[1:]), uuid_of),
    *(bytes.decode, bytes.decode, _number("i"), bytes.decode),
    *(_number("i"), _number("q"), _number("q"), bytes.decode),
)


class PackedRows(Sequence[RequestRow]):
    """Rows that are unpacked only where somebody looks at them; `frames` for those who can take them as they are."""

    __slots__ = ("frames",)

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> RequestRow: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...
    def __getitem__(self, index: int | slice) -> RequestRow | PackedRows:
        return PackedRows(self.frames[index]) if isinstance(index, slice) else unpack_row(self.frames[index])
