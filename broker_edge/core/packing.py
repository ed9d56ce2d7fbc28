"""An `Entry` as the bytes that the hot tier holds: a fixed header, then the ready JSON of the value.

The header is read without touching the value, so a hit parses nothing. The first byte is the layout's version: an
instance that finds another one treats the entry as a miss, so that versions can run side by side. A negative entry has a layout
of its own: the header, then the error's status.
"""

from __future__ import annotations

from struct import Struct
from uuid import UUID

import msgspec

from broker_edge.core.exchange import Entry

_HEADER = Struct(">BQQd")
_NEGATIVE_HEADER = Struct(">BQQdH")
_created_at = Struct(">d").unpack_from
_status = Struct(">H").unpack_from
_uuid = msgspec.msgpack.Decoder(UUID).decode  # makes one in C, where UUID() would be half the cost of a look-up's answer
_SIXTEEN = b"\xc4\x10"  # MessagePack: sixteen bytes follow
_SIZE = _HEADER.size
_VERSION = 1
_NEGATIVE = 3
_VIEWED = 16 * 1024  # bytes from which a view is cheaper than a copy


def header(entry: Entry) -> bytes:
    """What stands before the value: for who sends the two one after the other."""
    number = entry.object_id.int
    high, low = number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF
    if entry.status >= 400:
        return _NEGATIVE_HEADER.pack(_NEGATIVE, high, low, entry.created_at, entry.status)
    return _HEADER.pack(_VERSION, high, low, entry.created_at)


def pack(entry: Entry) -> bytes:
    return b"".join((header(entry), entry.value))


def unpack(data: bytes | memoryview | None) -> Entry | None:
    """The entry, or None where there is none that this version can read. The value of a large one is a view of `data`."""
    if data is None or len(data) < _SIZE or data[0] != _VERSION:
        return None if data is None else _negative(data)
    value = data[_SIZE:] if len(data) < _VIEWED else memoryview(data)[_SIZE:]
    return Entry(_uuid(_SIXTEEN + data[1:17]), _created_at(data, 17)[0], value)


def _negative(data: bytes | memoryview) -> Entry | None:
    if len(data) != _NEGATIVE_HEADER.size or data[0] != _NEGATIVE:
        return None
    status = _status(data, _SIZE)[0]
    return Entry(_uuid(_SIXTEEN + data[1:17]), _created_at(data, 17)[0], b"", status) if 400 <= status <= 599 else None
