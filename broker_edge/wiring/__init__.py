"""build(settings) -> Edge: the only room that names concrete backends."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence

import structlog

from broker_edge import __version__
from broker_edge.api.fetch import Sink
from broker_edge.api.ops import Prober
from broker_edge.backends.near import NearCache
from broker_edge.backends.sql_analytics import SqlAnalytics
from broker_edge.backends.sql_archive import SqlArchive
from broker_edge.backends.sql_durable import SqlDurable
from broker_edge.core.ids import uuid7, uuid7_bytes
from broker_edge.core.trail import FlightTrail
from broker_edge.flow.background import Background
from broker_edge.flow.broker import Broker
from broker_edge.flow.flights import Flights
from broker_edge.flow.journal import Journal
from broker_edge.flow.kitchen import Kitchen
from broker_edge.flow.tiers import Tiers
from broker_edge.ports import Fleet, HotTier
from broker_edge.settings import Settings, metrics_directory, otel_environment
from broker_edge.telemetry.logs import Log
from broker_edge.telemetry.metrics import Metrics
from broker_edge.telemetry.otel import Tracing
from broker_edge.wiring.edge import Edge, NotMigrated, check_migrated
from broker_edge.wiring.outbound import Outgoing, new_token
from broker_edge.wiring.retention import make_retention
from broker_edge.wiring.stores import (
    make_durable,
    make_hot,
    make_journal,
    make_registry,
    make_tracking,
    make_upstream,
)
from broker_edge.wiring.watching import probes, watch

__all__ = ["Edge", "NotMigrated", "build", "check_migrated", "new_id"]

_SLOWEST_LOOK = 4.0  # in time-outs of Redis: dialling and asking, each at most twice


def new_id() -> uuid.UUID:
    return uuid7(time.time(), random.getrandbits(74))


def new_row_id() -> bytes:
    return uuid7_bytes(time.time(), random.getrandbits(74))


def build(settings: Settings, logger: structlog.typing.FilteringBoundLogger) -> Edge:
    log = Log(logger)
    background = Background(log.failure)
    metrics = Metrics(__version__, metrics_directory())
    link, hot, fleet = make_hot(settings)
    tracking = make_tracking(settings, log)
    engine, durable = make_durable(settings)
    registry = make_registry(settings, engine, durable, link, new_id, log)
    systems = {"hot": "redis" if settings.redis_url else "memory", "durable": "sqlite" if settings.embedded else "postgresql"}
    tracing = Tracing(otel_environment(), __version__, systems)
    sinks = (metrics, log, tracing)
    spool, rejected, journal = make_journal(settings, durable, new_row_id)
    transport, resolver, upstream = make_upstream(settings)
    tiers = _tiers(settings, tracking.near if tracking else None, hot, durable, journal, background)
    outgoing = Outgoing(settings, engine, durable, registry, background, log)
    kitchen = Kitchen(tiers, outgoing.calls(upstream, hot, fleet), background, new_object_id=new_id, check_spool=spool.check)
    edge = Edge(
        settings=settings,
        broker=Broker(kitchen, _flights(settings, fleet, background, log, journal, metrics, sinks)),
        journal=journal,
        spool=spool,
        rejected=rejected,
        tracing=tracing,
        metrics=metrics,
        log=log,
        prober=Prober(probes(systems, hot, durable, spool, journal, outgoing.keys)),
        background=background,
        hot=hot,
        durable=durable,
        engine=engine,
        transport=transport,
        resolver=resolver,
        fleet=fleet,
        tracking=tracking,
        sinks=sinks,
        registry=registry,
        secrets=outgoing.secrets,
        keys=outgoing.keys,
        calls=kitchen.calls,
        analytics=SqlAnalytics(engine),
        retention=make_retention(settings, engine, durable.writer, log.event),
        archive=SqlArchive(engine),
    )
    watch(edge, upstream, kitchen.backoff)
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


def _flights(
    settings: Settings,
    fleet: Fleet,
    background: Background,
    log: Log,
    journal: Journal,
    metrics: Metrics,
    sinks: Sequence[Sink],
) -> Flights:
    def charged(trail: FlightTrail) -> None:
        try:
            metrics.refill(trail)
            journal.record_refill(trail)
        except Exception as error:  # noqa: BLE001 nor must a spool that is full
            log.failure("journal", error, f"{trail.context.trace_id:032x}")

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
        new_token=new_token,
        on_end=ended,
        on_charge=charged,
        on_failure=log.failure,
    )
