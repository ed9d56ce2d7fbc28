"""Postgres' binary formats, packed in one go: parameters that are arrays, the stream of COPY, the fields of results.

Drivers adapt value by value, which costs more than all the rest of a batch. Formats: array_send, COPY ("Binary Format"), and the
send functions of uuid, timestamptz, date, int4 and int8 in Postgres' sources; numbers are big-endian, lengths are 32 bits, -1 for
NULL.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from struct import Struct

from broker_edge.core.ids import uuid_of
from broker_edge.core.row_packing import POSTGRES_EPOCH

_ARRAY = Struct(">iiIii")
_INT4 = Struct(">i")
_INT8 = Struct(">q")
_BOOL, _BYTEA, _INTEGER, _TEXT, _TIMESTAMPTZ, _UUID = 16, 17, 23, 25, 1184, 2950  # pg_type.dat
_SIXTEEN = _INT4.pack(16)
_NULL = _INT4.pack(-1)
_FIRST_DAY = date(2000, 1, 1).toordinal()
_TRUE, _FALSE = _INT4.pack(1) + b"\x01", _INT4.pack(1) + b"\x00"


def _array(kind: int, count: int, elements: bytes, *, nulls: bool = False) -> bytes:
    if not count:
        return _ARRAY.pack(0, 0, kind, 0, 0)[:12]
    return _ARRAY.pack(1, nulls, kind, count, 1) + elements


def uuids(values: Sequence[bytes | None]) -> bytes:
    elements = b"".join([_NULL if value is None else _SIXTEEN + value for value in values])
    return _array(_UUID, len(values), elements, nulls=None in values)


def texts(values: Sequence[str | None]) -> bytes:
    return _sized(_TEXT, [None if value is None else value.encode() for value in values])


def byteas(values: Sequence[bytes]) -> bytes:
    return _sized(_BYTEA, values)


def _sized(kind: int, values: Sequence[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_INT4.pack(len(value)), value)
    return _array(kind, len(values), b"".join(parts), nulls=None in values)


def times(values: Sequence[float]) -> bytes:
    """Epoch seconds."""
    numbers = [part for value in values for part in (8, round(value * 1e6) - POSTGRES_EPOCH)]
    return _array(_TIMESTAMPTZ, len(values), Struct(">" + "iq" * len(values)).pack(*numbers))


def integers(values: Sequence[int]) -> bytes:
    numbers = [part for value in values for part in (4, value)]
    return _array(_INTEGER, len(values), Struct(f">{len(numbers)}i").pack(*numbers))


def booleans(values: Sequence[bool]) -> bytes:
    return _array(_BOOL, len(values), b"".join([_TRUE if value else _FALSE for value in values]))


def whole_numbers(*values: int) -> list[bytes]:
    """Of 64 bits, each a parameter of its own."""
    return [_INT8.pack(value) for value in values]


def day(value: date) -> bytes:
    return _INT4.pack(value.toordinal() - _FIRST_DAY)


def copy_stream(tuples: Sequence[bytes]) -> bytes:
    """What COPY ... (FORMAT BINARY) takes: its signature, no flags, no extension, the tuples, the end."""
    return b"PGCOPY\n\xff\r\n\x00" + bytes(8) + b"".join(tuples) + b"\xff\xff"


def read_time(data: bytes) -> float:
    """Epoch seconds."""
    return (int(_INT8.unpack(data)[0]) + POSTGRES_EPOCH) / 1e6


def read_integer(data: bytes) -> int:
    return int(_INT4.unpack(data)[0])


def read_whole_number(data: bytes) -> int:
    return int(_INT8.unpack(data)[0])


read_uuid = uuid_of
