"""Redis: the hot tier and the fleet's leases over one redis-py client.

Names in Redis: `be:{<key>}` holds an entry, `be:{<key>}:lead` the leader's token, `be:{<key>}:bell` says that somebody waits; the
braces keep all three in one Cluster slot. `be:bells` is the channel on which a settled fetch rings its followers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as BrokenConnection
from redis.exceptions import RedisError

from broker_edge.backends.bells import Bells
from broker_edge.core.exchange import Entry
from broker_edge.core.packing import pack, unpack
from broker_edge.errors import TierBroken
from broker_edge.ports import Bell, Lead

_CHANNEL = b"be:bells"
_IDLE = 5.0  # seconds of silence before the subscription's connection is tried
_BELL_LIFE_MS = 600_000  # longer than any fetch; only a leader that died leaves one behind

# Look again in the same round trip that wins: another instance may have finished between our look-up and this bid. A bid whose
# answer was lost is made again: the lease that it won then is its own.
_BID = """
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) or redis.call('GET', KEYS[2]) == ARGV[1] then
  return {1, redis.call('GET', KEYS[1])}
end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[3])
return {0, redis.call('PTTL', KEYS[2])}
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
# Compare and delete, and ring only where somebody waits: a fetch without followers publishes nothing.
_SETTLE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if redis.call('DEL', KEYS[2]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return 1
"""


def connect(url: str, timeout: float) -> Redis:
    """A client that never waits longer than `timeout` seconds for one answer, and tries a broken connection once more.

    More calls at once than it has connections wait for their turn, again at most `timeout` seconds: a herd is no failure.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        # Not after a time-out: what did not answer once would be waited for twice.
        retry=Retry(NoBackoff(), 1, supported_errors=(BrokenConnection,)),
        health_check_interval=0,
        max_connections=64,
    )
    return Redis.from_pool(pool)


@contextlib.contextmanager
def _translated() -> Any:
    try:
        yield
    except (RedisError, OSError, TimeoutError):
        raise TierBroken("Redis can't be reached") from None


class RedisHot:
    """`ports.HotTier` in Redis. A pipeline rather than MGET: Cluster takes it too."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | BaseException | None]:
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.get(_entry(key))
                answers = await pipeline.execute(raise_on_error=False)
        return [_unpacked(answer) for answer in answers]

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        with _translated():
            await self._redis.set(
                _entry(key), pack(entry), px=None if lifetime is None else max(1, int(lifetime * 1000)), nx=only_if_absent
            )

    async def delete(self, key: str) -> None:
        with _translated():
            await self._redis.delete(_entry(key))

    async def ping(self) -> None:
        with _translated():
            await self._redis.ping()

    async def aclose(self) -> None:
        await self._redis.aclose()


class RedisFleet:
    """`ports.Fleet` by leases in Redis; `hear` must run for as long as bells are to ring."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._bells = Bells()
        self._bid = redis.register_script(_BID)
        self._renew = redis.register_script(_RENEW)
        self._settle = redis.register_script(_SETTLE)
        self.hearing = asyncio.Event()

    def listen(self, key: str) -> AbstractAsyncContextManager[Bell]:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        keys = [_entry(key), _lead(key), _bell(key)]
        with _translated():
            won, answer = await self._bid(keys=keys, args=[token, int(lease * 1000), _BELL_LIFE_MS])
        if won:
            return Lead(True, unpack(answer))
        return Lead(False, lease_left=max(0, answer) / 1000)

    async def renew(self, key: str, token: str, lease: float) -> bool:
        with _translated():
            return bool(await self._renew(keys=[_lead(key)], args=[token, int(lease * 1000)]))

    async def settle(self, key: str, token: str, message: bytes) -> None:
        with _translated():
            await self._settle(keys=[_lead(key), _bell(key)], args=[token, _CHANNEL, key.encode() + b" " + message])

    async def hear(self) -> None:
        """Ring local bells while the connection lasts. What is missed while it is down costs followers a lease, no more."""
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(_CHANNEL)
                while True:
                    message = await subscription.get_message(timeout=_IDLE)
                    if message is None:
                        await subscription.ping()  # a peer that went away without a word fails here
                    elif message["type"] == "subscribe":
                        self.hearing.set()
                    elif message["type"] == "message":
                        self._strike(message["data"])
        except (RedisError, OSError):
            raise TierBroken("Redis can't be reached") from None
        finally:
            self.hearing.clear()

    def _strike(self, data: bytes) -> None:
        key, _, message = data.partition(b" ")
        self._bells.strike(key.decode(), message)


def _unpacked(answer: Any) -> Entry | BaseException | None:
    return TierBroken("Redis refused") if isinstance(answer, BaseException) else unpack(answer)


def _entry(key: str) -> str:
    return f"be:{{{key}}}"


def _lead(key: str) -> str:
    return f"be:{{{key}}}:lead"


def _bell(key: str) -> str:
    return f"be:{{{key}}}:bell"
