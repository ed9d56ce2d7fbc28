"""HTTP/2 for the httpx engine (RFC 9113), over h2 and one `Link`: many exchanges, each with its own stream.

httpcore's own HTTP/2 fails every exchange under way when the peer says GOAWAY, as does h2's state machine. A peer that says it
gracefully still answers the streams up to the one it names, and has certainly not begun those above: here the former go on and
the latter are `Unprocessed`, to be sent again elsewhere. For that, GOAWAY frames are read here and never shown to h2.
Events are pushed by the link as bytes arrive, so no task reads, and a connection that ended while idle is known as ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error, ProtocolError
from h2.settings import SettingCodes, Settings

from broker_edge.backends.http2_stream import MAX_STREAM_ID, Broken, FrameSplitter, HeaderPairs, Stream, Unprocessed
from broker_edge.backends.link import Link
from broker_edge.backends.wire import MAX_HEAD_BYTES

_STREAM_WINDOW: Final = 1 << 20  # what one unread answer may hold in memory
_CONNECTION_WINDOW: Final = 1 << 24
_MAX_STREAMS: Final = 100

# Headers are checked before they come here (backends.wire): h2 would find a bad one with half of it in its compression state.
_CONFIGURATION: Final = H2Configuration(
    client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
)


class Http2Connection:
    """The client's side of one connection. Once `usable` is false, exchanges under way end by themselves, and it with them."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._h2 = H2Connection(_CONFIGURATION)
        self._splitter = FrameSplitter()
        self._streams: dict[int, Stream] = {}
        self._max_streams = _MAX_STREAMS
        self._going_away = False
        self._settled = asyncio.Event()
        self.idle_since: float | None = None
        self._greet()
        link.push_to(self._feed, self._lost)

    @property
    def usable(self) -> bool:
        return not (self._going_away or self.link.closed or self._h2.highest_outbound_stream_id >= MAX_STREAM_ID - 2)

    @property
    def has_room(self) -> bool:
        return len(self._streams) < self._max_streams

    async def settled(self) -> None:
        """Wait for the peer's SETTINGS, its first frame (RFC 9113 section 3.4): more streams than it takes are not begun."""
        await self._settled.wait()

    async def send(self, headers: HeaderPairs, body: bytes | None) -> Stream:
        """Send a request and wait for the head of its answer. The stream must be given to `release` by whoever gets it.

        Raises Unprocessed or Broken, the stream released.
        """
        stream = self._begin(headers, end=not body)
        try:
            if body:
                await self._send_body(stream, body)
            while stream.head is None:
                await stream.change()
        except BaseException:
            self.release(stream)
            raise
        return stream

    async def chunks(self, stream: Stream) -> AsyncIterator[bytes]:
        """The body of the answer; flow control follows what is taken. Raises Broken where it ends early."""
        while True:
            while stream.chunks:
                data, credit = stream.chunks.popleft()
                self._acknowledge(stream, credit)
                yield data
            if stream.ended:
                return
            await stream.change()

    def release(self, stream: Stream) -> None:
        """Forget a stream: reset it where a side has not ended it; give back the connection's window for what was not taken."""
        if self._streams.pop(stream.number, None) is None:
            return
        for _, credit in stream.chunks:
            self._acknowledge(stream, credit)
        if stream.error is None and not (stream.ended and stream.sent):
            self._quietly(self._h2.reset_stream, stream.number, ErrorCodes.CANCEL)
        self._flush()
        if not self._streams:
            self.idle_since = asyncio.get_running_loop().time()
            if not self.usable:
                self.link.abort()

    def retire(self) -> None:
        """Take no further requests; end at once where none is under way, else with the last one."""
        self._going_away = True
        if not self._streams:
            self.link.abort()

    def _greet(self) -> None:
        self._h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        # Known to few servers and of no use to a client, yet some refuse a connection that names it.
        del self._h2.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW)
        self._flush()

    def _begin(self, headers: HeaderPairs, *, end: bool) -> Stream:
        """Open a stream and put its head on the wire, without a pause in which the connection could end."""
        if not self.usable:
            raise Unprocessed
        number = self._h2.get_next_available_stream_id()
        try:
            self._h2.send_headers(number, headers, end_stream=end)
        except H2Error:
            raise Unprocessed from None
        stream = self._streams[number] = Stream(number)
        stream.sent = end
        self.idle_since = None
        self._flush()
        return stream

    async def _send_body(self, stream: Stream, body: bytes) -> None:
        """Within the peer's flow control; given up, not failed, where the peer answers before it took all."""
        rest = memoryview(body)
        while rest and not stream.ended:
            if stream.error is not None:
                raise stream.error
            room = min(self._h2.local_flow_control_window(stream.number), self._h2.max_outbound_frame_size, len(rest))
            if room <= 0:
                await stream.change()
                continue
            piece, rest = rest[:room], rest[room:]
            self._h2.send_data(stream.number, piece.tobytes(), end_stream=not rest)
            stream.sent = not rest
            await self._flush_and_wait()

    def _feed(self, data: bytes) -> None:
        """Frame by frame, as h2 loses the events before the one that it can't accept."""
        frames, last_ids = self._splitter.split(data)
        try:
            for frame in frames:
                for event in self._h2.receive_data(frame):
                    self._take(event)
        except ProtocolError:
            self._flush()
            self.link.abort()
            return
        for last_id in last_ids:
            self._go_away(last_id)
        self._flush()

    def _take(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self._settle(event)
            case WindowUpdated(stream_id=0):
                self._ring_all()
            case ResponseReceived() | DataReceived() | StreamEnded() | StreamReset() | WindowUpdated():
                stream = self._streams.get(event.stream_id or 0)
                if stream is not None:
                    stream.take(event)
                elif isinstance(event, DataReceived):
                    self._quietly(self._h2.acknowledge_received_data, event.flow_controlled_length, event.stream_id)

    def _settle(self, event: RemoteSettingsChanged) -> None:
        limit = event.changed_settings.get(SettingCodes.MAX_CONCURRENT_STREAMS)
        if limit is not None:
            self._max_streams = min(limit.new_value, _MAX_STREAMS)
        self._settled.set()
        self._ring_all()  # the initial window may have grown

    def _ring_all(self) -> None:
        for stream in self._streams.values():
            stream.bell.set()

    def _go_away(self, last_id: int) -> None:
        """Streams above the last one named were not begun; a second GOAWAY may only name a lower one."""
        for stream in self._streams.values():
            if stream.number > last_id and stream.head is None:
                stream.fail(Unprocessed())
        self.retire()

    def _lost(self) -> None:
        self._settled.set()
        for stream in self._streams.values():
            stream.fail(Broken())

    def _acknowledge(self, stream: Stream, credit: int) -> None:
        self._quietly(self._h2.acknowledge_received_data, credit, stream.number)
        self._flush()

    def _quietly(self, call: Any, *arguments: Any) -> None:
        """A courtesy to the peer, not owed on a stream or a connection that is closed."""
        try:
            call(*arguments)
        except (H2Error, KeyError):
            return

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self.link.closed:
            self.link.send(data)

    async def _flush_and_wait(self) -> None:
        self._flush()
        await self.link.drained()
