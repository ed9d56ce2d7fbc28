"""The audit row of one answer, and the frames of the spool that carry rows and data objects to the database.

A row's frame is the row as Postgres' binary COPY wants it (documentation of COPY, "Binary Format", one tuple): big-endian lengths
before the fields, -1 for NULL. It is packed once, before the answer, and shipping has nothing left to do but to join frames.
Frames of data objects, and rows that an earlier version spooled, are MessagePack arrays, which begin otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, overload
from uuid import UUID

import msgspec
import orjson

from broker_edge.core.exchange import DataObject
from broker_edge.core.ids import uuid_of
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

POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970
_NULL = b"\xff\xff\xff\xff"
_ID = b"\x00\x00\x00\x10"
_HEAD = struct.pack(">h", len(RequestRow.__struct_fields__)) + _ID
_LENGTH = struct.Struct(">i")
_length = _LENGTH.pack
_microseconds = struct.Struct(">iq").pack
_float = struct.Struct(">id").pack
_integer = struct.Struct(">ii").pack


def frame_of(trail: Trail, row_id: bytes) -> bytes:
    """The packed row of a closed trail. Start and end are the upstream call's; a failure without a call has the request's own."""
    fetched, error = trail.fetched, trail.error
    start, end = (trail.started_at, trail.ended_at) if error else (None, None)
    if fetched is not None and fetched.origin == "REQUEST":
        start, end = fetched.started_at, fetched.ended_at
    return _packed(
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
    )


def row_of(trail: Trail, row_id: UUID) -> RequestRow:
    """The row of a closed trail, as it will be read."""
    return unpack_row(frame_of(trail, row_id.bytes))


def pack_row(row: RequestRow) -> bytes:
    """The frame of a row; raises ValueError or TypeError where a column can't hold its value."""
    try:
        return _packed(
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
        )
    except (struct.error, OverflowError):  # the latter for an infinite time
        raise ValueError("a number is too large for its column") from None


def _packed(
    row_id: bytes,
    created_at: float,
    run_id: UUID | None,
    object_id: UUID | None,
    source_id: UUID | None,
    origin: str | None,
    start: float | None,
    end: float | None,
    error: dict[str, Any] | None,
    project: UUID | None,
    key: str | None,
    outcome: str,
    status: int,
    trace_id: bytes,
) -> bytes:
    return b"".join(
        (
            _HEAD,
            row_id,
            _microseconds(8, round(created_at * 1e6) - POSTGRES_EPOCH),
            _NULL if run_id is None else _ID + run_id.int.to_bytes(16, "big"),
            _NULL if object_id is None else _ID + object_id.int.to_bytes(16, "big"),
            _NULL if source_id is None else _ID + source_id.int.to_bytes(16, "big"),
            _word(origin),
            _NULL if start is None else _float(8, start),
            _NULL if end is None else _float(8, end),
            _NULL if error is None else _json(error),
            _NULL if project is None else _ID + project.int.to_bytes(16, "big"),
            _NULL if key is None else _text(key),
            _word(outcome),
            _integer(4, status),
            _length(len(trace_id)),
            trace_id,
        )
    )


def _text(value: str) -> bytes:
    data = value.encode()
    return _length(len(data)) + data


@lru_cache(256)
def _word(value: str | None) -> bytes:
    """Text of which there are few."""
    return _NULL if value is None else _text(value)


def _json(value: dict[str, Any]) -> bytes:
    data = orjson.dumps({name: plain_text(item) if isinstance(item, str) else item for name, item in value.items()})
    return _length(1 + len(data)) + b"\x01" + data  # jsonb's own version leads


def plain_text(value: str) -> str:
    """Postgres takes neither NUL nor lone surrogates in text; a caller's member names may hold them."""
    if value.isascii() and "\x00" not in value:
        return value
    return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def is_packed_row(frame: bytes) -> bool:
    return frame.startswith(_HEAD)


def unpack_row(frame: bytes) -> RequestRow:
    """The row of a frame; raises ValueError where it is none."""
    position = 2
    values: list[Any] = []
    try:
        for read in _READERS:
            (length,) = _LENGTH.unpack_from(frame, position)
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
