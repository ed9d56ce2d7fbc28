"""One process's edge: what was built, how it starts and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.api.fetch import Sink
from broker_edge.api.ops import Prober
from broker_edge.backends.dns import SystemResolver
from broker_edge.backends.migrations import NewerDatabase, current, head, is_newer
from broker_edge.backends.redis_link import RedisFleet
from broker_edge.backends.redis_tracking import RedisTracking
from broker_edge.backends.spool import FileSpool
from broker_edge.backends.sql_analytics import SqlAnalytics
from broker_edge.backends.sql_archive import SqlArchive
from broker_edge.backends.sql_durable import SqlDurable
from broker_edge.errors import TierBroken
from broker_edge.flow.background import Background
from broker_edge.flow.broker import Broker
from broker_edge.flow.calling import Calls
from broker_edge.flow.journal import Journal
from broker_edge.flow.key_watch import KeyWatch
from broker_edge.flow.registry import Registry
from broker_edge.flow.retention import Retention
from broker_edge.flow.secrets import Secrets
from broker_edge.ports import Fleet, HotTier, Transport
from broker_edge.settings import SERVER_SHARE, Settings, metrics_directory
from broker_edge.telemetry.logs import Log
from broker_edge.telemetry.metrics import Metrics
from broker_edge.telemetry.otel import Tracing

_ADOPTION = 5.0  # seconds between looks for the spool segments of workers that died
_DEAF = 2.0  # seconds between tries to listen again while Redis is gone
_ADDRESSES = 2.0  # seconds between looks at the addresses whose time is nearly over
_PROBE = 5.0  # seconds between looks at the dependencies when nobody asks
_RETENTION = 60.0  # seconds until housekeeping that met a broken database is tried again
_REFRESH = 2.0  # seconds between updates of the gauges that other workers' scrapes show


class NotMigrated(Exception):
    """The database is not at the revision that this version needs."""


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
    registry: Registry
    secrets: Secrets
    keys: KeyWatch
    calls: Calls
    analytics: SqlAnalytics
    retention: Retention
    archive: SqlArchive

    async def start(self) -> None:
        """Check the database's revision, then start the loops; raises NotMigrated."""
        await check_migrated(self.engine)
        await self._load_sources()
        await self.keys.look()
        self.background.supervise("registry", self.registry.watch)
        self.background.supervise("bus", self.registry.follow, _DEAF)
        self.background.supervise("secrets", self.secrets.count_forever)
        self.background.supervise("keys", self.keys.keep)
        self.background.supervise("journal", self.journal.ship_forever)
        self.background.supervise("adoption", self._adopt)
        self.background.supervise("retention", self.retention.keep, _RETENTION)
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
        await self.secrets.flush()
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

    async def _load_sources(self) -> None:
        try:
            await self.registry.refresh()
        except TierBroken as error:  # fetches by spec need no registry, and it will be loaded once the database answers
            self.log.failure("registry", error)

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
    if is_newer(revision):
        raise NotMigrated(str(NewerDatabase()))
    if revision != head():
        raise NotMigrated(
            f"the database is at revision {revision or 'none'}, this version needs {head()}: run `broker-edge migrate`"
        )
