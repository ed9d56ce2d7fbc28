"""Journal: one row for every answer, none lost, never in the request's way.

A row is framed into the local spool before its reply starts, by one write(2), and shipped to the database in batches behind
it. Shipping is at least once, the row's id makes it exactly once. What the database refuses for good is set aside in a file,
counted and named in the log, so that one bad row holds up nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from broker_edge.core.exchange import DataObject
from broker_edge.core.journal_row import (
    Frame,
    ObjectFrame,
    PackedRows,
    RequestRow,
    frame_of,
    is_packed_row,
    pack_row,
    refill_frame,
    unpack_row,
    upgraded,
)
from broker_edge.core.trail import FlightTrail, Trail
from broker_edge.errors import TierBroken
from broker_edge.ports import DurableTier, Refused, Spool

# Seconds between batches: rows wait for nobody, and larger batches cost less. Full ones follow each other without a pause.
_LINGER = 0.1
_MOST = 2000  # frames of a batch: to read, sort and join them holds the event loop for one to two milliseconds

Item = bytes | ObjectFrame  # a packed row, or an object


class Journal:
    """Counts rows in `appended`, `shipped`, frames in `rejected`; `failing`: the database did not take the last batch.

    `new_id` draws the rows' ids, as UUIDs or as their sixteen bytes, which is cheaper. `within`: seconds that the database has
    for one transaction.
    """

    def __init__(
        self, spool: Spool, durable: DurableTier, rejected: Spool, new_id: Callable[[], UUID | bytes], *, within: float = 30.0
    ) -> None:
        self._spool = spool
        self._durable = durable
        self._rejected_spool = rejected
        self._new_id = new_id
        self._within = within
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
        self.record_all((trail,))

    def record_all(self, trails: Sequence[Trail]) -> None:
        """The rows of closed trails in one write; where it fails none is written."""
        self._append([frame_of(trail, self._row_id()) for trail in trails])

    def record_refill(self, flight: FlightTrail) -> None:
        """The row of a flight whose charge no request's row carries; raises TierBroken."""
        if flight.opener is not None:
            self._append([refill_frame(flight, flight.opener, self._row_id())])

    def _append(self, frames: Sequence[bytes]) -> None:
        self._spool.append_all(frames)
        self.appended += len(frames)
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        self._wake.set()

    def _row_id(self) -> bytes:
        row_id = self._new_id()
        return row_id if isinstance(row_id, bytes) else row_id.bytes

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
                shipped = await self.ship_batch()
                pause = _LINGER
            except TierBroken:
                shipped, pause = -1, min(5.0, pause * 2)
            if shipped == 0:
                self._wake.clear()
            await asyncio.sleep(0 if shipped == _MOST else pause)

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
        known, unknown = self._sorted(frames)
        refused = await self._ship(known)
        # Set aside when the rest is safe: what fails half-way is tried again from the start.
        for frame in (*unknown, *map(self._readable, refused)):
            self._rejected_spool.append(frame)
        self.rejected += len(unknown) + len(refused)
        self.shipped += _rows(known) - _rows(refused)

    def _sorted(self, frames: Sequence[bytes]) -> tuple[list[Item], list[bytes]]:
        """The frames, and those that another version wrote and this one can't read."""
        known: list[Item] = []
        unknown: list[bytes] = []
        for frame in frames:
            try:
                known.append(frame if is_packed_row(frame) else upgraded(frame) or self._decoded(frame))
            except (ValueError, TypeError):
                unknown.append(frame)
        return known, unknown

    def _decoded(self, frame: bytes) -> Item:
        item = self._decoder.decode(frame)
        return pack_row(item) if isinstance(item, RequestRow) else item

    def _readable(self, item: Item) -> bytes:
        """The frame of what is set aside: MessagePack, which people have tools for."""
        if not isinstance(item, bytes):
            return self._encoder.encode(item)
        try:
            return self._encoder.encode(unpack_row(item))
        except ValueError:  # it looks like a row and is none
            return item

    async def _ship(self, items: Sequence[Item]) -> list[Item]:
        """Answers what the database refuses: halved until each refused frame stands alone."""
        rows = PackedRows([item for item in items if isinstance(item, bytes)])
        objects = [item.restore() for item in items if not isinstance(item, bytes)]
        try:
            async with asyncio.timeout(self._within):  # a connection that went silent would hold up all that follows
                await self._durable.append(rows, objects)
        except TimeoutError:
            raise TierBroken("the database does not answer") from None
        except Refused:
            if len(items) == 1:
                return list(items)
            middle = len(items) // 2
            return await self._ship(items[:middle]) + await self._ship(items[middle:])
        return []


def _rows(items: Sequence[Item]) -> int:
    return sum(isinstance(item, bytes) for item in items)
