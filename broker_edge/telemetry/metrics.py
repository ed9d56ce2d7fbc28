"""Prometheus metrics from closed trails, and gauges read at the moment of a scrape.

Labels are bounded: no key, URL or caller's value is ever one. What every hit counts is added up in a dictionary and handed to
prometheus-client in sums, a moment later or when a scrape comes: its own counters and histograms cost a hit four times as much.
With several workers prometheus-client keeps the values in memory-mapped files and every worker can answer for all of them.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from broker_edge.core.trail import Fact, FlightTrail, Record, Trail

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter that nothing here reads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name -> (labels, help); the README's table is checked against it. Counters are exported with `_total`.
COUNTERS: dict[str, tuple[tuple[str, ...], str]] = {
    "broker_edge_requests_total": (("source", "outcome"), "Answers of the fetch endpoints, and tests (outcome `test`)"),
    "broker_edge_tier_lookups_total": (("tier", "result"), "Look-ups in a cache tier"),
    "broker_edge_tier_errors_total": (("tier",), "Look-ups and stores that a tier could not answer"),
    "broker_edge_flights_total": (("role",), "Parts played in single flights, here and in the fleet"),
    "broker_edge_refills_held_back_total": ((), "Refills not begun, because the last one of their key had just failed"),
    "broker_edge_upstream_attempts_total": (("outcome",), "Calls to upstreams, every retry counted"),
    "broker_edge_charged_calls_total": (("source",), "Calls that sources with a price or a budget were charged"),
    "broker_edge_spent_micros_total": (("source", "currency"), "Cost of those calls in millionths; of named sources alone"),
    "broker_edge_stores_total": (("tier", "result"), "Objects put into a tier"),
    "broker_edge_journal_rows_total": (("stage",), "Audit rows: appended to the spool, shipped to the database, rejected by it"),
    "broker_edge_spans_dropped_total": ((), "Spans not exported because the exporter fell behind"),
}
HISTOGRAMS: dict[str, tuple[tuple[str, ...], str]] = {
    "broker_edge_request_duration_seconds": (("outcome",), "Time from the request's arrival to its answer"),
    "broker_edge_upstream_attempt_duration_seconds": ((), "Time of one call to an upstream"),
}
Mode = Literal["livesum", "livemin", "livemax", "mostrecent"]
GAUGES: dict[str, tuple[tuple[str, ...], str, Mode]] = {
    "broker_edge_upstream_in_flight": ((), "Calls to upstreams under way", "livesum"),
    "broker_edge_journal_backlog_rows": ((), "Audit rows in the spool that the database does not have yet", "livesum"),
    "broker_edge_journal_spool_bytes": ((), "Bytes in the spool that the database does not have yet", "livesum"),
    "broker_edge_journal_oldest_seconds": ((), "How long the spool has not been empty", "livemax"),
    "broker_edge_near_tier_bytes": ((), "Bytes that entries in the near tier take up", "livesum"),
    "broker_edge_registry_age_seconds": ((), "Time since data sources were compared with the database", "livemax"),
    "broker_edge_registry_sources": ((), "Data sources in memory, archived ones left out", "livemax"),
    "broker_edge_dependency_up": (("dependency",), "1 where a dependency answered last, 0 where it did not", "livemin"),
    "broker_edge_build_info": (("version",), "Always 1", "mostrecent"),
}
DOCUMENTED: dict[str, str] = {
    **{name: row[1] for name, row in COUNTERS.items()},
    **{name: row[1] for name, row in HISTOGRAMS.items()},
    **{name: row[1] for name, row in GAUGES.items()},
}

_LATER = 0.05  # seconds until another worker's scrape shows what was counted here
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One process's metrics. `watch` registers what is read when a scrape comes; workers share the directory `shared`."""

    def __init__(self, version: str, shared: Path | None = None) -> None:
        self._shared = shared
        self._registry = CollectorRegistry()
        self._counters = {name: Counter(name, text, labels, registry=self._registry) for name, (labels, text) in COUNTERS.items()}
        self._histograms = {
            name: Histogram(name, text, labels, buckets=_BUCKETS, registry=self._registry)
            for name, (labels, text) in HISTOGRAMS.items()
        }
        self._gauges = {
            name: Gauge(name, text, labels, registry=self._registry, multiprocess_mode=mode)
            for name, (labels, text, mode) in GAUGES.items()
        }
        self._watched: dict[tuple[str, tuple[str, ...]], Callable[[], float]] = {}
        self._counted: dict[str, float] = {}
        self._sums: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._durations: defaultdict[str, _Durations] = defaultdict(_Durations)
        self._due = False
        self._child = cache(self._labelled)
        self._seconds = cache(self._histogram)
        self._gauges["broker_edge_build_info"].labels(version).set(1)

    def answer(self, trail: Trail) -> None:
        """Count one closed trail."""
        self._sums["broker_edge_requests_total", trail.source_name or "inline", trail.outcome] += 1
        self._durations[trail.outcome].add((trail.ended_at or 0) - trail.started_at)
        if trail.calls:
            self._charged(trail, trail)
        for fact in trail.facts:
            if fact.kind == "lookup" and fact.result == "hit":
                self._sums["broker_edge_tier_lookups_total", fact.subject, "hit"] += 1
            else:
                self._fact(fact)
        if self._shared is not None and not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_LATER, self._hand_on)

    def flight(self, trail: FlightTrail) -> None:
        """Count the facts of one flight's shared work."""
        for fact in trail.facts:
            self._fact(fact)

    def refill(self, trail: FlightTrail) -> None:
        """Count what a flight spent that no answer's trail accounts for."""
        if trail.opener is not None:
            self._charged(trail, trail.opener)

    def _charged(self, spent: Record, request: Trail) -> None:
        name, price = request.source_name, request.price
        self._child("broker_edge_charged_calls_total", name or "inline").inc(spent.calls)
        if name is not None and price is not None:  # else the currency would be a caller's word
            self._child("broker_edge_spent_micros_total", name, price.currency).inc(spent.cost)

    def _fact(self, fact: Fact) -> None:
        if fact.kind == "lookup":
            self._child("broker_edge_tier_lookups_total", fact.subject, fact.result).inc()
        elif fact.kind == "flight":
            self._child("broker_edge_flights_total", fact.subject).inc()
        elif fact.kind == "attempt":
            self._child("broker_edge_upstream_attempts_total", fact.result).inc()
            self._seconds("broker_edge_upstream_attempt_duration_seconds").observe(fact.ended_at - fact.started_at)
        else:
            self._child("broker_edge_stores_total", fact.subject, fact.result).inc()
        if fact.result in ("broken", "spooled"):
            self._child("broker_edge_tier_errors_total", fact.subject).inc()

    def _hand_on(self) -> None:
        self._due = False
        for (name, *labels), count in self._sums.items():
            self._child(name, *labels).inc(count)
        self._sums.clear()
        for outcome, durations in self._durations.items():
            durations.hand_on(self._seconds("broker_edge_request_duration_seconds", outcome))
        self._durations.clear()
        for (watched, of), read in self._watched.items():
            if watched in self._counters:
                self._catch_up(watched, of, read())

    def watch(self, name: str, read: Callable[[], float], *labels: str) -> None:
        self._watched[name, labels] = read

    def render(self) -> bytes:
        """The exposition text, of all workers where there are several."""
        self.refresh()
        if self._shared is None:
            return generate_latest(self._registry)
        _bury(self._shared)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._shared))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def refresh(self) -> None:
        """Read what is watched. Another worker's scrape shows the values of this one's last refresh."""
        self._hand_on()
        for (name, labels), read in self._watched.items():
            if name in self._gauges:
                gauge = self._gauges[name]
                (gauge.labels(*labels) if labels else gauge).set(read())

    def _catch_up(self, name: str, labels: tuple[str, ...], total: float) -> None:
        """A counter that somebody else keeps as a plain integer."""
        place = f"{name}{labels}"
        self._child(name, *labels).inc(total - self._counted.get(place, 0))
        self._counted[place] = total

    def _labelled(self, name: str, *labels: str) -> Counter:
        counter = self._counters[name]
        return counter.labels(*labels) if labels else counter

    def _histogram(self, name: str, *labels: str) -> Histogram:
        histogram = self._histograms[name]
        return histogram.labels(*labels) if labels else histogram


class _Durations:
    """Observations of one histogram, by bucket."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.seconds += seconds

    def hand_on(self, histogram: Histogram) -> None:
        """prometheus-client takes one observation at a time: these are the sums that it keeps of them."""
        histogram._sum.inc(self.seconds)
        for bucket, count in zip(histogram._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)


def _bury(directory: Path) -> None:
    """Forget the gauges of workers that were killed: nobody else does it for them."""
    for pid in {path.stem.rpartition("_")[2] for path in directory.glob("gauge_live*.db")}:
        try:
            os.kill(int(pid), 0)
        except PermissionError:  # somebody else's process has the number now
            continue
        except ProcessLookupError:
            mark_process_dead(int(pid), str(directory))  # type: ignore[no-untyped-call]
