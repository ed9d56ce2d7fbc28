"""Keeps the near tier right: one connection on which Redis tells of every entry that changed, expired, was deleted or evicted.

CLIENT TRACKING in broadcast mode needs no word from us for what we read, so that look-ups may use any connection. The news are
RESP3 pushes on the connection itself: an array of keys for what changed in one turn of Redis's event loop, null for a flush.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from hiredis import PushNotification, Reader, ReplyError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_edge.backends.near import NearCache
from broker_edge.errors import TierBroken

_TRACK: Final = (("HELLO", "3"), ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "be:{"))
_HEAD: Final = len("be:{")
_CHUNK: Final = 256 * 1024
# Seconds between reads. A busy fleet makes thousands of small messages a second: taken together they cost 0.4 of the CPU.
_GATHER: Final = 0.01
_SILENCE: Final = 1.0  # seconds without a word before the connection is tried
_UNWELCOME: Final = 60.0  # seconds until a server that refuses is asked again: it is too old, or its access rules forbid it
_INCOMPLETE: Final = object()


class RedisTracking:
    """`follow` must run for as long as the near tier is to serve; `redis` says how to connect, by Sentinel for instance.

    Fails open: without the connection the near tier is empty and the hot tier serves. A connection that is dead without a word
    is found out within `_SILENCE` plus `patience` seconds; nothing is served longer than that against Redis's word.
    """

    def __init__(self, redis: Redis, near: NearCache, patience: float) -> None:
        self._redis = redis
        self.near = near
        self._patience = patience
        self._unwelcome = False

    async def follow(self) -> None:
        """Open the near tier and apply the news while the connection lasts. Raises TierBroken."""
        if self._unwelcome:
            await asyncio.sleep(_UNWELCOME)
        pool: Any = self._redis.connection_pool
        connection = pool.make_connection()
        try:
            await connection.connect()
            await self._listen(connection, Reader(encoding="latin-1", notEnoughData=_INCOMPLETE))
        except (RedisError, OSError, TimeoutError):
            raise TierBroken("Redis can't be reached") from None
        finally:
            self.near.close()
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _listen(self, connection: Any, reader: Reader) -> None:
        for command in _TRACK:
            await connection.send_command(*command, check_health=False)
        await self._agreed(connection, reader)
        self.near.open()
        self._apply(reader)
        while True:
            try:
                await self._read(connection, reader, _SILENCE)
            except TimeoutError:
                await connection.send_command("PING", check_health=False)
                await self._read(connection, reader, self._patience)
            self._apply(reader)
            await asyncio.sleep(_GATHER)

    async def _agreed(self, connection: Any, reader: Reader) -> None:
        """Wait for the answers to what was sent first; what changes from then on is told."""
        for _ in _TRACK:
            while (answer := reader.gets()) is _INCOMPLETE:
                await self._read(connection, reader, self._patience)
            self._unwelcome = isinstance(answer, ReplyError)
            if self._unwelcome:
                raise TierBroken("Redis refuses to tell what changes")

    async def _read(self, connection: Any, reader: Reader, within: float) -> None:
        """Some more bytes. The stream below redis-py's parser, which would take a call and a time-out for every message."""
        stream: asyncio.StreamReader = connection._reader
        async with asyncio.timeout(within):
            data = await stream.read(_CHUNK)
        if not data:
            raise TierBroken("Redis ended the connection")
        reader.feed(data)

    def _apply(self, reader: Reader) -> None:
        changed: list[str] = []
        while (message := reader.gets()) is not _INCOMPLETE:
            if isinstance(message, ReplyError):
                raise TierBroken("Redis refuses")
            if isinstance(message, PushNotification) and message[0] == "invalidate":
                if message[1] is None:  # a flush
                    self.near.drop()
                else:
                    changed += message[1]
        # `be:{<key>}` is an entry; the lease and the bell of its flight go on after the brace.
        self.near.forget([name[_HEAD:-1] for name in changed if name[-1] == "}"])
