"""Who pays for a call: reserved before each attempt that may be sent, taken back where certainly nothing was.

The day's account of a source with a budget lies in the database, shared by the fleet, and is the only judge. It fails closed:
where it can't be asked nothing is spent, and a call of which nobody knows whether it was made counts as made. A source that has
a price and no budget needs no account: its calls are counted on the record alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Final, NamedTuple
from uuid import UUID

from broker_edge.core.breaker import Breaker, State
from broker_edge.core.money import Budget
from broker_edge.core.plan import Plan
from broker_edge.core.trail import Record
from broker_edge.errors import NOT_SENT, CallerError, EdgeError, TargetDenied, TierBroken, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.ports import Budgets

_DAY: Final = 86_400
_REMEMBERED: Final = 1.0  # seconds
_MOST: Final = 1024  # exhausted days that are remembered


class Call(NamedTuple):
    """One call as an account knows it."""

    data_source_id: UUID
    project: str | None
    day: date
    micros: int
    budget: Budget


# What whoever waits for a call hears: granted, exhausted, or None where nobody can say. In a line are they by what they ask for.
Seat = asyncio.Future[bool | None]
Line = dict[Call, list[Seat]]


class Purses:
    """Reserves calls; `within` in seconds for one word of the database."""

    def __init__(
        self,
        budgets: Budgets,
        background: Background,
        *,
        within: float,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budgets = budgets
        self._background = background
        self._within = within
        self._now = now
        self._monotonic = monotonic
        # A refusal holds good for a while without asking again: what is spent in a day only ever shrinks by calls that were not
        # made after all, so remembering is wrong for a second at most, and then by refusing. Another limit is another entry.
        self._exhausted: dict[Call, float] = {}
        # One statement at a time for each source: they would queue for the same row in any case, each with a connection in its
        # hand. Whoever comes while it runs is asked for by the next one, all of them at once.
        self._lines: dict[tuple[UUID, str | None], Line] = {}
        self._breaker = Breaker()

    def of(self, plan: Plan, record: Record) -> Purse | None:
        """What pays for the calls of one fetch and charges `record`; None where nobody asked what they cost."""
        source = plan.source
        return None if source.price is None and source.budget is None else Purse(self, plan, record)

    def today(self) -> date:
        return datetime.fromtimestamp(self._now(), UTC).date()

    async def reserve(self, call: Call) -> None:
        """Count one call; raises EdgeError BUDGET_EXHAUSTED, or STORAGE_UNAVAILABLE where nobody can say."""
        self._refuse_known(call)
        seat: Seat = asyncio.get_running_loop().create_future()
        self._queue(call, seat)
        try:
            granted = await seat
        except asyncio.CancelledError:
            if not seat.cancelled() and seat.result():  # granted in the moment in which its caller left
                self.release(call)
            raise
        if granted is None:
            raise EdgeError("STORAGE_UNAVAILABLE", "the budget of the data source can't be asked for", retry_after=1.0)
        if not granted:
            self._refuse()

    def release(self, call: Call, calls: int = 1) -> asyncio.Task[None]:
        """Take back calls that were not made, whoever goes on waiting."""
        return self._background.spawn("release", self._taken_back(call, calls))

    def _refuse_known(self, call: Call) -> None:
        until = self._exhausted.get(call)
        if until is None:
            return
        if self._monotonic() < until:
            self._refuse()
        del self._exhausted[call]

    def _refuse(self) -> None:
        left = _DAY - self._now() % _DAY
        raise EdgeError("BUDGET_EXHAUSTED", "what the data source may spend in a day (UTC) is spent", retry_after=left)

    def _queue(self, call: Call, seat: Seat) -> None:
        name = (call.data_source_id, call.project)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = {call: [seat]}
            self._background.spawn("reserve", self._serve(name, line))
        elif self._breaker.state is State.CLOSED:
            line.setdefault(call, []).append(seat)
        else:  # what is under way only finds out whether the database is back
            seat.set_result(None)

    async def _serve(self, name: tuple[UUID, str | None], line: Line) -> None:
        """In a task of its own: the database may say yes to callers who have left, and then their calls are taken back."""
        asked: list[Seat] = []
        try:
            while line:
                call = next(iter(line))
                asked = [seat for seat in line.pop(call) if not seat.done()]
                if asked:
                    self._deal(line, call, asked, await self._ask(call, len(asked)))
        finally:
            del self._lines[name]
            _give_up(line, asked)

    async def _ask(self, call: Call, calls: int) -> int | None:
        """How many are granted; None where nobody can say."""
        if not self._breaker.allows(self._monotonic()):
            return None
        limit = call.budget
        try:
            async with asyncio.timeout(self._within):
                granted = await self._budgets.reserve(*call[:4], calls, most_calls=limit.calls, most_micros=limit.micros)
        except (TierBroken, TimeoutError):  # they may have been counted, and the answer lost: then less calls are made, not more
            self._breaker.record(ok=False, now=self._monotonic())
            return None
        self._breaker.record(ok=True, now=self._monotonic())
        return granted

    def _deal(self, line: Line, call: Call, asked: list[Seat], granted: int | None) -> None:
        """Who came meanwhile gets what is left by those who went, and hears what there is to hear without asking once more."""
        if granted is None:
            _give_up(line, asked)
            return
        waiting = [seat for seat in (*asked, *line.pop(call, ())) if not seat.done()]
        _tell(waiting[:granted], True)
        if granted < len(asked):
            self._remember(call)
            _tell(waiting[granted:], False)
        elif len(waiting) > granted:
            line[call] = waiting[granted:]
        if granted > len(waiting):
            self.release(call, granted - len(waiting))

    def _remember(self, call: Call) -> None:
        if len(self._exhausted) >= _MOST:
            self._exhausted.clear()
        self._exhausted[call] = self._monotonic() + _REMEMBERED

    async def _taken_back(self, call: Call, calls: int) -> None:
        await self._budgets.release(*call[:4], calls)
        self._exhausted.clear()


def _give_up(line: Line, asked: list[Seat]) -> None:
    """Nobody can say, and nobody in line need find that out for himself, one after the other."""
    _tell(asked, None)
    for seats in line.values():
        _tell(seats, None)
    line.clear()


def _tell(seats: Iterable[Seat], word: bool | None) -> None:
    for seat in seats:
        if not seat.done():
            seat.set_result(word)


class Purse:
    """Pays for the calls of one fetch, attempt by attempt."""

    def __init__(self, purses: Purses, plan: Plan, record: Record) -> None:
        source = plan.source
        self._purses = purses
        self._data_source_id, self._project = source.data_source_id, plan.project
        self._micros = source.price.micros if source.price is not None else 0
        self._budget = source.budget
        self._record = record
        self._sent = False
        self._returning: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def paying(self) -> AsyncIterator[None]:
        """One attempt: paid for before it begins, given back after it unless it was `sending`. Raises as `Purses.reserve`."""
        call = await self._reserved()
        self._sent = False
        self._record.charge(self._micros)
        try:
            yield
        finally:
            if not self._sent:
                self._record.refund(self._micros)
                self._returning = None if call is None else self._purses.release(call)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """The request is in the transport's hands: whatever ends this, cancellation included, the call is spent.

        But for what says that no byte has left.
        """
        self._sent = True
        try:
            yield
        except UpstreamError as error:
            self._sent = error.sent
            raise
        except asyncio.CancelledError as error:
            self._sent = NOT_SENT not in getattr(error, "__notes__", ())
            raise
        except (CallerError, TargetDenied):  # it could not be written down, or not be dialled
            self._sent = False
            raise

    async def _reserved(self) -> Call | None:
        if self._budget is None:
            return None
        if self._returning is not None:  # else a budget's last call, given back this moment, would be missing for the retry
            await asyncio.wait([self._returning])
        call = Call(self._data_source_id, self._project, self._purses.today(), self._micros, self._budget)
        await self._purses.reserve(call)
        return call
