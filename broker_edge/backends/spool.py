"""The journal's spool: append-only segment files of framed records, one writer each, held by flock.

A frame is its length and CRC-32 (both 32 bits, big endian), then the record. A completed write(2) outlives the process; a torn
tail is cut when a segment is adopted. A segment goes away when all its frames have been committed elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from struct import Struct

from broker_edge.errors import TierBroken

_HEAD = Struct(">II")
_pack_head = _HEAD.pack
_READ = 2**20  # a batch of rows is half of it; what is read beyond a batch is read again for the next one
_MOST_SEGMENTS = 256
_SUFFIX = ".segment"


class _Segment:
    __slots__ = ("fd", "frames", "path", "read_at", "size")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size = 0
        self.frames = 0
        self.read_at = 0

    def remove(self) -> None:
        # Unlink before the lock goes with the descriptor: nobody may adopt a segment that is already shipped.
        self.path.unlink(missing_ok=True)
        os.close(self.fd)


class FileSpool:
    """`ports.Spool` in a directory that other processes may share; sizes in bytes."""

    def __init__(self, directory: Path, *, segment_bytes: int, max_bytes: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._serial = 0
        self._segments: deque[_Segment] = deque()
        self._active: _Segment | None = None
        self._pending: tuple[_Segment, int, int] | None = None
        self.backlog_bytes = 0
        self.backlog_frames = 0
        self.torn_bytes = 0
        self._refused = False
        self.adopt()

    @property
    def full(self) -> bool:
        """True where the last append was refused and nothing has made room since."""
        return self._refused

    def check(self) -> None:
        """Raise TierBroken where the last append was refused."""
        if self._refused:
            raise TierBroken("the journal's spool can't take more")

    def append(self, frame: bytes) -> None:
        self._append(_pack_head(len(frame), zlib.crc32(frame)) + frame, 1)

    def append_all(self, frames: Sequence[bytes]) -> None:
        self._append(b"".join([_pack_head(len(frame), zlib.crc32(frame)) + frame for frame in frames]), len(frames))

    def _append(self, data: bytes, count: int) -> None:
        size = len(data)
        self._refused = True
        if self.backlog_bytes + size > self._max_bytes:
            raise TierBroken("the journal's spool is full")
        segment = self._active
        if segment is None or segment.size >= self._segment_bytes:
            segment = self._rolled()
        _write_whole(segment, data)
        self._refused = False
        segment.frames += count
        self.backlog_bytes += size
        self.backlog_frames += count

    def read(self, most: int) -> Sequence[bytes]:
        """The oldest frames, at most `most`, of one segment; the same ones again until `commit`."""
        while self._segments:
            segment = self._segments[0]
            frames, end = _frames(segment.fd, segment.read_at, segment.size, most)
            if frames:
                self._pending = (segment, end, len(frames))
                return frames
            if segment is self._active:
                break
            self._segments.popleft().remove()
        self._pending = None
        return ()

    def commit(self) -> None:
        if self._pending is None:
            return
        segment, end, count = self._pending
        self._pending = None
        # Nobody sends requests to an edge that isn't ready: the next append can't be what shows that there is room again.
        self._refused = False
        self.backlog_bytes -= end - segment.read_at
        self.backlog_frames -= count
        segment.read_at = end
        if end == segment.size and segment is not self._active:
            self._segments.remove(segment)
            segment.remove()

    def adopt(self) -> int:
        """Take over the segments of processes that died; answers how many frames they held."""
        before = self.backlog_frames
        ours = {segment.path for segment in self._segments}
        adopted: list[_Segment] = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            # Descriptors must be left for sockets, and the bound holds for what is adopted too: the rest is taken later.
            if len(self._segments) + len(adopted) >= _MOST_SEGMENTS or self.backlog_bytes >= self._max_bytes:
                break
            if path not in ours and (segment := self._take(path)) is not None:
                adopted.append(segment)
        self._segments.extendleft(reversed(adopted))
        return self.backlog_frames - before

    def close(self) -> None:
        """Give the segments up: those that are shipped are removed, the others wait for the next process."""
        for segment in self._segments:
            if segment.read_at == segment.size:
                segment.remove()
            else:
                os.close(segment.fd)
        self._segments.clear()
        self._active = None

    def _take(self, path: Path) -> _Segment | None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # gone meanwhile; or too many files are open, and it waits for the next look
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink == 0:  # its owner shipped and unlinked it between our open and our lock
            os.close(fd)
            return None
        return self._measured(_Segment(path, fd))

    def _measured(self, segment: _Segment) -> _Segment:
        length, position = os.fstat(segment.fd).st_size, 0
        while True:
            frames, position = _frames(segment.fd, position, length, 10_000)
            if not frames:
                break
            segment.frames += len(frames)
        segment.size = position
        self.torn_bytes += length - position
        os.ftruncate(segment.fd, position)
        self.backlog_bytes += position
        self.backlog_frames += segment.frames
        return segment

    def _rolled(self) -> _Segment:
        self._active = self._created()
        self._segments.append(self._active)
        return self._active

    def _created(self) -> _Segment:
        """A new segment, locked before it has the name under which others would adopt it."""
        self._serial += 1
        path = self._directory / f"{time.time_ns():020d}-{os.getpid()}-{self._serial}{_SUFFIX}"
        hidden, fd = path.with_suffix(".new"), -1
        try:
            fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(path)
        except OSError:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                hidden.unlink(missing_ok=True)
            raise TierBroken("the journal's spool can't be written") from None
        return _Segment(path, fd)


def _write_whole(segment: _Segment, data: bytes) -> None:
    """All of `data` at the segment's end, or nothing."""
    try:
        written = os.pwrite(segment.fd, data, segment.size)
        while written < len(data):
            written += os.pwrite(segment.fd, data[written:], segment.size + written)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(segment.fd, segment.size)
        raise TierBroken("the journal's spool can't be written") from None
    segment.size += len(data)


def _frames(fd: int, start: int, end: int, most: int) -> tuple[list[bytes], int]:
    """Whole, sound frames from `start`, and where they end."""
    data = os.pread(fd, min(_READ, end - start), start)
    frames: list[bytes] = []
    position = 0
    while len(frames) < most and position + _HEAD.size <= len(data):
        length, check = _HEAD.unpack_from(data, position)
        stop = position + _HEAD.size + length
        if stop > len(data):
            if frames or start + stop > end:
                break
            data = os.pread(fd, stop, start)  # one frame larger than a read
            if len(data) < stop:
                break
        frame = data[position + _HEAD.size : stop]
        # Zeros, as a file system leaves them behind a crash, would pass for empty frames: their sum is right.
        if not frame or zlib.crc32(frame) != check:
            break
        frames.append(frame)
        position = stop
    return frames, start + position
