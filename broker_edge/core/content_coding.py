"""Undoing Content-Encoding while a body flows, within bounds on both sides: between the transport's raw chunks and `formats`.

Every coding hands out pieces of bounded size and is asked for no more once the bound is passed, so a small body that inflates to
gigabytes costs the bound and no more.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from typing import Protocol

import brotli  # type: ignore[import-untyped]  # no stubs among the dependencies
from zstandard import ZstdError

from broker_edge.core.zstd_frames import ZstdFrames
from broker_edge.errors import UpstreamError

Data = bytes | memoryview

MAX_CODINGS = 3
_PIECE = 1 << 16
# zlib hands unread input back as a copy: small slices keep that linear even for a body of thousands of tiny gzip members.
_SLICE = 1 << 13
# Named where they are met, as they can't be undone here; any other word may be a secret that the upstream sends back.
_FOREIGN = frozenset(
    {"aes128gcm", "aws-chunked", "bzip2", "compress", "dcb", "dcz", "exi", "lzma", "sdch", "snappy", "x-compress", "xz"}
)
_CORRUPT = (zlib.error, brotli.error, ZstdError)


class _Stage(Protocol):
    """One coding: `push` yields pieces of the decoded stream, `complete` says whether it may stop here."""

    def push(self, data: Data) -> Iterator[bytes]: ...

    def complete(self) -> bool: ...


def _corrupt() -> UpstreamError:
    return UpstreamError("PARSE_ERROR", "The body is not in the coding that Content-Encoding names")


def _inflate(stream: zlib._Decompress, data: Data) -> Generator[bytes, None, bytes]:
    """Yields what `stream` makes of `data`, at most `_PIECE` bytes at a time; returns the input behind its end."""
    while True:
        piece = stream.decompress(data, _PIECE)
        if piece:
            yield piece
        if stream.eof:
            return stream.unused_data
        data = stream.unconsumed_tail
        # A full piece may have left output inside although all input is read.
        if not data and len(piece) < _PIECE:
            return b""


class _Gzip:
    """RFC 1952: one member or several; zero bytes may fill up the rest."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._begun = self._padding = False

    def push(self, data: Data) -> Iterator[bytes]:
        while data:
            if self._member is None:
                self._between(data)
                if self._padding:
                    return
                self._member = zlib.decompressobj(wbits=31)
            data = yield from _inflate(self._member, data)
            if self._member.eof:
                self._member = None

    def complete(self) -> bool:
        return self._begun and self._member is None

    def _between(self, data: Data) -> None:
        self._padding = self._padding or (self._begun and data[0] == 0)
        self._begun = True
        # zlib looks at the magic only once it has both bytes: one stray byte would pass for a member that was cut short.
        if any(data) if self._padding else data[0] != 0x1F:
            raise _corrupt()


class _Deflate:
    """RFC 9110 section 8.4.1.2: zlib's format; but some servers send the bare deflate stream.

    The first two bytes tell: zlib's are a multiple of 31 of method 8, which no encoder's raw stream starts with (it would be a
    stored block with bits set in its padding).
    """

    def __init__(self) -> None:
        self._start = b""
        self._stream: zlib._Decompress | None = None

    def push(self, data: Data) -> Iterator[bytes]:
        if self._stream is None:
            self._start += data
            if len(self._start) < 2:
                return
            data = self._start
            wrapped = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._stream = zlib.decompressobj(wbits=15 if wrapped else -15)
        if self._stream.eof or (yield from _inflate(self._stream, data)):
            raise _corrupt()

    def complete(self) -> bool:
        return self._stream is not None and self._stream.eof


class _Brotli:
    """RFC 7932. The library refuses input behind the end by itself."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def push(self, data: Data) -> Iterator[bytes]:
        piece = self._stream.process(data, output_buffer_limit=_PIECE)
        # What went over the limit stays inside, also where the library would already take more input: until nothing comes.
        while piece or not self._stream.can_accept_more_data():
            yield piece
            if self._stream.is_finished():
                return
            piece = self._stream.process(b"", output_buffer_limit=_PIECE)

    def complete(self) -> bool:
        return bool(self._stream.is_finished())


_CODINGS: dict[str, Callable[[], _Stage]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": ZstdFrames,
}


class Decoder:
    """Undoes the codings of one body: `feed` each raw chunk, then `finish`. Bounds are in bytes.

    Beside what it has decoded it holds at most a piece, a slice and the codings' windows. Without a body every Content-Encoding
    is fine (HEAD, 204, 304), so an unknown one is refused at the first byte. After an error it is of no further use.
    """

    def __init__(self, content_encoding: str | None, *, max_encoded: int, max_decoded: int) -> None:
        self._content_encoding = content_encoding
        self._max_encoded = max_encoded
        self._max_decoded = max_decoded
        self._encoded = 0
        self._stages: list[_Stage] = []
        self._made: list[int] = []
        self._first: bytes | None = None
        self._rest: BytesIO | None = None

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Takes the next raw chunk; a `bytes` chunk without coding is kept as it is, anything else is copied.

        Raises UpstreamError UPSTREAM_TOO_LARGE over a bound, PARSE_ERROR for corrupt data and unknown codings.
        """
        size = len(chunk) if isinstance(chunk, bytes) else memoryview(chunk).nbytes
        if not size:
            return
        if not self._encoded:
            self._stages = _stages(self._content_encoding)
            self._made = [0] * len(self._stages)
        self._encoded += size
        if self._encoded > self._max_encoded:
            raise _too_large("as it was sent", self._max_encoded)
        if self._stages:
            self._decode(memoryview(chunk).cast("B"))
        elif self._encoded > self._max_decoded:
            raise _too_large("as it was sent", self._max_decoded)
        else:
            self._keep(bytes(chunk))

    def finish(self) -> bytes:
        """The whole decoded body; raises UpstreamError UPSTREAM_INCOMPLETE where a coding's stream has not come to its end."""
        try:
            complete = all(stage.complete() for stage in self._stages)
        except _CORRUPT:
            raise _corrupt() from None
        if not complete:
            raise UpstreamError("UPSTREAM_INCOMPLETE", "The body stops before the end of its content coding")
        return (self._first or b"") if self._rest is None else self._rest.getvalue()

    def _decode(self, data: memoryview) -> None:
        try:
            for start in range(0, len(data), _SLICE):
                for piece in filter(None, self._through(0, data[start : start + _SLICE])):
                    self._keep(piece)
        except _CORRUPT:
            raise _corrupt() from None

    def _through(self, depth: int, data: Data) -> Iterator[bytes]:
        """The pieces that come out behind the last stage; the output of each stage is bounded on its own."""
        for piece in self._stages[depth].push(data):
            self._made[depth] += len(piece)
            if self._made[depth] > self._max_decoded:
                raise _too_large("with its content coding removed", self._max_decoded)
            if depth + 1 == len(self._stages):
                yield piece
            elif piece:
                yield from self._through(depth + 1, piece)

    def _keep(self, piece: bytes) -> None:
        """One piece stays as it is; more go to a buffer whose `getvalue` hands its memory over without a copy."""
        if self._first is None:
            self._first = piece
        elif self._rest is None:
            self._rest = BytesIO()
            self._rest.write(self._first)
            self._rest.write(piece)
            self._first = b""
        else:
            self._rest.write(piece)


def _stages(content_encoding: str | None) -> list[_Stage]:
    """The codings in the order in which they are undone: the last applied first (RFC 9110 section 8.4)."""
    if not content_encoding:
        return []
    names = [name.strip(" \t").lower() for name in content_encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > MAX_CODINGS:
        raise UpstreamError("PARSE_ERROR", f"Content-Encoding lists more than {MAX_CODINGS} codings")
    for name in names:
        if name not in _CODINGS:
            named = f": {name}" if name in _FOREIGN else ""
            raise UpstreamError("PARSE_ERROR", f"Content-Encoding names a coding that is not known{named}")
    return [_CODINGS[name]() for name in reversed(names)]


def _too_large(state: str, bound: int) -> UpstreamError:
    return UpstreamError("UPSTREAM_TOO_LARGE", f"The body {state} is larger than {bound} bytes")
