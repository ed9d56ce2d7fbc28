"""What can be seen of a running edge: the states of its dependencies, and its gauges."""

from __future__ import annotations

from functools import partial

from broker_edge.api.ops import Probe, State
from broker_edge.backends.spool import FileSpool
from broker_edge.backends.sql_durable import SqlDurable
from broker_edge.errors import TierBroken
from broker_edge.flow.backoff import Backoff
from broker_edge.flow.journal import Journal
from broker_edge.flow.key_watch import KeyWatch
from broker_edge.flow.upstream import Upstream
from broker_edge.ports import HotTier
from broker_edge.wiring.edge import Edge


def probes(
    systems: dict[str, str], hot: HotTier, durable: SqlDurable, spool: FileSpool, journal: Journal, keys: KeyWatch
) -> dict[str, Probe]:
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

    async def vault_state() -> State:
        return "degraded" if keys.failing else "ok"

    return {
        "hot": Probe(systems["hot"], hot_state),
        "durable": Probe(systems["durable"], durable_state),
        "journal": Probe("spool", journal_state, vital=True),
        "vault": Probe("key-ring", vault_state),
    }


def watch(edge: Edge, upstream: Upstream, backoff: Backoff) -> None:
    journal, spool, metrics = edge.journal, edge.spool, edge.metrics
    metrics.watch("broker_edge_upstream_in_flight", lambda: upstream.in_flight)
    metrics.watch("broker_edge_refills_held_back_total", lambda: backoff.held_back)
    metrics.watch("broker_edge_journal_backlog_rows", lambda: spool.backlog_frames)
    metrics.watch("broker_edge_journal_spool_bytes", lambda: spool.backlog_bytes)
    metrics.watch("broker_edge_journal_oldest_seconds", journal.waiting_for)
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.appended, "appended")
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.shipped, "shipped")
    metrics.watch("broker_edge_journal_rows_total", lambda: journal.rejected, "rejected")
    if edge.tracking is not None:
        near = edge.tracking.near
        metrics.watch("broker_edge_near_tier_bytes", lambda: near.bytes_held)
    metrics.watch("broker_edge_registry_age_seconds", edge.registry.age)
    metrics.watch("broker_edge_registry_sources", lambda: len(edge.registry))
    metrics.watch("broker_edge_spans_dropped_total", lambda: edge.tracing.dropped)
    for name in edge.prober.up:
        metrics.watch("broker_edge_dependency_up", partial(edge.prober.is_up, name), name)
