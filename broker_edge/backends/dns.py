"""Names to addresses by the system's resolver: bounded in time, kept for seconds, one lookup for all who ask at once.

The guard classifies what comes out of here on every fetch, so keeping an answer never keeps a verdict.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from aiocache import SimpleMemoryCache

from broker_edge.errors import UpstreamError

Lookup = Callable[[str], tuple[str, ...]]

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


class SystemResolver:
    """A `Resolver`. Threads of its own, so that a slow name server can't starve the loop's default executor."""

    def __init__(
        self,
        lookup: Lookup = system_lookup,
        *,
        timeout: float = 5.0,
        keep: float = 30.0,
        keep_failure: float = 1.0,
        limit: int = 10_000,
        threads: int = 16,
    ) -> None:
        self._lookup = lookup
        self._timeout = timeout
        self._keep, self._keep_failure = keep, keep_failure
        self._kept = BoundedMemoryCache(limit)
        self._pending: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="broker-edge-dns")

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        name = host.lower()
        answers = _literal(name) or await self._kept.get(name)
        if answers is None:
            answers = await self._ask(name)
        if not answers:
            raise UpstreamError("DNS_ERROR", _FAILED, sent=False)
        return tuple(answers)

    async def _ask(self, name: str) -> tuple[str, ...]:
        """Join the lookup of `name` under way or start it.

        The executor's future is shared and shielded: whoever leaves, the first asker too, takes nobody else's answer away.
        """
        pending = self._pending.get(name)
        if pending is None:
            pending = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, name)
            self._pending[name] = pending
            pending.add_done_callback(lambda done: self._settle(name, done))
        try:
            async with asyncio.timeout(self._timeout):
                answers = await asyncio.shield(pending)
        except TimeoutError:
            raise UpstreamError("DNS_ERROR", _TOO_LATE, sent=False) from None
        if not await self._kept.exists(name):
            await self._kept.set(name, answers, ttl=self._keep if answers else self._keep_failure)
        return answers

    def _settle(self, name: str, done: asyncio.Future[tuple[str, ...]]) -> None:
        del self._pending[name]
        if not done.cancelled():
            done.exception()  # retrieved, so that an answer nobody waits for any more is no warning

    async def aclose(self) -> None:
        """Give up the lookups that have not begun; those under way end in their threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._kept.clear()


def _literal(host: str) -> tuple[str, ...] | None:
    try:
        return (str(ip_address(host)),)
    except ValueError:
        return None
