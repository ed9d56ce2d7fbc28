"""One connection to Redis that many share: packed commands go out together, replies come back in order (RESP2).

Below `redis_lane.Lane`, which dials and decides what is sent once more. Commands of one loop tick leave in one write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from broker_edge.errors import TierBroken

Buffer = bytes | memoryview

GONE = "Redis can't be reached"
LARGE = 64 * 1024  # bytes from which a value is received where it stays, and handed out as a view; no less than is read at once
_LARGEST = 512 * 2**20  # Redis's own limit
_READ = LARGE
_HEAD = 16  # bytes that hold the length of any value
_JOINED = 16 * 1024  # bytes up to which one string is cheaper to send than its parts
_MOST_COMMANDS = 16_384
_MOST_BYTES = 64 * 2**20
_GRACE = 0.01  # seconds: a stall of this process is not Redis's silence, what has arrived by then is read first
_DOLLAR = ord("$")
_NOTHING = object()


def packed(*words: str | int | bytes) -> bytes:
    """A command as Redis reads it."""
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub has a tuple of one
    return command


class ConnectionLost(Exception):
    """The connection broke before the replies came: whether Redis did what it was told is not known."""


class _Call:
    __slots__ = ("count", "future", "hung", "replies", "size")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, size: int, hung: float) -> None:
        self.future = future
        self.count = count
        self.size = size
        self.hung = hung
        self.replies: list[Any] = []


class Wire(asyncio.BufferedProtocol):
    """Made by `loop.create_connection`. A caller that is cancelled gives its replies up, never their order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.usable = False
        self.lost = self._loop.create_future()
        self._transport: asyncio.Transport
        self._paused = False
        self._out: list[Buffer] = []
        self._calls: deque[_Call] = deque()
        self._commands = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._between = True  # hiredis holds no part of a reply
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._buffer = bytearray(_READ)
        self._view = memoryview(self._buffer)  # asyncio's TLS slices what it is given, which copies all but views
        self._large: bytearray | None = None
        self._filled = 0

    def send(self, parts: Sequence[Buffer], count: int, deadline: float, hung: float | None = None) -> asyncio.Future[list[Any]]:
        """The replies to `count` packed commands, which lie in `parts` one after the other; errors are among them.

        The future raises TierBroken where they don't come by `deadline` (loop time), ConnectionLost where the connection ends
        before. `hung` is when their absence says that Redis hangs, for a caller who has less time left; it must not be before
        that of an earlier call. Raises TierBroken at once where more waits already than Redis will ever catch up with.
        """
        if not self.usable:
            raise ConnectionLost
        size = sum(map(len, parts))
        if self._commands + count > _MOST_COMMANDS or (self._calls and self._bytes + size > _MOST_BYTES):
            raise TierBroken("Redis is behind")
        if hung is None:
            hung = deadline
        call = _Call(self._loop.create_future(), count, size, hung)
        self._calls.append(call)
        self._commands += count
        self._bytes += size
        if not self._out:
            self._loop.call_soon(self._flush)
            if self._timer is None:
                self._timer = self._loop.call_at(hung, self._look_at_the_clock)
        self._out += parts
        if hung - deadline > _GRACE:  # no timer each for the many that come at once
            self._loop.call_at(deadline, self._overdue, call)
        return call.future

    def abort(self, *, hung: bool = False) -> None:
        """End the connection; who waits gets ConnectionLost, or TierBroken from one that is `hung`."""
        self.usable = False
        self._transport.abort()
        self._fail(hung=hung)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._fail(hung=False)
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view if self._large is None else memoryview(self._large)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._large is not None:
                self._filled += nbytes
                if self._filled == len(self._large):
                    value, self._large = self._large, None
                    if not value.endswith(b"\r\n"):
                        raise hiredis.ProtocolError("a value of another length")
                    self._answer(memoryview(value)[:-2])
            else:
                self._take(nbytes)
        except (hiredis.HiredisError, ValueError):  # this is no Redis, or somebody else's answers
            self.abort()

    # Replies.

    def _take(self, end: int) -> None:
        # Past hiredis, where no reply has begun before: it would hold a second copy, and a third while it grows.
        if self._between and end >= _HEAD and self._buffer[0] == _DOLLAR and self._begin_large(end):
            return
        reader = self._reader
        reader.feed(self._buffer, 0, end)  # type: ignore[arg-type]  # takes any buffer
        self._between = False
        while (reply := reader.gets()) is not _NOTHING:
            self._answer(reply)
            # Only right after a reply: in the middle of an array hiredis has no data left either, once it took what there was.
            if not reader.has_data():
                self._between = True
                return

    def _begin_large(self, end: int) -> bool:
        """Whether the buffer holds the beginning of one large value: then the rest of it is received where it stays."""
        head = self._buffer.find(b"\r\n", 1, _HEAD)
        size = int(self._buffer[1:head]) if head > 0 else 0
        if size < LARGE:
            return False
        if size > _LARGEST:
            raise hiredis.ProtocolError("longer than any value")
        self._large = bytearray(size + 2)
        self._filled = end - head - 2
        self._large[: self._filled] = self._view[head + 2 : end]
        return True

    def _answer(self, reply: Any) -> None:
        if not self._calls:
            raise hiredis.ProtocolError("an answer to nothing")
        call = self._calls[0]
        call.replies.append(reply)
        if len(call.replies) == call.count:
            self._settle(call)

    def _settle(self, call: _Call) -> None:
        self._calls.popleft()
        self._commands -= call.count
        self._bytes -= call.size
        if not call.future.done():
            call.future.set_result(call.replies)

    # Commands and time.

    def _flush(self) -> None:
        if not self._out or self._paused or not self.usable:
            return
        parts, self._out = self._out, []
        if len(parts) == 1:
            self._transport.write(parts[0])
        elif sum(map(len, parts)) <= _JOINED:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def _look_at_the_clock(self, late: bool = False) -> None:
        """One timer, for the call that waits longest, set again for whichever that is by then."""
        self._timer = None
        if not self._calls:
            return
        now, hung = self._loop.time(), self._calls[0].hung
        if hung > now:
            self._timer = self._loop.call_at(hung, self._look_at_the_clock)
        elif not late:
            self._timer = self._loop.call_at(now + _GRACE, self._look_at_the_clock, True)
        else:
            self.abort(hung=True)

    def _overdue(self, call: _Call, late: bool = False) -> None:
        """Give up one call that had less time than Redis has; its replies still come."""
        if call.future.done():
            return
        if late:
            call.future.set_exception(TierBroken(GONE))
        else:
            self._loop.call_at(self._loop.time() + _GRACE, self._overdue, call, True)

    def _fail(self, *, hung: bool) -> None:
        calls, self._calls = self._calls, deque()
        self._out, self._commands, self._bytes = [], 0, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for call in calls:
            if not call.future.done():
                call.future.set_exception(TierBroken(GONE) if hung else ConnectionLost())
