"""The parts of HTTP/2 that one connection is made of (backends.http2): a stream, frame borders, the two ways to end early."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset

MAX_STREAM_ID: Final = (1 << 31) - 1
_FRAME_HEAD: Final = 9
_MAX_FRAME: Final = 1 << 14
_GOAWAY: Final = 7

HeaderPairs = Sequence[tuple[bytes, bytes]]


class Unprocessed(Exception):
    """The peer certainly did not act on the request: it may be sent again (RFC 9113 section 8.7)."""


class Broken(Exception):
    """The stream or the connection ended early; what the peer did is not known."""


class FrameSplitter:
    """Cuts received bytes at frame borders and takes the GOAWAY frames out (RFC 9113 sections 4.1 and 6.8)."""

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> tuple[list[bytes], list[int]]:
        """Whole frames to hand on, and the last stream ids that GOAWAYs named. A frame over the limit is handed on uncut."""
        data = self._rest + data
        frames: list[bytes] = []
        last_ids: list[int] = []
        at = 0
        while len(data) - at >= _FRAME_HEAD:
            length = int.from_bytes(data[at : at + 3], "big")
            end = at + _FRAME_HEAD + length if length <= _MAX_FRAME else len(data)
            if len(data) < end:
                break
            if data[at + 3] == _GOAWAY and length >= 8:
                last_ids.append(int.from_bytes(data[at + 9 : at + 13], "big") & MAX_STREAM_ID)
            else:
                frames.append(data[at:end])
            at = end
        self._rest = data[at:]
        return frames, last_ids


class Stream:
    """One exchange: what arrived and was not taken yet, how it ended, and a bell for every change."""

    __slots__ = ("bell", "chunks", "ended", "error", "head", "number", "sent")

    def __init__(self, number: int) -> None:
        self.number = number
        self.head: HeaderPairs | None = None
        self.chunks: deque[tuple[bytes, int]] = deque()
        self.sent = False
        self.ended = False
        self.error: Exception | None = None
        self.bell = asyncio.Event()

    def fail(self, error: Exception) -> None:
        if not self.ended and self.error is None:
            self.error = error
        self.bell.set()

    async def change(self) -> None:
        """Wait for the next event of this stream; raises what ended it early."""
        if self.error is not None:
            raise self.error
        self.bell.clear()
        await self.bell.wait()

    def take(self, event: Event) -> None:
        """Keep what an event of this stream says, and ring."""
        match event:
            case ResponseReceived():
                self.head = event.headers
            case DataReceived():
                self.chunks.append((event.data or b"", event.flow_controlled_length or 0))
            case StreamEnded():
                self.ended = True
            case StreamReset():
                refused = event.error_code == ErrorCodes.REFUSED_STREAM and self.head is None
                self.fail(Unprocessed() if refused else Broken())
        self.bell.set()
