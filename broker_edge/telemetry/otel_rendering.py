"""What a closed trail says in spans: names, kinds and attributes by OpenTelemetry's HTTP, database and client conventions.

Our own attributes are `broker.*`. A span's shape, that is all that doesn't differ between two requests with the same outcome, is
made once and kept; ids, times and a few attributes remain for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from opentelemetry.trace import SpanKind

from broker_edge.core.trail import Fact, FlightTrail, Record, Trail
from broker_edge.telemetry.otel_spans import NO_ATTRIBUTES, Spans

ROUTE = "POST /v1/fetch-data"
_SHAPES = 1024  # of each kind of span; the words that they are made of are the edge's own, and make a few dozen


class Rendering:
    """Renders trails; `systems` names the database system behind each tier (OpenTelemetry's names)."""

    def __init__(self, spans: Spans, systems: Mapping[str, str]) -> None:
        self._spans = spans
        self._systems = {"near": "memory", **systems}
        self._server = lru_cache(_SHAPES)(self._server_shape)
        self._tier = lru_cache(_SHAPES)(self._tier_shape)
        self._attempt = lru_cache(_SHAPES)(self._attempt_shape)

    @property
    def dropped(self) -> int:
        return self._spans.dropped

    def answer(self, trail: Trail) -> None:
        """Render a closed trail and its facts."""
        if not self._spans.room(len(trail.facts) + 1):
            return
        fetched, error = trail.fetched, trail.error
        shape = self._server(
            trail.status, trail.outcome, trail.mode, fetched.origin if fetched else None, error.code if error else None
        )
        optional = {
            "broker.key": trail.key,
            "broker.run_id": trail.run_id,
            "broker.data_source_id": trail.source_id,
            "broker.data_object_id": fetched.entry.object_id if fetched else None,
        }
        own = {name: value for name, value in optional.items() if value is not None}
        remote = trail.outcome != "test"
        self._spans.add(shape, trail.context, trail.started_at, trail.ended_at or trail.started_at, own, remote=remote)
        self._facts(trail)

    def flight(self, trail: FlightTrail) -> None:
        """Render the shared work of a flight and its facts."""
        if not self._spans.room(len(trail.facts) + 1):
            return
        failed = None if trail.result == "ok" else trail.result
        shape = self._spans.shape("flight", SpanKind.INTERNAL, {"broker.flight.result": trail.result}, failed)
        self._spans.add(shape, trail.context, trail.started_at, trail.ended_at or trail.started_at)
        self._facts(trail)

    def _facts(self, record: Record) -> None:
        for fact in record.facts:
            if fact.kind == "flight":
                self._wait(record, fact)
            elif fact.kind == "attempt":
                self._call(fact)
            else:
                shape = self._tier(fact.kind, fact.subject, fact.result)
                self._spans.add(shape, record.branch(), fact.started_at, fact.ended_at)

    def _call(self, fact: Fact) -> None:
        assert fact.context is not None  # noqa: S101 an attempt's context went upstream with it
        attributes = fact.attributes or NO_ATTRIBUTES
        failed = None if fact.result == "ok" else fact.result
        error_type = str(attributes.get("http.response.status_code", failed)) if failed else None
        shape = self._attempt(fact.subject, failed, error_type)
        self._spans.add(shape, fact.context, fact.started_at, fact.ended_at, attributes)

    def _wait(self, record: Record, fact: Fact) -> None:
        """A follower's wait, linked to the flight that it waited for; the leader's is the flight's own span."""
        if fact.subject == "leader":
            return
        attributes = {"broker.flight.role": fact.subject, "broker.flight.result": fact.result}
        shape = self._spans.shape(f"flight {fact.subject}", SpanKind.INTERNAL, attributes)
        self._spans.add(shape, record.branch(), fact.started_at, fact.ended_at, link=fact.context)

    def _server_shape(self, status: int, outcome: str, mode: str, origin: str | None, code: str | None) -> Any:
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "http.route": "/v1/fetch-data",
            "url.path": "/v1/fetch-data",
            "url.scheme": "http",
            "http.response.status_code": status,
            "broker.outcome": outcome,
            "broker.mode": mode,
        }
        attributes |= {name: value for name, value in (("broker.origin", origin), ("error.type", code)) if value is not None}
        failed = code if status >= 500 else None
        if outcome == "test":  # its route has the server's span
            own = {name: value for name, value in attributes.items() if name.startswith(("broker.", "error."))}
            return self._spans.shape("test", SpanKind.INTERNAL, own, failed)
        return self._spans.shape(ROUTE, SpanKind.SERVER, attributes, failed)

    def _tier_shape(self, kind: str, tier: str, result: str) -> Any:
        system = self._systems.get(tier)
        operation = _OPERATIONS.get((kind, tier), kind.upper())
        attributes = {"db.operation.name": operation, "broker.tier": tier, "broker.result": result}
        if system is not None:
            attributes["db.system.name"] = system
        if tier == "durable":
            attributes["db.collection.name"] = "run_data_cache" if kind == "lookup" else "data_object"
        failed = result if result in ("broken", "spooled") else None
        inside = system is None or system == "memory"
        return self._spans.shape(f"{operation} {tier}", SpanKind.INTERNAL if inside else SpanKind.CLIENT, attributes, failed)

    def _attempt_shape(self, method: str, failed: str | None, error_type: str | None) -> Any:
        return self._spans.shape(method, SpanKind.CLIENT, {"error.type": error_type} if error_type else NO_ATTRIBUTES, failed)


_OPERATIONS = {
    ("lookup", "near"): "GET",
    ("store", "near"): "SET",
    ("lookup", "hot"): "GET",
    ("store", "hot"): "SET",
    ("lookup", "durable"): "SELECT",
    ("store", "durable"): "INSERT",
}
