"""Who pays for a call: reserved before each attempt that may be sent, taken back where certainly nothing was.

The day's account of a source with a budget lies in the database, shared by the fleet, and is the only judge. It fails closed:
where it can't be asked nothing is spent, and a call of which nobody knows whether it was made counts as made. A source that has
a price and no budget needs no account: its calls are counted on the record alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime
from typing import Final, NamedTuple
from uuid import UUID
from weakref import WeakValueDictionary

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
        # One at a time for each source: they would queue for the same row in any case, each with a connection in its hand, and
        # those behind the one that is refused need not ask.
        self._lines: WeakValueDictionary[tuple[UUID, str | None], asyncio.Lock] = WeakValueDictionary()

    def of(self, plan: Plan, record: Record) -> Purse | None:
        """What pays for the calls of one fetch and charges `record`; None where nobody asked what they cost."""
        source = plan.source
        return None if source.price is None and source.budget is None else Purse(self, plan, record)

    def today(self) -> date:
        return datetime.fromtimestamp(self._now(), UTC).date()

    async def reserve(self, call: Call) -> None:
        """Count one call; raises EdgeError BUDGET_EXHAUSTED, or STORAGE_UNAVAILABLE where nobody can say."""
        line = self._lines.setdefault((call.data_source_id, call.project), asyncio.Lock())
        self._refuse_known(call)
        async with line:
            self._refuse_known(call)
            granted = await self._asked(call)
        if granted is None:
            raise EdgeError("STORAGE_UNAVAILABLE", "the budget of the data source can't be asked for", retry_after=1.0)
        if not granted:
            if len(self._exhausted) >= _MOST:
                self._exhausted.clear()
            self._exhausted[call] = self._monotonic() + _REMEMBERED
            self._refuse()

    def release(self, call: Call) -> asyncio.Task[None]:
        """Take back a call that was not made, whoever goes on waiting."""
        return self._background.spawn("release", self._taken_back(call))

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

    async def _asked(self, call: Call) -> bool | None:
        """In a task of its own: the database may say yes to a caller who has left, and then the call is taken back."""
        asking = self._background.spawn("reserve", self._ask(call))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._background.spawn("release", self._undone(asking, call))
            raise

    async def _ask(self, call: Call) -> bool | None:
        try:
            async with asyncio.timeout(self._within):
                return await self._budgets.reserve(*call[:4], most_calls=call.budget.calls, most_micros=call.budget.micros)
        except (TierBroken, TimeoutError):  # it may have been counted, and the answer lost: then a call less is made, not more
            return None

    async def _undone(self, asking: asyncio.Task[bool | None], call: Call) -> None:
        await asyncio.wait([asking])
        if not asking.cancelled() and asking.result():
            await self._taken_back(call)

    async def _taken_back(self, call: Call) -> None:
        await self._budgets.release(*call[:4])
        self._exhausted.clear()


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
