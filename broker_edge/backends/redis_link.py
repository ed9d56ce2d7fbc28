"""Redis: the hot tier and the fleet's leases over one link.

Names in Redis: `be:{<key>}` holds an entry, `be:{<key>}:lead` the leader's token, `be:{<key>}:bell` says that somebody waits; the
braces keep all three in one Cluster slot. `be:bells` is the channel on which a settled fetch rings its followers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from hashlib import sha1
from typing import Any

from hiredis import ReplyError
from redis.exceptions import RedisError

from broker_edge.backends.bells import Bells
from broker_edge.backends.redis_connect import Link, connect
from broker_edge.backends.redis_wire import GONE, Buffer, packed
from broker_edge.core.exchange import Entry
from broker_edge.core.packing import header, unpack
from broker_edge.errors import TierBroken
from broker_edge.ports import Bell, Lead

__all__ = ["RedisFleet", "RedisHot", "connect"]

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


class RedisHot:
    """`ports.HotTier` in Redis. GETs rather than MGET: a Cluster takes them too, and an error is of one key alone."""

    def __init__(self, redis: Link) -> None:
        self._redis = redis

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | BaseException | None]:
        if not keys:
            return []
        replies = await self._redis.lane.execute(keys, [_get(key) for key in keys])
        return [_unpacked(reply) for reply in replies]

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        options: list[str | int] = [] if lifetime is None else ["PX", max(1, int(lifetime * 1000))]
        if only_if_absent:
            options.append("NX")
        [reply] = await self._redis.lane.execute([key], _set(key, entry, options))
        _checked(reply)

    async def delete(self, key: str) -> None:
        [reply] = await self._redis.lane.execute([key], [packed("DEL", _entry(key))])
        _checked(reply)

    async def ping(self) -> None:
        await self._redis.lane.probe()

    async def aclose(self) -> None:
        await self._redis.aclose()


class _Script:
    def __init__(self, text: str) -> None:
        self._text = text
        self._digest = sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Link, key: str, names: Sequence[str], *arguments: str | int | bytes) -> Any:
        """Its answer, at the server of `key`; one that doesn't know the script gets it, and keeps it. Raises TierBroken."""
        rest = (len(names), *names, *arguments)
        [reply] = await redis.lane.execute([key], [packed("EVALSHA", self._digest, *rest)])
        if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
            [reply] = await redis.lane.execute([key], [packed("EVAL", self._text, *rest)])
        return _checked(reply)


class RedisFleet:
    """`ports.Fleet` by leases in Redis; `hear` must run for as long as bells are to ring."""

    def __init__(self, redis: Link) -> None:
        self._redis = redis
        self._bells = Bells()
        self._bid = _Script(_BID)
        self._renew = _Script(_RENEW)
        self._settle = _Script(_SETTLE)
        self.hearing = asyncio.Event()

    def listen(self, key: str) -> AbstractAsyncContextManager[Bell]:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        names = [_entry(key), _lead(key), _bell(key)]
        won, answer = await self._bid.run(self._redis, key, names, token, int(lease * 1000), _BELL_LIFE_MS)
        if won:
            return Lead(True, unpack(answer))
        return Lead(False, lease_left=max(0, answer) / 1000)

    async def renew(self, key: str, token: str, lease: float) -> bool:
        return bool(await self._renew.run(self._redis, key, [_lead(key)], token, int(lease * 1000)))

    async def settle(self, key: str, token: str, message: bytes) -> None:
        told = key.encode() + b" " + message
        await self._settle.run(self._redis, key, [_lead(key), _bell(key)], token, _CHANNEL, told)

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
            raise TierBroken(GONE) from None
        finally:
            self.hearing.clear()

    def _strike(self, data: bytes) -> None:
        key, _, message = data.partition(b" ")
        self._bells.strike(key.decode(), message)


def _checked(reply: Any) -> Any:
    if isinstance(reply, TierBroken):
        raise reply
    if isinstance(reply, ReplyError):
        raise TierBroken("Redis refused")
    return reply


def _unpacked(reply: Any) -> Entry | BaseException | None:
    if isinstance(reply, BaseException):
        return reply if isinstance(reply, TierBroken) else TierBroken("Redis refused")
    return unpack(reply)


def _get(key: str) -> bytes:
    # As packed("GET", name) does, at half its cost: this one is on every hit's way.
    name = b"be:{%b}" % key.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def _set(key: str, entry: Entry, options: Sequence[str | int]) -> Sequence[Buffer]:
    """The command in parts around the value, so that nobody has to copy a large one."""
    name, first = b"be:{%b}" % key.encode(), header(entry)
    words, size = 3 + len(options), len(first) + len(entry.value)
    head = b"*%d\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (words, len(name), name, size, first)
    return head, entry.value, b"\r\n" + packed(*options)[len("*n\r\n") :]


def _entry(key: str) -> str:
    return f"be:{{{key}}}"


def _lead(key: str) -> str:
    return f"be:{{{key}}}:lead"


def _bell(key: str) -> str:
    return f"be:{{{key}}}:bell"
