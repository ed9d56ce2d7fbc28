"""A link to Redis from REDIS_URL: one server, the primary that Sentinels name, or a Cluster.

A link has a `lane` for commands, `pubsub` for bells, and `aclose`. Those to one server are redis-py clients beside their lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, cast

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as BrokenConnection

from broker_edge.backends.redis_cluster import Cluster
from broker_edge.backends.redis_dial import Address, Endpoint, Find, Several
from broker_edge.backends.redis_lane import Lane
from broker_edge.backends.redis_wire import Buffer

_CLUSTER_PORT = 6379
_SENTINEL_PORT = 26_379


class Commands(Protocol):
    """What executes packed commands: see `redis_lane.Lane`."""

    async def execute(
        self, keys: Sequence[str], parts: Sequence[Buffer], instead: Sequence[Buffer] | None = None
    ) -> list[Any]: ...

    async def probe(self) -> None: ...

    def distrust(self, key: str) -> None: ...


class Link(Protocol):
    @property
    def lane(self) -> Commands: ...

    def pubsub(self) -> AbstractAsyncContextManager[PubSub]: ...

    async def aclose(self) -> None: ...


class LaneRedis(Redis):
    """A redis-py client with a lane to the same server; its pool connects when it is used, for subscriptions above all."""

    lane: Lane
    sentinels: Sequence[Redis] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self.lane.aclose()
        await super().aclose(close_connection_pool)
        for sentinel in self.sentinels:
            await sentinel.aclose()


def connect(url: str, timeout: float) -> Any:
    """A `Link`: to the server of a `redis://`, `rediss://` or `unix://` URL, to the primary that the Sentinels of a
    `redis+sentinel://` URL name at every dial, both of which are redis-py clients too, or to a `redis+cluster://`.

    It never waits longer than `timeout` seconds for one answer, and tries a broken connection once more.
    """
    kind = url.partition("://")[0].partition("+")[2]
    if kind == "cluster":
        return _of_cluster(url, timeout)
    if kind == "sentinel":
        return _of_sentinels(url, timeout)
    return _of_pool(BlockingConnectionPool.from_url(url, timeout=timeout, max_connections=64, **_patience(timeout)), timeout)


def _patience(timeout: float) -> dict[str, Any]:
    # Not again after a time-out: what did not answer once would be waited for twice.
    again = Retry(NoBackoff(), 1, supported_errors=(BrokenConnection,))
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": again, "health_check_interval": 0}


def _of_pool(pool: Any, timeout: float, find: Find | None = None) -> LaneRedis:
    link = cast(LaneRedis, LaneRedis.from_pool(pool))
    link.lane = Lane(Endpoint(pool.make_connection(), find).dial, timeout)
    return link


def _of_sentinels(url: str, timeout: float) -> LaneRedis:
    several = Several.read(url, _SENTINEL_PORT, own="sentinel_")
    service, *database = several.path
    options: dict[str, Any] = dict(parse_url(several.single))
    tls = options.pop("connection_class", None) is not None
    trust = {name: value for name, value in options.items() if name.startswith("ssl_")} | ({"ssl": True} if tls else {})
    # A share of the time each: one that hangs must not keep us from asking the next.
    share = timeout / (len(several.addresses) + 1)
    own = {name.removeprefix("sentinel_"): value for name, value in several.options.items()}
    patience = _patience(share) | {"retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(several.addresses, sentinel_kwargs={**trust, **own, **patience})  # type: ignore[no-untyped-call]
    given = {"db": int(database[0])} if database and database[0] else {}
    settings = {**given, **options, **trust, **_patience(timeout)}
    pool = SentinelConnectionPool(service, manager, **settings)  # type: ignore[no-untyped-call]
    link = _of_pool(pool, timeout, pool.get_master_address)
    link.sentinels = manager.sentinels
    return link


def _of_cluster(url: str, timeout: float) -> Cluster:
    several = Several.read(url, _CLUSTER_PORT)

    def pool(address: Address) -> Any:
        pool = ConnectionPool.from_url(several.single, **_patience(timeout))
        pool.connection_kwargs.update(host=address[0], port=address[1])
        return pool

    def lane(address: Address) -> Lane:
        return Lane(Endpoint(pool(address).make_connection()).dial, timeout)

    def client(address: Address) -> Redis:
        return Redis.from_pool(pool(address))

    return Cluster(several.addresses, lane, client, timeout)
