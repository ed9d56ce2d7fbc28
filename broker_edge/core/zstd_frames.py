"""The zstd coding for `content_coding`: frames cut at the borders of their blocks, so that output comes in bounded pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

# RFC 9659: a zstd content coding never needs a window above 8 MB.
_WINDOW = 1 << 23
_MAGIC = b"\x28\xb5\x2f\xfd"


class ZstdFrames:
    """RFC 8878: frames and skippable frames, one behind the other.

    The library's push interface has no bound on its output and 4 bytes can stand for 128 KB. So the stream is cut at the borders
    of its blocks, of which each makes 128 KB at most; what is in them is the library's business. A unit is a header, read whole
    before `_after` decides what comes next, or a run of bytes passed through. `_after` is a plain function: a bound method would
    tie a knot that keeps the library's window alive until the cyclic collector comes.
    """

    def __init__(self) -> None:
        self._library = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._checksum = self._last = self._begun = False
        self._expect(5, ZstdFrames._magic, header=True)

    def push(self, data: bytes | memoryview) -> Iterator[bytes]:
        while data:
            taken, data = data[: self._missing], data[self._missing :]
            self._missing -= len(taken)
            if self._header is not None:
                self._header += taken
            if self._frame is not None:
                yield self._frame.decompress(taken)
            while not self._missing:
                self._after(self)

    def complete(self) -> bool:
        if self._after is not ZstdFrames._magic or not self._begun:
            return False
        if self._header and not _MAGIC.startswith(bytes(self._header[:4])):
            raise zstandard.ZstdError("not a frame")
        return not self._header

    def _expect(self, size: int, after: Callable[[ZstdFrames], None], *, header: bool = False) -> None:
        self._missing = size
        self._after = after
        self._header: bytearray | None = bytearray() if header else None

    def _end_frame(self) -> None:
        if self._frame is not None and not self._frame.eof:
            raise zstandard.ZstdError("not a frame")
        self._frame = None
        self._expect(5, ZstdFrames._magic, header=True)

    def _magic(self) -> None:
        self._begun = True
        head = bytes(self._header or b"")
        if 0x184D2A50 <= int.from_bytes(head[:4], "little") <= 0x184D2A5F:
            self._expect(3, ZstdFrames._skip, header=True)
            self._header = bytearray(head[4:])
            return
        self._checksum = bool(head[4] & 4)
        size = zstandard.frame_header_size(head)
        self._frame = self._library.decompressobj()
        self._frame.decompress(head)
        self._expect(size - len(head), ZstdFrames._expect_block)

    def _skip(self) -> None:
        self._expect(int.from_bytes(self._header or b"", "little"), ZstdFrames._end_frame)

    def _expect_block(self) -> None:
        self._expect(3, ZstdFrames._block, header=True)

    def _block(self) -> None:
        head = int.from_bytes(self._header or b"", "little")
        self._last = bool(head & 1)
        run_length = head >> 1 & 3 == 1
        self._expect(1 if run_length else head >> 3, ZstdFrames._end_block)

    def _end_block(self) -> None:
        if not self._last:
            self._expect_block()
        elif self._checksum:
            self._expect(4, ZstdFrames._end_frame)
        else:
            self._end_frame()
