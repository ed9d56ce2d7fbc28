"""A Redis Cluster: a lane to each primary, commands of one call grouped by the servers of their keys.

The map of slots comes from CLUSTER SLOTS. It is fetched where there is none, and, at most once a second, after a server said
MOVED or did not answer. See https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/.
"""

from __future__ import annotations

import asyncio
import random
from binascii import crc_hqx
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from re import fullmatch
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from broker_edge.backends.redis_dial import Address
from broker_edge.backends.redis_lane import Lane
from broker_edge.backends.redis_wire import GONE, Buffer, packed
from broker_edge.errors import TierBroken

_COUNT = 16_384  # slots
_REDIRECTS = 3
_DOUBT = 1.0  # seconds between looks at the map while a server is gone
_SLOTS = packed("CLUSTER", "SLOTS")
_ASKING = packed("ASKING")


class Cluster:
    """`lane` makes a lane to one server, `client` a redis-py client of one; `timeout` in seconds bounds a call, map and all."""

    def __init__(
        self, seeds: Sequence[Address], lane: Callable[[Address], Lane], client: Callable[[Address], Redis], timeout: float
    ) -> None:
        self._seeds = seeds
        self._new_lane = lane
        self._new_client = client
        self._timeout = timeout
        self._lanes: dict[Address, Lane] = {}
        self._slots: list[Address] = []
        self._primaries: set[Address] = set()
        self._mapping = asyncio.Lock()
        self._looks = 0
        self._looked_at = 0.0
        self._doubted = False

    @property
    def lane(self) -> Cluster:
        """What executes: one link or many, who asks need not know."""
        return self

    async def execute(self, keys: Sequence[str], parts: Sequence[Buffer], instead: Sequence[Buffer] | None = None) -> list[Any]:
        """As `Lane.execute`; several keys have one part each, and no `instead`. TierBroken is a key's reply where its server
        can't be reached.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout
        await self._look(deadline)
        at: dict[Address, list[int]] = {}
        for index, key in enumerate(keys):
            at.setdefault(self._at(key), []).append(index)
        replies: list[Any] = [None] * len(keys)
        if len(at) == 1:
            replies = await self._ask(next(iter(at)), keys, parts, instead, deadline)
        else:
            asked = [
                self._ask(address, [keys[n] for n in group], [parts[n] for n in group], None, deadline)
                for address, group in at.items()
            ]
            for group, answers in zip(at.values(), await asyncio.gather(*asked), strict=True):
                for index, answer in zip(group, answers, strict=True):
                    replies[index] = answer
        for index, reply in enumerate(replies):
            if isinstance(reply, hiredis.ReplyError):
                own = parts if len(keys) == 1 else parts[index : index + 1]
                replies[index] = await self._followed(keys[index], own, instead, deadline, reply)
        return replies

    async def probe(self) -> None:
        """Whether all primaries answer; raises TierBroken."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        await self._look(deadline)
        for address in list(self._primaries):
            await self._lane(address).probe(deadline)

    def distrust(self, key: str) -> None:
        """As `Lane.distrust`."""
        if self._slots:
            self._lane(self._at(key)).distrust(key)

    @asynccontextmanager
    async def pubsub(self) -> AsyncIterator[PubSub]:
        """A subscription at any server: what is published at one reaches the subscribers of all."""
        client = self._new_client(random.choice(self._known()))
        try:
            async with client.pubsub() as subscription:
                yield subscription
        finally:
            await client.aclose()

    async def aclose(self) -> None:
        for lane in self._lanes.values():
            await lane.aclose()

    async def _ask(
        self,
        address: Address,
        keys: Sequence[str],
        parts: Sequence[Buffer],
        instead: Sequence[Buffer] | None,
        deadline: float,
    ) -> list[Any]:
        try:
            return await self._lane(address).execute(keys, parts, instead, deadline)
        except TierBroken as error:
            self._doubted = True  # a replica may have taken its place
            return [error] * len(keys)

    async def _followed(
        self, key: str, parts: Sequence[Buffer], instead: Sequence[Buffer] | None, deadline: float, reply: Any
    ) -> Any:
        """The reply of the server that a redirection names, or what is no redirection."""
        for _ in range(_REDIRECTS):
            redirection = _redirection(reply)
            if redirection is None:
                break
            word, slot, host, port = redirection
            address = (host or self._slots[slot][0], port)  # no host means that of the server that said it
            if word == "MOVED":
                self._slots[slot], self._doubted = address, True
                reply = (await self._ask(address, [key], parts, instead, deadline))[-1]
            else:
                again = [_ASKING, *instead] if instead else None
                reply = (await self._ask(address, [key, key], [_ASKING, *parts], again, deadline))[-1]
        return reply

    def _at(self, key: str) -> Address:
        return self._slots[crc_hqx(key.encode(), 0) % _COUNT]

    def _lane(self, address: Address) -> Lane:
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = self._new_lane(address)
        return lane

    def _known(self) -> list[Address]:
        return list(self._primaries.union(self._seeds))

    async def _look(self, deadline: float) -> None:
        """See to it that there is a map; callers that come while another looks share its outcome, or go by the old one."""
        if self._slots and (
            not self._doubted or self._mapping.locked() or asyncio.get_running_loop().time() - self._looked_at < _DOUBT
        ):
            return
        looks = self._looks
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._mapping.acquire()
            try:
                if looks == self._looks:
                    await self._look_around(deadline)
                    self._looks += 1
            finally:
                self._mapping.release()
        if not self._slots:
            raise TierBroken(GONE)

    async def _look_around(self, deadline: float) -> None:
        known, loop = self._known(), asyncio.get_running_loop()
        random.shuffle(known)
        self._looked_at = loop.time()
        for address in known:
            # Half the time each: one that hangs must not keep us from asking another. Who looks next begins with others.
            try:
                async with asyncio.timeout_at(min(loop.time() + self._timeout / 2, deadline)):
                    [reply] = await self._lane(address).execute([""], [_SLOTS], None, deadline)
            except (TierBroken, TimeoutError):
                if loop.time() < deadline:
                    continue
                return
            if not isinstance(reply, hiredis.ReplyError) and await self._draw(reply, address):
                return

    async def _draw(self, ranges: Any, asked: Address) -> bool:
        try:
            covered = _covered(ranges, asked)
        except (TypeError, ValueError, AttributeError):  # this is no map
            self._lane(asked).distrust("")
            return False
        if len(covered) < _COUNT:
            return False
        self._slots, self._primaries, self._doubted = covered, set(covered), False
        for address in set(self._lanes) - self._primaries:
            await self._lanes.pop(address).aclose()
        return True


def _covered(ranges: Any, asked: Address) -> list[Address]:
    """The primaries of the slots that have one, as CLUSTER SLOTS tells them: `[first, last, [host, port, ...], replicas ...]`."""
    slots: list[Address | None] = [None] * _COUNT
    for first, last, (host, port, *_), *_replicas in ranges:
        address = ((host or b"").decode() or asked[0], port)
        slots[first : last + 1] = [address] * (last + 1 - first)
    return [address for address in slots if address is not None]


def _redirection(reply: Any) -> tuple[str, int, str, int] | None:
    """Its word, slot, host and port: `MOVED 3999 10.0.0.1:6381` or `ASK 3999 10.0.0.1:6381`."""
    found = fullmatch(r"(MOVED|ASK) (\d{1,5}) (.*):(\d{1,5})", str(reply)) if isinstance(reply, hiredis.ReplyError) else None
    if found is None or int(found[2]) >= _COUNT:
        return None
    return found[1], int(found[2]), found[3], int(found[4])
