"""What the hot tier holds: a fixed head, then the value, byte for byte."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.exchange import Entry
from broker_edge.core.packing import pack, unpack

OBJECT = uuid.UUID("0189f7ea-ae2c-7809-8aeb-b819cf5e9e7f")


@given(st.uuids(), st.floats(allow_nan=False), st.binary())
def test_what_is_packed_comes_back_as_it_was(object_id: uuid.UUID, created_at: float, value: bytes) -> None:
    entry = Entry(object_id, created_at, value)
    assert unpack(pack(entry)) == entry


def test_the_value_stands_whole_behind_a_head_of_25_bytes() -> None:
    value = b'{"any": "bytes \xff"}'
    packed = pack(Entry(OBJECT, 1.5, value))
    assert packed[25:] == value
    assert packed[:25] == b"\x01" + OBJECT.bytes + b"\x3f\xf8" + b"\x00" * 6


@given(st.uuids(), st.floats(allow_nan=False), st.integers(400, 599))
def test_a_negative_entry_comes_back_as_it_was(object_id: uuid.UUID, created_at: float, status: int) -> None:
    entry = Entry(object_id, created_at, b"", status)
    assert unpack(pack(entry)) == unpack(memoryview(pack(entry))) == entry


def test_a_negative_entry_is_nothing_to_those_who_know_none() -> None:
    assert pack(Entry(OBJECT, 1.5, b"", 404))[0] not in (1, 2)


@pytest.mark.parametrize("tail", [b"", b"\x01", b"\x00\xc8", b"\x02\x58", b"\x01\x94value"], ids=repr)
def test_a_negative_entry_that_says_no_error_s_status_is_no_entry(tail: bytes) -> None:
    assert unpack(pack(Entry(OBJECT, 1.5, b"", 404))[:25] + tail) is None


def test_nothing_is_no_entry() -> None:
    assert unpack(None) is None


@pytest.mark.parametrize("length", [0, 1, 16, 24])
def test_a_head_that_is_cut_is_no_entry(length: int) -> None:
    assert unpack(pack(Entry(OBJECT, 1.5, b"value"))[:length]) is None


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_s_layout_is_no_entry(version: int) -> None:
    assert unpack(bytes([version]) + pack(Entry(OBJECT, 1.5, b"value"))[1:]) is None


@given(st.binary(max_size=100))
def test_garbage_never_fails(data: bytes) -> None:
    found = unpack(data)
    assert found is None or pack(found) == data or data[17:25] != pack(found)[17:25]


def test_an_object_s_id_is_like_any_other() -> None:
    found = unpack(pack(Entry(OBJECT, 1.5, b"value")))
    assert found is not None
    assert (found.object_id, hash(found.object_id), str(found.object_id)) == (OBJECT, hash(OBJECT), str(OBJECT))
    assert found.object_id.is_safe == OBJECT.is_safe


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_the_value_of_a_large_entry_is_a_view_of_what_was_received(kind: type[bytes | memoryview]) -> None:
    value = bytes(range(256)) * 400
    received = kind(pack(Entry(OBJECT, 1.5, value)))
    found = unpack(received)
    assert found is not None
    assert isinstance(found.value, memoryview)
    assert found.value.obj is (received.obj if isinstance(received, memoryview) else received)
    assert found == Entry(OBJECT, 1.5, value)
    assert pack(found) == received
