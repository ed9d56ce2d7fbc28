"""The registry's bus over Redis' channels, for a database that can't notify."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError

from broker_edge.backends.redis_connect import Link
from broker_edge.backends.redis_wire import GONE, packed
from broker_edge.errors import TierBroken

_CHANNEL: Final = "be:registry"
_SILENCE: Final = 1.0  # seconds without a word before the connection is tried


class RedisBus:
    """`ports.Bus`. A connection that is dead without a word is found out within `_SILENCE` plus `patience` seconds."""

    def __init__(self, redis: Link, patience: float) -> None:
        self._redis = redis
        self._patience = patience

    async def publish(self, data_source_id: UUID) -> None:
        # The key only chooses the server: in a Cluster any of them tells all.
        [reply] = await self._redis.lane.execute((_CHANNEL,), (packed("PUBLISH", _CHANNEL, str(data_source_id)),))
        if not isinstance(reply, int):
            raise TierBroken("Redis refused")

    async def hear(self, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None:
        try:
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(_CHANNEL)
                while True:
                    message = await subscription.get_message(timeout=_SILENCE)
                    if message is None:
                        await subscription.ping()
                        message = await subscription.get_message(timeout=self._patience)
                    _take(message, heard, listening)
        except (RedisError, OSError, TimeoutError):
            raise TierBroken(GONE) from None


def _take(message: dict[str, Any] | None, heard: Callable[[UUID], None], listening: Callable[[], None]) -> None:
    if message is None:
        raise TierBroken("Redis is silent")
    if message["type"] == "subscribe":
        listening()
    elif message["type"] == "message":
        with contextlib.suppress(ValueError):  # somebody else's word
            heard(UUID(message["data"].decode(errors="replace")))
