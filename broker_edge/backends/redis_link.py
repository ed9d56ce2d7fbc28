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
        return [unpack(reply) if isinstance(reply, _VALUE) else _broken(self._redis, reply, *keys) for reply in replies]

    async def put(self, key: str, entry: Entry, lifetime: float | None, *, only_if_absent: bool = False) -> None:
        options, words = b"", 0
        if lifetime is not None:
            options, words = b"$2\r\nPX\r\n" + _word(b"%d" % max(1, lifetime * 1000)), 2
        if only_if_absent:
            options, words = options + _ABSENT, words + 1
        # Where the answer is lost, another instance may put something newer before we are back. Done again, this would undo
        # that, or a purge; nothing at all would leave what it was to replace. A deletion sends who asks next to the durable tier.
        [reply] = await self._redis.lane.execute((key,), _set(key, entry, options, words), (_delete(key),))
        if reply is not None and reply != b"OK" and not isinstance(reply, int):
            raise _broken(self._redis, reply, key)

    async def delete(self, key: str) -> None:
        [reply] = await self._redis.lane.execute((key,), (_delete(key),))
        _number(self._redis, reply, key)

    async def ping(self) -> None:
        await self._redis.lane.probe()

    async def aclose(self) -> None:
        await self._redis.aclose()


class _Script:
    """A script that takes `names` keys and `arguments`; `known` begins its command where the server has it already."""

    def __init__(self, text: str, names: int, arguments: int) -> None:
        head, digest = b"*%d\r\n" % (3 + names + arguments), sha1(text.encode(), usedforsecurity=False).hexdigest()
        count = packed(names)[len("*n\r\n") :]
        self.known = head + packed("EVALSHA", digest)[len("*n\r\n") :] + count
        self._whole = head + packed("EVAL", text)[len("*n\r\n") :] + count

    async def again(self, redis: Link, key: str, rest: bytes, error: BaseException) -> Any:
        """Its answer after `error`, at the server of `key`: one that doesn't know it gets it, and keeps it. Raises TierBroken."""
        if not isinstance(error, ReplyError) or not str(error).startswith("NOSCRIPT"):
            raise _broken(redis, error, key)
        [reply] = await redis.lane.execute([key], [self._whole + rest])
        return reply


class RedisFleet:
    """`ports.Fleet` by leases in Redis; `hear` must run for as long as bells are to ring."""

    def __init__(self, redis: Link) -> None:
        self._redis = redis
        self._bells = Bells()
        self._bid = _Script(_BID, 3, 3)
        self._renew = _Script(_RENEW, 1, 2)
        self._settle = _Script(_SETTLE, 2, 3)
        self.hearing = asyncio.Event()

    def listen(self, key: str) -> AbstractAsyncContextManager[Bell]:
        return self._bells.listen(key)

    async def bid(self, key: str, token: str, lease: float) -> Lead:
        name, size = _name(key)
        rest = b"$%d\r\n%b\r\n$%d\r\n%b:lead\r\n$%d\r\n%b:bell\r\n%b%b%b" % (
            *(size, name, size + 5, name, size + 5, name),
            *(_word(token.encode()), _word(b"%d" % (lease * 1000)), _BELL_LIFE),
        )
        [reply] = await self._redis.lane.execute((key,), (self._bid.known + rest,))
        if isinstance(reply, BaseException):
            reply = await self._bid.again(self._redis, key, rest, reply)
        match reply:
            case [1, None | bytes() as held]:
                return Lead(True, unpack(held))
            case [0, int(left)]:
                return Lead(False, lease_left=max(0, left) / 1000)
        raise _broken(self._redis, reply, key)

    async def renew(self, key: str, token: str, lease: float) -> bool:
        name, size = _name(key)
        rest = b"$%d\r\n%b:lead\r\n%b%b" % (size + 5, name, _word(token.encode()), _word(b"%d" % (lease * 1000)))
        [reply] = await self._redis.lane.execute((key,), (self._renew.known + rest,))
        if isinstance(reply, BaseException):
            reply = await self._renew.again(self._redis, key, rest, reply)
        return bool(_number(self._redis, reply, key))

    async def settle(self, key: str, token: str, message: bytes) -> None:
        name, size = _name(key)
        rest = b"$%d\r\n%b:lead\r\n$%d\r\n%b:bell\r\n%b%b%b" % (
            *(size + 5, name, size + 5, name),
            *(_word(token.encode()), _CHANNEL_WORD, _word(b"%b %b" % (key.encode(), message))),
        )
        [reply] = await self._redis.lane.execute((key,), (self._settle.known + rest,))
        if isinstance(reply, BaseException):
            reply = await self._settle.again(self._redis, key, rest, reply)
        _number(self._redis, reply, key)

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


def _number(redis: Link, reply: Any, key: str) -> int:
    if isinstance(reply, int):
        return reply
    raise _broken(redis, reply, key)


def _broken(redis: Link, reply: Any, *keys: str) -> TierBroken:
    """What stands for `reply`, which is none that was asked for. Raises it where it answers something else: so may all that came
    with it, and those still to come.
    """
    if isinstance(reply, TierBroken):
        return reply
    if isinstance(reply, ReplyError):
        return TierBroken("Redis refused")
    for key in keys:
        redis.lane.distrust(key)
    raise TierBroken("Redis answered something else")


def _get(key: str) -> bytes:
    # As packed("GET", name) does, at half its cost: this one is on every hit's way.
    name = b"be:{%b}" % key.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def _delete(key: str) -> bytes:
    name, size = _name(key)
    return b"*2\r\n$3\r\nDEL\r\n$%d\r\n%b\r\n" % (size, name)


def _set(key: str, entry: Entry, options: bytes, words: int) -> Sequence[Buffer]:
    """The command in parts around the value, so that nobody has to copy a large one; `options` are as many `words`."""
    (name, length), first = _name(key), header(entry)
    head = b"*%d\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (3 + words, length, name, len(first) + len(entry.value), first)
    return head, entry.value, b"\r\n" + options


def _name(key: str) -> tuple[bytes, int]:
    """The name of a key's entry, and its length."""
    name = b"be:{%b}" % key.encode()
    return name, len(name)


def _word(text: bytes) -> bytes:
    """As RESP frames it."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


_BELL_LIFE = _word(b"%d" % _BELL_LIFE_MS)
_CHANNEL_WORD = _word(_CHANNEL)
_ABSENT = _word(b"NX")
_VALUE = (bytes, memoryview, type(None))
