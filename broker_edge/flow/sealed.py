"""Short texts that nobody else may read, in the hot tier: sealed, bound to their keys, remembered here while it is gone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from uuid import UUID

from broker_edge.core.breaker import Breaker
from broker_edge.core.exchange import Entry
from broker_edge.errors import EdgeError, TierBroken
from broker_edge.flow.guarded import guarded
from broker_edge.guard.vault import Vault
from broker_edge.ports import HotTier

_NO_OBJECT: Final = UUID(int=0)
_OWN: Final = 1024


class SealedTexts:
    """What was put here is answered by `own` too, whatever became of it in the hot tier. `breaker` guards that."""

    def __init__(self, hot: HotTier, vault: Vault, breaker: Breaker, *, now: Callable[[], float] = time.time) -> None:
        self._hot = hot
        self._vault = vault
        self._breaker = breaker
        self._now = now
        self._own: OrderedDict[str, str] = OrderedDict()
        self._owed: dict[str, Entry] = {}

    async def get(self, key: str) -> str | None:
        """None where there is none that this ring opens: it is made anew then. Raises TierBroken."""
        return self._opened(await self._stored(key), key)

    async def lasting(self, key: str) -> str | None:
        """One that was put for ever, and can't be made anew: sealed anew where that was with another key than the first.

        Raises TierBroken, and Unopened where there is one that no key in force opens.
        """
        sealed = await self._stored(key)
        if sealed is None:
            return None
        text = str(self._vault.open(sealed, key))
        if not sealed.startswith(self._vault.prefix):
            await self.put(key, text, None)
        return text

    async def _stored(self, key: str) -> str | None:
        if key in self._owed:  # the hot tier was gone when it was put, and what it holds is older
            await guarded(self._breaker, lambda: self._hot.put(key, self._owed[key], None))
            del self._owed[key]
        entry = await guarded(self._breaker, lambda: self._one(key))
        return None if entry is None else bytes(entry.value).decode("ascii", "replace")

    def own(self, key: str) -> str | None:
        """What this process put last under the key; for how long it is good its text must tell."""
        return self._opened(self._own.get(key), key)

    async def put(self, key: str, text: str, lifetime: float | None) -> None:
        """`lifetime` in seconds, None until it is replaced: then it is put again where it could not be. Raises TierBroken."""
        sealed = self._vault.seal(text, key)
        self._own[key] = sealed
        self._own.move_to_end(key)
        if len(self._own) > _OWN:
            self._own.popitem(last=False)
        entry = Entry(_NO_OBJECT, self._now(), sealed.encode())
        if lifetime is None:
            self._owed[key] = entry
        await guarded(self._breaker, lambda: self._hot.put(key, entry, lifetime))
        self._owed.pop(key, None)

    async def drop(self, key: str) -> None:
        """Raises TierBroken."""
        self._own.pop(key, None)
        await guarded(self._breaker, lambda: self._hot.delete(key))

    async def _one(self, key: str) -> Entry | None:
        [found] = await self._hot.get_many([key])
        if isinstance(found, BaseException):
            raise TierBroken("it does not answer")
        return found

    def _opened(self, sealed: str | None, key: str) -> str | None:
        try:
            text = None if sealed is None else self._vault.open(sealed, key)
        except EdgeError:
            return None
        return text if isinstance(text, str) else None
