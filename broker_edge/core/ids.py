"""Identifiers: time-ordered UUIDs, so that index pages fill from one end."""

from __future__ import annotations

from uuid import UUID


def uuid7(now: float, random_bits: int) -> UUID:
    """A version 7 UUID (RFC 9562 section 5.7) from epoch seconds and at least 74 random bits."""
    milliseconds = int(now * 1000) & ((1 << 48) - 1)
    upper = random_bits & 0xFFF
    lower = (random_bits >> 12) & ((1 << 62) - 1)
    return UUID(int=(milliseconds << 80) | (0x7 << 76) | (upper << 64) | (0b10 << 62) | lower)
