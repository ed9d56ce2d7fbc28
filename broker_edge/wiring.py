"""build(settings) -> Edge: the only file that names concrete backends."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge import __version__
from broker_edge.api.fetch import Sink
from broker_edge.api.ops import Probe, Prober, State
from broker_edge.backends.dns import SystemResolver
from broker_edge.backends.http_httpx import HttpxTransport
from broker_edge.backends.http_pyreqwest import PyreqwestTransport
from broker_edge.backends.memory import LoneFleet, MemoryHot
from broker_edge.backends.migrations import current, head
from broker_edge.backends.near import NearCache
from broker_edge.backends.redis_link import RedisFleet, RedisHot, connect
from broker_edge.backends.redis_tracking import RedisTracking
from broker_edge.backends.spool import FileSpool
from broker_edge.backends.sql_durable import SqlDurable, make_engine
from broker_edge.core.ids import uuid7, uuid7_bytes
from broker_edge.core.trail import FlightTrail
from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.broker import Broker
from broker_edge.flow.flights import Flights
from broker_edge.flow.journal import Journal
from broker_edge.flow.refill import Kitchen
from broker_edge.flow.tiers import Tiers
from broker_edge.flow.upstream import Upstream
from broker_edge.guard.addresses import AddressGuard
from broker_edge.ports import Fleet, HotTier, Transport
from broker_edge.settings import SERVER_SHARE, Settings, metrics_directory, otel_environment
from broker_edge.telemetry.logs import Log
from broker_edge.telemetry.metrics import Metrics
from broker_edge.telemetry.otel import Tracing

_ADOPTION = 5.0  # seconds between looks for the spool segments of workers that died
_DEAF = 2.0  # seconds between tries to listen again while Redis is gone
_ADDRESSES = 2.0  # seconds between looks at the addresses whose time is nearly over
_PROBE = 5.0  # seconds between looks at the dependencies when nobody asks
_SLOWEST_LOOK = 4.0  # in time-outs of Redis: dialling and asking, each at most twice
_SHORTEST_BATCH = 30.0  # seconds that the database has at least for a batch of rows, which is larger than a request's store
_REFRESH = 2.0  # seconds between updates of the gauges that other workers' scrapes show


class NotMigrated(Exception):
    """The database is not at the revision that this version needs."""


def new_id() -> uuid.UUID:
    return uuid7(time.time(), random.getrandbits(74))


def new_row_id() -> bytes:
    return uuid7_bytes(time.time(), random.getrandbits(74))


@dataclass(slots=True)
class Edge:
    """One process's edge: everything that was built, and how it starts and stops."""

    settings: Settings
    broker: Broker
    journal: Journal
    spool: FileSpool
    rejected: FileSpool
    tracing: Tracing
    metrics: Metrics
    log: Log
    prober: Prober
    background: Background
    hot: HotTier
    durable: SqlDurable
    engine: AsyncEngine
    transport: Transport
    resolver: SystemResolver
    fleet: Fleet
    tracking: RedisTracking | None
    sinks: Sequence[Sink]

    async def start(self) -> None:
        """Check the database's revision, then start the loops; raises NotMigrated."""
        await check_migrated(self.engine)
        self.background.supervise("journal", self.journal.ship_forever)
        self.background.supervise("adoption", self._adopt)
        self.background.supervise("probes", self._probe)
        self.background.supervise("addresses", self.resolver.refresh, _ADDRESSES)
        if self.spool.torn_bytes:
            self.log.event("a torn tail was cut from the spool", bytes=self.spool.torn_bytes)
        if isinstance(self.fleet, RedisFleet):
            self.background.supervise("bells", self.fleet.hear, _DEAF)
        if self.tracking is not None:
            self.background.supervise("near", self.tracking.follow, _DEAF)
        if metrics_directory() is not None:
            self.background.supervise("gauges", self._refresh)

    async def stop(self) -> None:
        """Finish the work in hand, flush the journal and the spans, close everything."""
        left = self.settings.shutdown_timeout * (1 - SERVER_SHARE)
        late = await self.background.drain(left / 2)
        await self.background.stop()
        await self.journal.flush(left / 2)
        self.spool.close()
        self.rejected.close()
        await self.transport.aclose()
        await self.resolver.aclose()
        if self.tracking is not None:
            await self.tracking.aclose()
        await self.hot.aclose()
        await self.durable.aclose()
        self.metrics.refresh()
        await asyncio.to_thread(self.tracing.close, left / 2)
        empty = self.spool.backlog_frames == 0  # at the very end: what outlived its cancellation may have written since the flush
        self.log.event("stopped", unfinished=late, journal="empty" if empty else "waits for the next start")

    async def _adopt(self) -> None:
        await asyncio.sleep(_ADOPTION)
        if self.spool.adopt():
            self.journal.wake()

    async def _probe(self) -> None:
        await self.prober.report()
        await asyncio.sleep(_PROBE)

    async def _refresh(self) -> None:
        while True:
            self.metrics.refresh()
            await asyncio.sleep(_REFRESH)


async def check_migrated(engine: AsyncEngine) -> None:
    revision = await current(engine)
    if revision != head():
        raise NotMigrated(
            f"the database is at revision {revision or 'none'}, this version needs {head()}: run `broker-edge migrate`"
        )


def build(settings: Settings, logger: structlog.typing.FilteringBoundLogger) -> Edge:
    log = Log(logger)
    background = Background(log.failure)
    metrics = Metrics(__version__, metrics_directory())
    hot, fleet = _hot_and_fleet(settings)
    tracking = _tracking(settings, log)
    engine = make_engine(settings.database, settings.db_pool_size)
    durable = SqlDurable(engine)
    systems = {"hot": "redis" if settings.redis_url else "memory", "durable": "sqlite" if settings.embedded else "postgresql"}
    tracing = Tracing(otel_environment(), __version__, systems)
    sinks = (metrics, log, tracing)
    spool, rejected = _spool(settings, "spool"), _spool(settings, "rejected")
    journal = Journal(spool, durable, rejected, new_row_id, within=max(_SHORTEST_BATCH, 6 * settings.db_timeout))
    transport, resolver = _transport(settings), SystemResolver()
    upstream = _upstream(settings, transport, resolver)
    near = tracking.near if tracking else None
    tiers = _tiers(settings, near, hot, durable, journal, background)
    kitchen = Kitchen(tiers, upstream, background, new_object_id=new_id, check_spool=spool.check)
    edge = Edge(
        settings=settings,
        broker=Broker(kitchen, _flights(settings, fleet, background, log, sinks)),
        journal=journal,
        spool=spool,
        rejected=rejected,
        tracing=tracing,
        metrics=metrics,
        log=log,
        prober=Prober(_probes(systems, hot, durable, spool, journal)),
        background=background,
        hot=hot,
        durable=durable,
        engine=engine,
        transport=transport,
        resolver=resolver,
        fleet=fleet,
        tracking=tracking,
        sinks=sinks,
    )
    _watch(edge, upstream)
    return edge


def _tiers(
    settings: Settings, near: NearCache | None, hot: HotTier, durable: SqlDurable, journal: Journal, background: Background
) -> Tiers:
    return Tiers(
        hot,
        durable,
        journal,
        background,
        hot_max_value=settings.hot_max_value_bytes,
        durable_timeout=settings.db_timeout,
        near=near,
        slowest_look=_SLOWEST_LOOK * settings.redis_timeout,
        random=random.random,
    )


def _upstream(settings: Settings, transport: Transport, resolver: SystemResolver) -> Upstream:
    return Upstream(
        transport,
        AddressGuard(resolver, settings.allowed_private_hosts),
        max_encoded=settings.max_encoded_bytes,
        max_decoded=settings.max_decoded_bytes,
        random=random.random,
    )


def _flights(settings: Settings, fleet: Fleet, background: Background, log: Log, sinks: Sequence[Sink]) -> Flights:
    def ended(trail: FlightTrail) -> None:
        for sink in sinks:
            try:
                sink.flight(trail)
            except Exception as error:  # noqa: BLE001 a sink that fails must not take a paid answer with it
                log.failure("sink", error)

    return Flights(
        fleet,
        background,
        lease=settings.flight_lease,
        wait=settings.flight_wait,
        new_token=lambda: f"{random.getrandbits(64):016x}",
        on_end=ended,
        on_failure=log.failure,
    )


def _hot_and_fleet(settings: Settings) -> tuple[HotTier, Fleet]:
    if settings.redis_url is None:
        memory = MemoryHot(settings.memory_tier_bytes)
        return memory, LoneFleet(memory)
    link = connect(settings.redis_url.get_secret_value(), settings.redis_timeout)
    return RedisHot(link), RedisFleet(link)


def _tracking(settings: Settings, log: Log) -> RedisTracking | None:
    """What keeps the near tier right; none in the embedded default, whose hot tier is near."""
    if settings.redis_url is None or settings.near_tier_bytes == 0:
        return None
    url = settings.redis_url.get_secret_value()
    if "+cluster" in url.partition("://")[0]:
        log.event("no near tier", reason="every primary of a Redis Cluster would have to be listened to")
        return None
    return RedisTracking(connect(url, settings.redis_timeout), NearCache(settings.near_tier_bytes), settings.redis_timeout)


def _spool(settings: Settings, name: str) -> FileSpool:
    return FileSpool(settings.data_dir / name, segment_bytes=settings.spool_segment_bytes, max_bytes=settings.spool_max_bytes)


def _transport(settings: Settings) -> Transport:
    extra_ca = settings.upstream_ca_file.read_bytes() if settings.upstream_ca_file else None
    engine = PyreqwestTransport if settings.http_engine == "pyreqwest" else HttpxTransport
    return engine(connect_timeout=settings.connect_timeout, extra_ca=extra_ca, max_in_flight=settings.origin_max_in_flight)


def _probes(systems: dict[str, str], hot: HotTier, durable: SqlDurable, spool: FileSpool, journal: Journal) -> dict[str, Probe]:
    async def hot_state() -> State:
        await hot.ping()
        return "ok"

    async def durable_state() -> State:
        await durable.ping()
        return "ok"

    async def journal_state() -> State:
        if spool.full:
            raise TierBroken("the spool is full")
        return "degraded" if journal.failing else "ok"

    return {
        "hot": Probe(systems["hot"], hot_state),
        "durable": Probe(systems["durable"], durable_state),
        "journal": Probe("spool", journal_state, vital=True),
    }


def _watch(edge: Edge, upstream: Upstream) -> None:
    journal, spool, metrics = edge.journal, edge.spool, edge.metrics
    metrics.watch("broker_edge_upstream_in_flight", lambda: upstream.in_flight)
    metrics.watch("broker_edge_journal_backlog_rows", lambda: spool.backlog_frames)
    metrics.watch("broker_edge_journal_spool_bytes", lambda: spool.backlog_bytes)
    metrics.watch("broker_edge_journal_oldest_seconds", journal.waiting_for)
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.appended, "appended")
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.shipped, "shipped")
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.rejected, "rejected")
    if edge.tracking is not None:
        near = edge.tracking.near
        metrics.watch("broker_edge_near_tier_bytes", lambda: near.bytes_held)
    metrics.watch("broker_edge_spans_dropped_total", lambda: edge.tracing.dropped)
    for name in edge.prober.up:
        metrics.watch("broker_edge_dependency_up", partial(edge.prober.is_up, name), name)
