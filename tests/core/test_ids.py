"""Version 7 UUIDs (RFC 9562 section 5.7)."""

from __future__ import annotations

from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.ids import uuid7, uuid7_bytes, uuid_of

NOW = st.floats(0, 4_000_000_000)
BITS = st.integers(0, 2**74 - 1)


def test_the_example_of_the_rfc() -> None:
    # Appendix A.6: rand_a 0xCC3, rand_b 0x18C4DC0C0C07398F, Tuesday, February 22, 2022 2:22:22.00 PM GMT-05:00.
    assert uuid7(1_645_557_742.000, 0xCC3 | 0x18C4DC0C0C07398F << 12) == UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


@given(NOW, BITS)
def test_version_and_variant_are_set_whatever_the_bits(now: float, bits: int) -> None:
    made = uuid7(now, bits)
    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == int(now * 1000)


@given(NOW, BITS, BITS)
def test_every_random_bit_counts(now: float, one: int, two: int) -> None:
    assert (uuid7(now, one) == uuid7(now, two)) == (one == two)


@given(NOW, BITS, BITS)
def test_a_later_millisecond_sorts_later(now: float, one: int, two: int) -> None:
    assert uuid7(now, one) < uuid7(now + 0.002, two)
    assert str(uuid7(now, one)) < str(uuid7(now + 0.002, two))


@given(NOW, st.integers(2**74, 2**200))
def test_more_bits_than_needed_do_no_harm(now: float, bits: int) -> None:
    assert uuid7(now, bits) == uuid7(now, bits % 2**74)


@given(NOW, st.integers(0, 2**200))
def test_bytes_and_objects_are_the_same_id(now: float, bits: int) -> None:
    made = uuid7(now, bits)
    assert uuid7_bytes(now, bits) == made.bytes
    assert uuid_of(made.bytes) == made


@given(st.uuids())
def test_an_id_from_bytes_is_like_any_other(one: UUID) -> None:
    made = uuid_of(one.bytes)
    assert (made, str(made), hash(made), made.is_safe) == (one, str(one), hash(one), one.is_safe)


@pytest.mark.parametrize("data", [b"", b"x" * 15, b"x" * 17])
def test_other_lengths_are_no_id(data: bytes) -> None:
    with pytest.raises(ValueError, match="sixteen"):
        uuid_of(data)
