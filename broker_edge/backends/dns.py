"""Names to addresses by the system's resolver: bounded in time, kept for seconds, one lookup for all who ask at once.

An answer is asked for again behind the callers' backs before its life ends, so that of a name in use only the first request
waits. The guard classifies whatever comes out of here, so keeping an answer never keeps a verdict.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, cast

from aiocache import SimpleMemoryCache

from broker_edge.errors import UpstreamError

Lookup = Callable[[str], tuple[str, ...]]

# Of an answer's life. The rest is for the lookup, and for more of them should it fail.
_REFRESH_AT: Final = 2 / 3
_REFRESHES: Final = 4  # at once: names that were never asked before must find threads, however many others are slow

_SPARED: Final = 1.0  # seconds
_FAILED = "The upstream's name could not be resolved"
_TOO_LATE = "The upstream's name was not resolved in time"


def system_lookup(host: str) -> tuple[str, ...]:
    """Blocking `getaddrinfo` for TCP: addresses in the system's order (RFC 6724), zones cut off; empty where there are none."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: a label too long or empty for IDNA, a NUL inside
        return ()
    return tuple(dict.fromkeys(str(answer[4][0]).partition("%")[0] for answer in answers))


class BoundedMemoryCache(SimpleMemoryCache):  # type: ignore[misc]  # aiocache has no types
    """aiocache's in-memory cache with a bound: the oldest entry makes room for a new one."""

    def __init__(self, limit: int) -> None:
        super().__init__(timeout=None)
        self._limit = limit

    async def _set(self, key: str, value: object, ttl: float | None = None, **rest: object) -> object:
        if key not in self._cache and len(self._cache) >= self._limit:
            await self._delete(next(iter(self._cache)))
        return await super()._set(key, value, ttl=ttl, **rest)

    def peek(self, key: str) -> object:
        """`get` without what aiocache adds to it (serialiser, plugins, time-out): a hundredth of its cost."""
        return self._cache.get(key)

    def values(self) -> list[object]:
        return list(self._cache.values())


@dataclass(slots=True, eq=False)
class _Answer:
    """What a name resolved to by one `lookup`; good until `ends_at`. `used`: whether anybody has asked since.

    `spared_until`: no refresh before, and longer each time one fails (`spared_for` seconds).
    """

    name: str
    addresses: tuple[str, ...]
    ends_at: float
    lookup: object
    used: bool = False
    spared_until: float = 0.0
    spared_for: float = _SPARED


class SystemResolver:
    """A `Resolver`. Threads of its own, so that a slow name server can't starve the loop's default executor.

    `keep` and `keep_failure` are seconds: getaddrinfo tells no TTL. `refresh` has to be called every few seconds.
    """

    def __init__(
        self,
        lookup: Lookup = system_lookup,
        *,
        timeout: float = 5.0,
        keep: float = 30.0,
        keep_failure: float = 1.0,
        limit: int = 10_000,
        threads: int = 16,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._timeout = timeout
        self._keep, self._keep_failure = keep, keep_failure
        self._kept = BoundedMemoryCache(limit)
        self._pending: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self._now = now
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="broker-edge-dns")
        self._refreshes = asyncio.Semaphore(_REFRESHES)

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        name = host.lower()
        kept = self._live(name)
        if kept is not None:
            kept.used = True
            addresses = kept.addresses
        else:
            addresses = _literal(name) or await self._ask(name)
        if not addresses:
            raise UpstreamError("DNS_ERROR", _FAILED, sent=False)
        return addresses

    async def refresh(self) -> None:
        """Look up anew the names in use whose answers have lived for two thirds of their time.

        One that fails changes nothing: what was known before stays until its own end, and is tried again at later calls.
        """
        now = self._now()
        soon = now + (1 - _REFRESH_AT) * self._keep
        due = [kept for kept in self._answers() if kept.used and kept.addresses and kept.ends_at <= soon]
        await asyncio.gather(*(self._renew(kept) for kept in due if kept.spared_until <= now))

    async def _renew(self, kept: _Answer) -> None:
        await self._refreshes.acquire()
        pending = self._begun(kept.name)
        pending.add_done_callback(lambda _: self._refreshes.release())  # its thread is taken until then, however long we wait
        try:
            failed = not await self._ask(kept.name)
        except UpstreamError:
            failed = True
        if failed:
            kept.spared_until = self._now() + kept.spared_for
            kept.spared_for *= 2

    def _live(self, name: str) -> _Answer | None:
        kept = cast("_Answer | None", self._kept.peek(name))
        return kept if kept is not None and self._now() < kept.ends_at else None

    def _answers(self) -> list[_Answer]:
        return cast("list[_Answer]", self._kept.values())

    async def _ask(self, name: str) -> tuple[str, ...]:
        """Join the lookup of `name` under way or start it.

        The executor's future is shared and shielded: whoever leaves, the first asker too, takes nobody else's answer away.
        """
        pending = self._begun(name)
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await asyncio.shield(pending)
        except TimeoutError:
            raise UpstreamError("DNS_ERROR", _TOO_LATE, sent=False) from None
        await self._learn(name, addresses, pending)
        return addresses

    def _begun(self, name: str) -> asyncio.Future[tuple[str, ...]]:
        pending = self._pending.get(name)
        if pending is None:
            pending = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, name)
            self._pending[name] = pending
            pending.add_done_callback(lambda done: self._settle(name, done))
        return pending

    async def _learn(self, name: str, addresses: tuple[str, ...], lookup: object) -> None:
        """Of all who awaited one lookup the first keeps its answer; no failure takes the place of an answer that still lives."""
        kept = self._live(name)
        if kept is not None and (kept.lookup is lookup or not addresses):
            return
        life = self._keep if addresses else self._keep_failure
        await self._kept.set(name, _Answer(name, addresses, self._now() + life, lookup), ttl=life)

    def _settle(self, name: str, done: asyncio.Future[tuple[str, ...]]) -> None:
        del self._pending[name]
        if not done.cancelled():
            done.exception()  # retrieved, so that an answer nobody waits for any more is no warning

    async def aclose(self) -> None:
        """Give up the lookups that have not begun; those under way end in their threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._kept.clear()


@lru_cache(1024)
def _literal(host: str) -> tuple[str, ...] | None:
    try:
        return (str(ip_address(host)),)
    except ValueError:
        return None
