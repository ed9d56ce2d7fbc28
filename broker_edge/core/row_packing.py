"""The fields of an audit row in the binary format of Postgres' COPY (documentation of COPY, "Binary Format", one tuple).

Big-endian lengths lead the fields, -1 for NULL. What each field means, `journal_row` knows.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson

POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970
_NULL = b"\xff\xff\xff\xff"
_ID = b"\x00\x00\x00\x10"
HEAD = struct.pack(">h", 18) + _ID  # a row's beginning: the number of its fields, and the length of its id
EARLIER_HEAD = struct.pack(">h", 14) + _ID  # of one without its four last, about money
NO_MONEY = 4 * _NULL
LENGTH = struct.Struct(">i")
_length = LENGTH.pack
_microseconds = struct.Struct(">iq").pack
_float = struct.Struct(">id").pack
_integer = struct.Struct(">ii").pack
_bigint = struct.Struct(">iq").pack


def packed(
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
    last_four: bytes,
) -> bytes:
    return b"".join(
        (
            HEAD,
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
            last_four,
        )
    )


@lru_cache(256)
def money(calls: int | None, cost: int | None, saved: int | None, currency: str | None) -> bytes:
    """The last four fields, about money; sources have few prices."""
    return b"".join(
        (
            _NULL if calls is None else _integer(4, calls),
            _NULL if cost is None else _bigint(8, cost),
            _NULL if saved is None else _bigint(8, saved),
            _word(currency),
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
