"""Content codings, with the real compressors: whole, cut, flipped, split anywhere, and as bombs."""

from __future__ import annotations

import gc
import gzip
import random
import tracemalloc
import weakref
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.content_coding import Decoder
from broker_edge.core.zstd_frames import ZstdFrames
from broker_edge.errors import UpstreamError

BOUND = 1 << 24


def _raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(data) + encoder.flush()


def _zstd_stream(data: bytes) -> bytes:
    encoder = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return encoder.compress(data) + encoder.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its wrapping": ("deflate", _raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress),
    "zstd without a size": ("zstd", _zstd_stream),
    "identity": ("identity", bytes),
    "none": ("", bytes),
}
CODED = [name for name in ENCODERS if name not in ("identity", "none")]


def _decode(coding: str | None, *chunks: bytes, max_encoded: int = BOUND, max_decoded: int = BOUND) -> bytes:
    decoder = Decoder(coding, max_encoded=max_encoded, max_decoded=max_decoded)
    for chunk in chunks:
        decoder.feed(chunk)
    return decoder.finish()


def _code(coding: str | None, *chunks: bytes, max_encoded: int = BOUND, max_decoded: int = BOUND) -> str:
    with pytest.raises(UpstreamError) as caught:
        _decode(coding, *chunks, max_encoded=max_encoded, max_decoded=max_decoded)
    return caught.value.code


def _mixed(size: int) -> bytes:
    source = random.Random(7)
    return source.randbytes(size // 3) + b"abc" * (size // 9) + bytes(source.choices(b"{}[],: 01", k=size // 3))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_coding_comes_back(name: str) -> None:
    coding, encode = ENCODERS[name]
    data = _mixed(900_000)
    assert _decode(coding, encode(data)) == data


@pytest.mark.parametrize("name", ENCODERS)
@given(
    data=st.binary(max_size=3000),
    cuts=st.lists(st.integers(0, 4000), max_size=8),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_where_the_chunks_are_cut_makes_no_difference(
    name: str, data: bytes, cuts: list[int], kind: Callable[[bytes], bytes]
) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(data)
    borders = [0, *sorted(min(cut, len(encoded)) for cut in cuts), len(encoded)]
    assert _decode(coding, *(kind(encoded[start:end]) for start, end in pairwise(borders))) == data


@pytest.mark.parametrize("name", CODED)
def test_one_byte_at_a_time_is_fine(name: str) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(_mixed(3000))
    assert _decode(coding, *(encoded[at : at + 1] for at in range(len(encoded)))) == _mixed(3000)


@pytest.mark.parametrize("name", CODED)
def test_output_that_waits_behind_the_last_input_byte_is_fetched(name: str) -> None:
    coding, encode = ENCODERS[name]
    for size in (1 << 16, 1 << 17, 1 << 20):
        for data in (bytes(size + extra) for extra in range(-2, 300, 19)):
            assert _decode(coding, encode(data)) == data


@pytest.mark.parametrize("name", CODED)
def test_a_body_cut_at_any_byte_is_incomplete(name: str) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(_mixed(300))
    assert {_code(coding, encoded[:end]) for end in range(1, len(encoded))} == {"UPSTREAM_INCOMPLETE"}


@pytest.mark.parametrize("name", CODED)
def test_a_flipped_bit_never_raises_anything_else(name: str) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(_mixed(600))
    refused = 0
    for at in range(len(encoded) * 8):
        flipped = bytearray(encoded)
        flipped[at // 8] ^= 1 << at % 8
        try:
            _decode(coding, bytes(flipped))
        except UpstreamError as error:
            assert error.code in ("PARSE_ERROR", "UPSTREAM_INCOMPLETE", "UPSTREAM_TOO_LARGE")  # noqa: PT017 - most raise, a few don't
            refused += 1
    assert refused > 0


@given(coding=st.sampled_from(["gzip", "deflate", "br", "zstd", "zstd, gzip"]), data=st.binary(min_size=1, max_size=200))
def test_noise_never_raises_anything_else(coding: str, data: bytes) -> None:
    try:
        _decode(coding, data)
    except UpstreamError as error:
        assert error.code in ("PARSE_ERROR", "UPSTREAM_INCOMPLETE", "UPSTREAM_TOO_LARGE")  # noqa: PT017 - noise may be a stream


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("tail", [b"x", b"xyzxyzxyz", b"\x00x", b"\x1f\x8c"])
def test_bytes_behind_the_end_are_refused(name: str, tail: bytes) -> None:
    coding, encode = ENCODERS[name]
    encoded = encode(b"value")
    assert _code(coding, encoded + tail) == "PARSE_ERROR"
    assert _code(coding, encoded, *(tail[at : at + 1] for at in range(len(tail)))) == "PARSE_ERROR"


def test_gzip_may_be_filled_up_with_zeros_and_nothing_after_them() -> None:
    encoded = gzip.compress(b"value")
    assert _decode("gzip", encoded + bytes(512)) == b"value"
    assert _decode("gzip", encoded, b"\0", b"\0\0") == b"value"
    assert _code("gzip", encoded, b"\0", encoded) == "PARSE_ERROR"
    assert _code("gzip", b"\0" + encoded) == "PARSE_ERROR"
    assert _code("gzip", bytes(8)) == "PARSE_ERROR"


@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd without a size"])
def test_members_and_frames_are_joined(name: str) -> None:
    coding, encode = ENCODERS[name]
    parts = [b"one", b"", b"two" * 5000]
    encoded = b"".join(map(encode, parts))
    assert _decode(coding, encoded) == b"".join(parts)
    assert _decode(coding, *(encoded[at : at + 3] for at in range(0, len(encoded), 3))) == b"".join(parts)
    assert _code(coding, encoded[:-1]) == "UPSTREAM_INCOMPLETE"


def test_zstd_skippable_frames_are_skipped() -> None:
    note, nothing = (b"\x5a\x2a\x4d\x18" + len(text).to_bytes(4, "little") + text for text in (b"a note", b""))
    assert _decode("zstd", note + zstandard.compress(b"value") + nothing) == b"value"
    assert _code("zstd", zstandard.compress(b"value") + note[:-1]) == "UPSTREAM_INCOMPLETE"


def test_zstd_windows_above_8_mb_are_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, write_content_size=False)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert _code("zstd", encoder.compress(b"value") + encoder.flush()) == "PARSE_ERROR"


def test_a_zstd_decoder_goes_away_without_the_cyclic_collector() -> None:
    gc.disable()
    try:
        frames = ZstdFrames()
        assert b"".join(frames.push(zstandard.compress(b"value"))) == b"value"
        gone = weakref.ref(frames)
        del frames
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", CODED)
def test_a_bomb_stops_at_the_bound_and_costs_no_more(name: str) -> None:
    coding, encode = ENCODERS[name]
    bomb = encode(bytes(1 << 26))
    tracemalloc.start()
    try:
        assert _code(coding, bomb, max_decoded=1 << 20) == "UPSTREAM_TOO_LARGE"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 << 20


def test_a_zstd_frame_of_runs_comes_out_block_by_block() -> None:
    run = (131_072 << 3 | 2).to_bytes(3, "little") + b"A"
    frame = b"\x28\xb5\x2f\xfd\x00\x68" + run * 10_000
    pieces = ZstdFrames().push(frame)
    assert max(len(next(pieces)) for _ in range(1000)) <= 131_072


def test_a_bomb_between_two_codings_stops_too() -> None:
    assert _code("gzip, gzip", gzip.compress(gzip.compress(b"") + bytes(1 << 26)), max_decoded=1 << 20) == "UPSTREAM_TOO_LARGE"


@pytest.mark.parametrize("name", ENCODERS)
def test_bounds_are_inclusive_and_named(name: str) -> None:
    coding, encode = ENCODERS[name]
    data = _mixed(3000)
    encoded = encode(data)
    assert _decode(coding, encoded, max_encoded=len(encoded), max_decoded=len(data)) == data
    for bounds in ({"max_encoded": len(encoded) - 1}, {"max_decoded": len(data) - 1}):
        with pytest.raises(UpstreamError, match=str(*bounds.values())) as caught:
            _decode(coding, encoded, **bounds)
        assert caught.value.code == "UPSTREAM_TOO_LARGE"


def test_several_codings_are_undone_in_reverse_order() -> None:
    encoded = brotli.compress(gzip.compress(zstandard.compress(b"value")))
    assert _decode("zstd, gzip ,identity,, BR", encoded) == b"value"
    assert _code("br, gzip, zstd", encoded) == "PARSE_ERROR"


def test_an_inner_coding_that_got_nothing_is_incomplete() -> None:
    for inner in ("gzip", "deflate", "br", "zstd"):
        assert _code(f"{inner}, gzip", gzip.compress(b"")) == "UPSTREAM_INCOMPLETE"


def test_more_than_three_codings_are_refused() -> None:
    assert _code("gzip, gzip, gzip, gzip", b"x") == "PARSE_ERROR"


@pytest.mark.parametrize(
    ("coding", "named"), [("compress", True), ("aws-chunked", True), ("a b", False), ("é", False), ("hunter2", False)]
)
def test_an_unknown_coding_is_named_only_where_it_can_be_no_secret(coding: str, named: bool) -> None:
    with pytest.raises(UpstreamError) as caught:
        _decode(coding, b"x")
    assert caught.value.code == "PARSE_ERROR"
    assert (coding in caught.value.message) is named


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity", "unheard-of", "gzip, br", "", None])
def test_without_a_body_any_coding_is_fine(coding: str | None) -> None:
    assert _decode(coding) == b""
    assert _decode(coding, b"", b"") == b""


def test_a_single_chunk_without_coding_is_handed_on_uncopied() -> None:
    chunk = b"value" * 1000
    assert _decode(None, chunk) is chunk


def test_a_buffer_that_is_used_again_is_copied() -> None:
    decoder = Decoder(None, max_encoded=BOUND, max_decoded=BOUND)
    buffer = bytearray(b"one")
    for text in (b"one", b"two"):
        buffer[:] = text
        decoder.feed(buffer)
    buffer[:] = b"xxx"
    assert decoder.finish() == b"onetwo"
