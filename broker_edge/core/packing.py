"""An `Entry` as the bytes that the hot tier holds: a fixed header, then the ready JSON of the value.

The header is read without touching the value, so a hit parses nothing. The first byte is the layout's version: an
instance that finds another one treats the entry as a miss, so that versions can run side by side.
"""

from __future__ import annotations

from struct import Struct
from uuid import UUID

from broker_edge.core.exchange import Entry

_HEADER = Struct(">B16sd")
_VERSION = 1


def pack(entry: Entry) -> bytes:
    return _HEADER.pack(_VERSION, entry.object_id.bytes, entry.created_at) + entry.value


def unpack(data: bytes | None) -> Entry | None:
    """The entry, or None where there is none that this version can read."""
    if data is None or len(data) < _HEADER.size or data[0] != _VERSION:
        return None
    _, object_id, created_at = _HEADER.unpack_from(data)
    return Entry(UUID(bytes=object_id), created_at, data[_HEADER.size :])
