"""One flight: who waits for it, until when, and what they hear. Who boards and what the work is, `flights` decides."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from broker_edge.core.exchange import Fetched
from broker_edge.core.trail import FlightTrail, Trail
from broker_edge.errors import EdgeError, UpstreamError
from broker_edge.flow.timers import Alarm, TimingWheel

Outcome = Fetched | EdgeError


class Flight:
    """The shared work of one key. Passengers wait on futures of their own: one that leaves takes nobody along.

    `token` is set while this flight may hold the fleet's lease, `renewal` where that has to be prolonged. `bought` is set once an
    answer is paid for: a deadline that strikes from then on ends the waiting, and the work goes on.
    """

    __slots__ = (
        "_alarm",
        "_leader",
        "_seats",
        "_timers",
        "begun",
        "bought",
        "deadline",
        "expired",
        "identity",
        "key",
        "renewal",
        "task",
        "terms",
        "token",
        "trail",
    )

    def __init__(
        self,
        key: str,
        identity: Mapping[str, Any],
        terms: object,
        trail: FlightTrail,
        deadline: float,
        timers: TimingWheel,
    ) -> None:
        self.key = key
        self.identity = identity
        self.terms = terms
        self.trail = trail
        self.deadline = deadline
        self.begun = asyncio.get_running_loop().time()
        self.bought = False
        self.expired = False
        self.token: str | None = None
        self.renewal: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None]
        self._seats: dict[asyncio.Future[Outcome], None] = {}
        self._leader: tuple[asyncio.Future[Outcome], Trail] | None = None
        self._timers = timers
        self._alarm: Alarm | None = None

    @property
    def tier_key(self) -> str:
        return self.key.partition(":")[0]

    def admit(self, deadline: float) -> bool:
        """Take somebody on board who waits until `deadline`; a flight that is giving up takes nobody.

        It goes on for as long as its most patient passenger's time-out, counted from its own begin: latecomers with the same
        patience must not keep a call alive for ever that will never be answered.
        """
        if self.expired:
            return False
        patience = deadline - asyncio.get_running_loop().time()
        if self.begun + patience > self.deadline:
            self.deadline = self.begun + patience
            if self._alarm is not None:
                self.take_off()
        return True

    def remaining(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    def take_off(self) -> None:
        """From here on the deadline holds: set by the flight's own task, which can be cancelled only once it runs."""
        self.touch_down()
        self._alarm = self._timers.at(self.deadline, self._expire)

    def touch_down(self) -> None:
        """From here on it no longer does."""
        if self._alarm is not None:
            self._timers.off(self._alarm)
            self._alarm = None

    async def ride(self, deadline: float, leader: Trail | None = None) -> Outcome:
        """What the flight brings, or TIMEOUT at `deadline`. `leader`: the passenger's trail, if the flight is for its sake."""
        seat: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._seats[seat] = None
        if leader is not None:
            self._leader = seat, leader
        alarm = self._timers.at(deadline, partial(_give_up, seat))
        try:
            return await seat
        finally:
            self._timers.off(alarm)
            del self._seats[seat]

    def leader(self) -> Trail | None:
        """The trail of the leader who still waits, and so will write a row of what it hears; None where nobody leads any more.

        Whoever gives up, or is cancelled, has left the seat in that same moment, be it before the task that sat there goes on.
        """
        if self._leader is None or self._leader[0].done():
            return None
        return self._leader[1]

    def land(self, outcome: Outcome) -> None:
        for seat in self._seats:
            if not seat.done():
                seat.set_result(outcome)

    def crash(self) -> None:
        """Cancelled with the process: so is whoever waits."""
        for seat in self._seats:
            seat.cancel()

    def _expire(self) -> None:
        if not self.bought:
            self.expired = True
            self.task.cancel()


def timed_out() -> UpstreamError:
    return UpstreamError("TIMEOUT", "the data source did not answer within source.timeout")


def _give_up(seat: asyncio.Future[Outcome]) -> None:
    if not seat.done():
        seat.set_result(timed_out())
