"""Journal: one row for every answer, none lost, never in the request's way.

A row is framed into the local spool before its reply starts and shipped to the database in batches behind it. Shipping is at
least once, the row's id makes it exactly once. What the database refuses for good is set aside in a file, counted and named
in the log, so that one bad row holds up nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import Frame, ObjectFrame, RequestRow, row_of
from broker_edge.core.trail import Trail
from broker_edge.errors import TierBroken
from broker_edge.ports import DurableTier, Refused, Spool

_LINGER = 0.05  # seconds between batches: rows wait for nobody, and larger batches cost the database less
_MOST = 2000


class Journal:
    """Counts rows in `appended`, `shipped`, frames in `rejected`; `failing`: the database did not take the last batch."""

    def __init__(self, spool: Spool, durable: DurableTier, rejected: Spool, new_id: Callable[[], UUID]) -> None:
        self._spool = spool
        self._durable = durable
        self._rejected_spool = rejected
        self._new_id = new_id
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)
        self._wake = asyncio.Event()
        self._shipping = asyncio.Lock()
        self.appended = 0
        self.shipped = 0
        self.rejected = 0
        self.failing = False
        self._waiting_since: float | None = None

    def record(self, trail: Trail) -> None:
        """The row of a closed trail, safe from the death of this process when it returns; raises TierBroken."""
        self._spool.append(self._encoder.encode(row_of(trail, self._new_id())))
        self.appended += 1
        self._waits(time.monotonic())
        self._wake.set()

    def keep(self, item: DataObject) -> None:
        """A data object that the database could not take; raises TierBroken."""
        self._spool.append(self._encoder.encode(ObjectFrame.of(item)))
        self._waits(time.monotonic())
        self._wake.set()

    def wake(self) -> None:
        """There is something to ship that this process did not write."""
        self._wake.set()

    def waiting_for(self) -> float:
        """Seconds for which the spool has held something that the database does not have."""
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    def _waits(self, now: float) -> None:
        if self._waiting_since is None:
            self._waiting_since = now

    async def ship_forever(self) -> None:
        """Ship whenever there is something; after a failure wait longer each time, five seconds at most."""
        pause = _LINGER
        self._wake.set()
        while True:
            await self._wake.wait()
            try:
                idle = not await self.ship_batch()
                pause = _LINGER
            except TierBroken:
                idle, pause = False, min(5.0, pause * 2)
            if idle:
                self._wake.clear()
            await asyncio.sleep(pause)

    async def ship_batch(self) -> int:
        """One batch into the database; answers how many frames it held. Raises TierBroken, and nothing is lost then."""
        async with self._shipping:  # a second shipper would commit what the first has read and not yet shipped
            started = time.monotonic()
            frames = self._spool.read(_MOST)
            if not frames:
                self._waiting_since = None
                return 0
            self._waits(started)
            try:
                await self._ship_frames(frames)
            except TierBroken:
                self.failing = True
                raise
            self.failing = False
            self._waiting_since = started
            self._spool.commit()
            return len(frames)

    async def flush(self, timeout: float) -> bool:
        """Ship all that is there, for at most `timeout` seconds; the rest stays in the spool for the next process."""
        try:
            async with asyncio.timeout(timeout):
                while await self.ship_batch():
                    pass
        except (TierBroken, TimeoutError):
            return False
        return True

    async def _ship_frames(self, frames: Sequence[bytes]) -> None:
        known, unknown = self._decoded(frames)
        refused = await self._ship(known)
        # Set aside when the rest is safe: what fails half-way is tried again from the start.
        for frame in (*unknown, *map(self._encoder.encode, refused)):
            self._rejected_spool.append(frame)
        self.rejected += len(unknown) + len(refused)
        self.shipped += _rows(known) - _rows(refused)

    def _decoded(self, frames: Sequence[bytes]) -> tuple[list[Frame], list[bytes]]:
        """The frames, and those that another version wrote and this one can't read."""
        known: list[Frame] = []
        unknown: list[bytes] = []
        for frame in frames:
            try:
                known.append(self._decoder.decode(frame))
            except msgspec.DecodeError:
                unknown.append(frame)
        return known, unknown

    async def _ship(self, frames: Sequence[Frame]) -> list[Frame]:
        """Answers what the database refuses: halved until each refused frame stands alone."""
        rows = [frame for frame in frames if isinstance(frame, RequestRow)]
        objects = [frame.restore() for frame in frames if isinstance(frame, ObjectFrame)]
        try:
            await self._durable.append(rows, objects)
        except Refused:
            if len(frames) == 1:
                return list(frames)
            middle = len(frames) // 2
            return await self._ship(frames[:middle]) + await self._ship(frames[middle:])
        return []


def _rows(frames: Sequence[Frame]) -> int:
    return sum(isinstance(frame, RequestRow) for frame in frames)
