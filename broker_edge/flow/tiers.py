"""The tiers and the way between them: near (in this process) over hot (ready bytes) over durable (immutable objects).

Failure policy: the cache fails open. A tier that can't answer is BROKEN, never ABSENT: it is counted under that name, and a
breaker keeps requests from waiting for a tier that is known to be dead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import NamedTuple, TypeVar
from uuid import UUID

from broker_edge.core.breaker import Breaker
from broker_edge.core.exchange import DataObject, Entry
from broker_edge.core.formats import shape
from broker_edge.core.freshness import Expired, hot_lifetime
from broker_edge.core.trail import Record
from broker_edge.errors import EdgeError, TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.batching import Batcher
from broker_edge.flow.gathering import Gathering
from broker_edge.flow.guarded import guarded
from broker_edge.flow.journal import Journal
from broker_edge.flow.lookups import Lookups
from broker_edge.flow.near import NoNear
from broker_edge.ports import DurableTier, HotTier, NearTier, Refused

T = TypeVar("T")
_PATIENCE = 0.006  # seconds that a batch for the database waits for more, at most, where the event loop is short of time
_OFF_LOOP = 256 * 1024  # bytes from which shaping would hold up the event loop
_NO_OBJECT = UUID(int=0)


class Nothing(Enum):
    ABSENT = "miss"
    BROKEN = "broken"


class Kept(NamedTuple):
    """What the durable tier holds under a key: the entry that it makes, and the object itself."""

    entry: Entry
    item: DataObject


class Tiers:
    """Look-ups answer an `Entry` or say which nothing they found; stores return when the object is durable."""

    def __init__(
        self,
        hot: HotTier,
        durable: DurableTier,
        journal: Journal,
        background: Background,
        *,
        hot_max_value: int,
        durable_timeout: float,
        random: Callable[[], float],
        near: NearTier | None = None,
        slowest_look: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.slowest_look = slowest_look  # seconds that `look` may take where the hot tier is dying
        self._near = near or NoNear()
        self._hot = hot
        self._durable = durable
        self._journal = journal
        self._hot_max_value = hot_max_value
        self._durable_timeout = durable_timeout
        self._random = random
        self._now = now
        self.hot_breaker = Breaker()
        self.durable_breaker = Breaker()
        self.commit_breaker = Breaker()  # a database may answer look-ups and hang on commits
        self._lookups = Lookups(hot, self.hot_breaker, background)
        self._hot_gets: Batcher[str, Entry | None] = Batcher("hot-get", hot.get_many, background, lanes=4)
        self._durable_gets: Batcher[str, DataObject | None] = Batcher(
            "durable-get",
            self._look_up,
            background,
            lanes=2,
            most=100,
            within=durable_timeout,
            gathering=Gathering(_PATIENCE),
        )
        self._commits: Batcher[DataObject, None] = Batcher(
            "commit", self._commit, background, most=64, within=durable_timeout, gathering=Gathering(_PATIENCE)
        )

    def near(self, key: str, record: Record) -> Entry | None:
        """What this process holds itself; a miss is not noted, since the hot tier's word follows it."""
        found = self._near.get(key)
        if found is not None:
            now = self._now()
            record.note("lookup", now, now, "near", "hit")
        return found

    def look(self, key: str, record: Record, then: Callable[[Entry | Nothing], None]) -> None:
        """As `hot`, with a callback in place of an await."""
        started_at, begun = self._now(), self._near.begin(key)

        def found(answer: Entry | BaseException | None) -> None:
            word = Nothing.BROKEN if isinstance(answer, BaseException) else answer or Nothing.ABSENT
            if isinstance(word, Entry):
                self._near.offer(key, word, begun)
            record.note("lookup", started_at, self._now(), "hot", _result(word))
            then(word)

        self._lookups.ask(key, found)

    async def hot(self, key: str, record: Record) -> Entry | Nothing:
        """What the hot tier holds under `key`: one round trip, shared with the look-ups of the same loop tick."""
        started_at, begun = self._now(), self._near.begin(key)
        try:
            found = await guarded(self.hot_breaker, lambda: self._hot_gets.call(key)) or Nothing.ABSENT
        except TierBroken:
            found = Nothing.BROKEN
        if isinstance(found, Entry):
            self._near.offer(key, found, begun)
        record.note("lookup", started_at, self._now(), "hot", _result(found))
        return found

    async def durable(self, key: str, ttl: float | None, record: Record, *, grace: float = 0.0) -> Entry | Nothing:
        """The newest reusable object under `key`, shaped; the hot tier gets it back for the time that is left."""
        kept = await self.kept(key, record)
        if isinstance(kept, Nothing):
            return kept
        await self.promote(key, kept.entry, ttl, record, grace=grace)
        return kept.entry

    async def kept(self, key: str, record: Record) -> Kept | Nothing:
        """As `durable`, with the object, and the hot tier is left as it is."""
        started_at = self._now()
        found: Kept | Nothing = Nothing.ABSENT
        try:
            item = await guarded(self.durable_breaker, lambda: self._durable_gets.call(key))
            if item is not None:
                found = Kept(Entry(item.object_id, item.confirmed_at, await shaped(item)), item)
        except TierBroken:
            found = Nothing.BROKEN
        except EdgeError:
            found = Nothing.ABSENT  # kept by a version that read the format differently: fetch it anew
        record.note("lookup", started_at, self._now(), "durable", _result(found))
        return found

    async def promote(
        self, key: str, entry: Entry, ttl: float | None, record: Record, *, grace: float = 0.0, over: bool = False
    ) -> None:
        """Put what was read from the durable tier into the hot tier, where nothing is, as that may be newer.

        `over` something too: for who holds the lease of the key, and has seen that what is there is past its time.
        """
        await self._put_hot(key, entry, ttl, record, grace=grace, only_if_absent=not over)

    async def store(self, item: DataObject, entry: Entry, ttl: float | None, record: Record, *, grace: float = 0.0) -> None:
        """Durable first, then hot: a reply may name the object as soon as this returns. Raises TierBroken.

        An object that is stored already, and was validated since, is renewed: itself as it was, what points at it younger.
        """
        started_at, result = self._now(), "ok"
        try:
            await guarded(self.commit_breaker, lambda: self._commits.call(item))
        except (TierBroken, asyncio.CancelledError) as error:
            # The call is paid for: what the database can't take now waits in the spool, as safe from a crash as audit rows. So
            # does what the process' end cuts off: whether it arrived is unknown, and twice is as good as once.
            result = "spooled"
            self._journal.keep(item)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            record.note("store", started_at, self._now(), "durable", result)
            if item.reusable:  # even where nothing durable takes it: the next caller must not pay again
                await self._put_hot(item.key, entry, ttl, record, grace=grace)

    async def remember(self, key: str, status: int, seconds: float, record: Record) -> None:
        """An error status in place of an entry: in the hot tier alone, for so long."""
        negative = Entry(_NO_OBJECT, self._now(), b"", status)
        await self._set_hot(key, negative, seconds, record)

    async def _put_hot(
        self, key: str, entry: Entry, ttl: float | None, record: Record, *, grace: float, only_if_absent: bool = False
    ) -> None:
        lifetime = hot_lifetime(entry.created_at, ttl, self._now(), self._random(), grace=grace)
        if len(entry.value) > self._hot_max_value:
            lifetime = Expired()
        if only_if_absent and isinstance(lifetime, Expired):
            return
        await self._set_hot(key, entry, lifetime, record, only_if_absent=only_if_absent)

    async def _set_hot(
        self, key: str, entry: Entry, lifetime: float | Expired | None, record: Record, *, only_if_absent: bool = False
    ) -> None:
        started_at, result = self._now(), "ok"
        try:
            if not isinstance(lifetime, Expired):
                await guarded(self.hot_breaker, lambda: self._hot.put(key, entry, lifetime, only_if_absent=only_if_absent))
            else:  # what it replaces must not outlive it there
                result = "dropped"
                await guarded(self.hot_breaker, lambda: self._hot.delete(key))
        except TierBroken:
            result = "broken"
        finally:
            # Not left to the news of it, which may come after our reply. And not done before Redis has answered: a look-up that
            # begins earlier may still read what was there.
            self._near.forget((key,))
        record.note("store", started_at, self._now(), "hot", result)

    async def _look_up(self, keys: Sequence[str]) -> Sequence[DataObject | None]:
        # A herd of one key may meet here: each key is asked for once.
        distinct = list(dict.fromkeys(keys))
        found = dict(zip(distinct, await self._in_time(self._durable.lookup(distinct)), strict=True))
        return [found[key] for key in keys]

    async def _commit(self, items: Sequence[DataObject]) -> Sequence[BaseException | None]:
        try:
            await self._in_time(self._durable.store(items))
        except Refused:
            if len(items) == 1:
                return [EdgeError("INTERNAL", "the database refuses this object")]
            return [answer for item in items for answer in await self._commit([item])]
        return [None] * len(items)

    async def _in_time(self, call: Awaitable[T]) -> T:
        """A call that the database does not answer must end, not just be left: it holds a lane, which others need."""
        try:
            async with asyncio.timeout(self._durable_timeout):
                return await call
        except TimeoutError:
            raise TierBroken("the database does not answer") from None


async def shaped(item: DataObject) -> bytes:
    """The value of an object as JSON text; large ones are shaped off the event loop. Raises UpstreamError PARSE_ERROR."""
    if len(item.body) < _OFF_LOOP:
        return shape(item.body, item.response_type, item.content_type)
    return await asyncio.to_thread(shape, item.body, item.response_type, item.content_type)


def _result(found: Entry | Kept | Nothing) -> str:
    return found.value if isinstance(found, Nothing) else "hit"
