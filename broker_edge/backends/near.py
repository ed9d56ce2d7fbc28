"""The near tier: entries of the hot tier held in this process, bounded in bytes, for as long as Redis vouches for them.

It holds and serves only between `open` and `close`; whoever hears what changes in Redis (`redis_tracking`) calls both, and
`forget` in between.

Nothing here expires. Freshness is judged for every request from the entry's own `created_at`, in each tier alike, because the
ttl may differ from request to request. The native expiry in Redis, which is shorter by its jitter and which a GET doesn't tell,
bounds memory, not truth: what has expired there, and is fresh all the same, the durable tier would answer too. Redis tells of
expired and evicted keys when it gets round to removing them, and so they leave here as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from moka_py import Moka

from broker_edge.core.exchange import Entry

# Bytes around a value, measured at 20 B, 1 KB and mixed values: key, entry, object id, the library's node and sketch.
_OVERHEAD: Final = 800
_SHARE: Final = 16  # no value may take more than this part of the bound
_STRIPES: Final = 4096  # a power of two


class NearCache:
    """`ports.NearTier` by W-TinyLFU: what is asked for once doesn't drive out what is asked for often.

    A fill may race with an invalidation: a GET that Redis answered before a SET may be read here after the news of that SET. So
    each key has a stamp that every invalidation renews, and what was asked for under an older stamp is not taken. Keys share
    stamps by their hash, which needs no bookkeeping for look-ups that fail or are cancelled, and at worst forgoes a fill.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_value = max_bytes // _SHARE - _OVERHEAD
        self._news = 0
        self.is_open = False
        self._renew()

    def get(self, key: str) -> Entry | None:
        return self._held.get(key)

    def begin(self, key: str) -> int:
        return self._stamps[hash(key) & (_STRIPES - 1)]

    def offer(self, key: str, entry: Entry, begun: int) -> None:
        if self.is_open and self._stamps[hash(key) & (_STRIPES - 1)] == begun and len(entry.value) <= self._max_value:
            self._held.set(key, entry)

    def forget(self, keys: Iterable[str]) -> None:
        stamps, remove, news = self._stamps, self._held.remove, self._news
        for key in keys:
            news += 1
            stamps[hash(key) & (_STRIPES - 1)] = news
            remove(key)
        self._news = news

    def open(self) -> None:
        """Hold and serve from now on, but nothing that was asked for before."""
        self._renew()
        self.is_open = True

    def drop(self) -> None:
        """Forget everything, and what is being asked for."""
        self._renew()

    def close(self) -> None:
        """Forget everything, and take nothing until `open`."""
        self.is_open = False
        self._renew()

    @property
    def bytes_held(self) -> int:
        """What counts towards the bound; evictions that are due are carried out first."""
        self._held.run_pending_tasks()
        return self._held.weighted_size()

    def _renew(self) -> None:
        # A new cache rather than `clear`, which marks entries by the clock and leaves them in memory until there is traffic.
        self._held: Moka[str, Entry] = Moka(self._max_bytes, weigher=_weight)
        self._news += 1
        self._stamps = [self._news] * _STRIPES


def _weight(_: str, entry: Entry) -> int:
    return len(entry.value) + _OVERHEAD
