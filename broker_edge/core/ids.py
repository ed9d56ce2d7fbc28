"""Identifiers: time-ordered UUIDs, so that index pages fill from one end."""

from __future__ import annotations

from struct import Struct
from uuid import UUID, SafeUUID

_HALVES = Struct(">QQ").pack
_VERSION = 0x7000
_VARIANT = 1 << 63
_MILLISECONDS = (1 << 48) - 1
_RANDOM = (1 << 62) - 1

_new = object.__new__
_set = object.__setattr__
_UNKNOWN = SafeUUID.unknown


def uuid7(now: float, random_bits: int) -> UUID:
    """A version 7 UUID (RFC 9562 section 5.7) from epoch seconds and at least 74 random bits."""
    return _made(int.from_bytes(uuid7_bytes(now, random_bits), "big"))


def uuid7_bytes(now: float, random_bits: int) -> bytes:
    """The same as its sixteen bytes."""
    upper = (int(now * 1000) & _MILLISECONDS) << 16 | _VERSION | random_bits & 0xFFF
    return _HALVES(upper, _VARIANT | random_bits >> 12 & _RANDOM)


def uuid_of(data: bytes) -> UUID:
    """The UUID of sixteen bytes; raises ValueError where there are more or fewer."""
    if len(data) != 16:
        raise ValueError("a UUID is sixteen bytes")
    return _made(int.from_bytes(data, "big"))


def _made(value: int) -> UUID:
    """As `UUID(int=value)`, without its checks of what can't be wrong here: they are half of its cost."""
    made = _new(UUID)
    _set(made, "int", value)
    _set(made, "is_safe", _UNKNOWN)
    return made
