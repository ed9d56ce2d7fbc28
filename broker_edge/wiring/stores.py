"""The backends that settings ask for: tiers, spools, and what calls upstreams."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.bus_local import LocalBus
from broker_edge.backends.bus_postgres import PostgresBus
from broker_edge.backends.bus_redis import RedisBus
from broker_edge.backends.dns import SystemResolver
from broker_edge.backends.http_httpx import HttpxTransport
from broker_edge.backends.http_pyreqwest import PyreqwestTransport
from broker_edge.backends.memory import LoneFleet, MemoryHot
from broker_edge.backends.near import NearCache
from broker_edge.backends.redis_connect import Link, connect
from broker_edge.backends.redis_link import RedisFleet, RedisHot
from broker_edge.backends.redis_tracking import RedisTracking
from broker_edge.backends.spool import FileSpool
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.backends.sql_sources import SqlSources
from broker_edge.flow.journal import Journal
from broker_edge.flow.registry import Registry
from broker_edge.flow.upstream import Upstream
from broker_edge.guard.addresses import AddressGuard
from broker_edge.ports import Bus, Fleet, HotTier, Transport
from broker_edge.settings import Settings
from broker_edge.telemetry.logs import Log

_SHORTEST_BATCH = 30.0  # seconds that the database has at least for a batch of rows, which is larger than a request's store


def make_hot(settings: Settings) -> tuple[Link | None, HotTier, Fleet]:
    """The hot tier and the fleet, behind the link to Redis that they share, where there is one."""
    if settings.redis_url is None:
        memory = MemoryHot(settings.memory_tier_bytes)
        return None, memory, LoneFleet(memory)
    link = connect(settings.redis_url.get_secret_value(), settings.redis_timeout)
    return link, RedisHot(link), RedisFleet(link)


def make_durable(settings: Settings) -> tuple[AsyncEngine, SqlDurable]:
    """The database, and the durable tier that is in it."""
    engine = make_engine(settings.database, settings.db_pool_size)
    return engine, SqlDurable(engine)


def make_bus(settings: Settings, engine: AsyncEngine, link: Link | None) -> Bus:
    """What tells other processes of changes to the registry: the database if it can, else Redis, else nobody hears but we."""
    if not settings.embedded:
        return PostgresBus(engine, settings.db_timeout)
    return LocalBus() if link is None else RedisBus(link, settings.redis_timeout)


def make_registry(
    settings: Settings, engine: AsyncEngine, durable: SqlDurable, link: Link | None, new_id: Callable[[], UUID], log: Log
) -> Registry:
    sources, bus = SqlSources(engine, durable.writer), make_bus(settings, engine, link)
    return Registry(sources, bus, new_id=new_id, timeout=settings.db_timeout, on_failure=log.failure)


def make_tracking(settings: Settings, log: Log) -> RedisTracking | None:
    """What keeps the near tier right; none in the embedded default, whose hot tier is near."""
    if settings.redis_url is None or settings.near_tier_bytes == 0:
        return None
    url = settings.redis_url.get_secret_value()
    if "+cluster" in url.partition("://")[0]:
        log.event("no near tier", reason="every primary of a Redis Cluster would have to be listened to")
        return None
    return RedisTracking(connect(url, settings.redis_timeout), NearCache(settings.near_tier_bytes), settings.redis_timeout)


def make_journal(
    settings: Settings, durable: SqlDurable, new_row_id: Callable[[], bytes]
) -> tuple[FileSpool, FileSpool, Journal]:
    """The journal, behind its spool and the one for rows that the database refuses."""
    spool, rejected = _spool(settings, "spool"), _spool(settings, "rejected")
    return spool, rejected, Journal(spool, durable, rejected, new_row_id, within=max(_SHORTEST_BATCH, 6 * settings.db_timeout))


def _spool(settings: Settings, name: str) -> FileSpool:
    return FileSpool(settings.data_dir / name, segment_bytes=settings.spool_segment_bytes, max_bytes=settings.spool_max_bytes)


def _transport(settings: Settings) -> Transport:
    extra_ca = settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None
    engine = PyreqwestTransport if settings.http_engine == "pyreqwest" else HttpxTransport
    return engine(connect_timeout=settings.connect_timeout, extra_ca=extra_ca, max_in_flight=settings.origin_max_in_flight)


def make_upstream(settings: Settings) -> tuple[Transport, SystemResolver, Upstream]:
    """What calls upstreams, behind what it calls them by."""
    transport, resolver = _transport(settings), SystemResolver()
    upstream = Upstream(
        transport,
        AddressGuard(resolver, settings.allowed_private_hosts),
        max_encoded=settings.max_encoded_bytes,
        max_decoded=settings.max_decoded_bytes,
        random=random.random,
    )
    return transport, resolver, upstream
