"""OpenTelemetry spans, rendered from a closed trail: a request that isn't sampled pays for a few random bits and no more.

Ids are drawn when the work begins, because the trace goes on upstream before any span exists; `_GivenIds` hands them to the SDK
when the span is made afterwards. Attributes follow the HTTP, database and client conventions; ours are `broker.*`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from broker_edge.core.trail import Fact, FlightTrail, Record, TraceContext, Trail

# W3C Trace Context section 4.3: of a later version as much is read as version 00 has; ff is none.
_TRACEPARENT = re.compile(
    rb"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
_ROUTE = "POST /v1/fetch-data"
# What can go on as a header, up to what must be propagated at least (section 3.3.1.5).
_TRACESTATE = re.compile(rb"[\t\x20-\x7e]{1,512}")


class _GivenIds(RandomIdGenerator):
    """Answers the ids that were drawn already; spans are started one at a time, so one pair is enough."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self.span_id or super().generate_span_id()


def new_span_id() -> int:
    return random.getrandbits(64) or 1


class Tracing:
    """Begins traces and renders trails; `systems` names the database system behind each tier (OpenTelemetry's names)."""

    def __init__(self, environment: Mapping[str, str], version: str, systems: Mapping[str, str]) -> None:
        self._systems = systems
        self._ids = _GivenIds()
        self.provider: TracerProvider | None = None
        exporter = _exporter(environment)
        if exporter is None:
            return
        name = environment.get("OTEL_SERVICE_NAME", "broker-edge")
        resource = Resource.create(
            {"service.name": name, "service.version": version, "service.instance.id": f"{random.getrandbits(128):032x}"}
        )
        self.provider = TracerProvider(resource=resource, id_generator=self._ids)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("broker_edge", version)

    def begin(self, traceparent: bytes | None, tracestate: bytes | None) -> TraceContext:
        """The context of a request's server span; an incoming trace is continued, a malformed header starts a new one."""
        match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        if match is None:
            trace_id, parent_id, flag, state = random.getrandbits(128) or 1, None, False, None
        else:
            trace_id, parent_id, flag = int(match[1], 16), int(match[2], 16), bool(int(match[3], 16) & 1)
            state = tracestate.decode("ascii") if tracestate and _TRACESTATE.fullmatch(tracestate) else None
        context = TraceContext(trace_id, new_span_id(), parent_id, flag, state)
        if self.provider is None:
            return context
        decision = self.provider.sampler.should_sample(_parent(context, remote=True), trace_id, _ROUTE, SpanKind.SERVER).decision
        sampled: bool = decision.is_sampled()  # type: ignore[no-untyped-call]
        return TraceContext(trace_id, context.span_id, parent_id, sampled, state)

    def answer(self, trail: Trail) -> None:
        if self.provider is None or not trail.context.sampled:
            return
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "http.route": "/v1/fetch-data",
            "url.path": "/v1/fetch-data",
            "url.scheme": "http",
            "http.response.status_code": trail.status,
            "broker.outcome": trail.outcome,
            "broker.mode": trail.mode,
        }
        optional = {
            "broker.key": trail.key,
            "broker.run_id": trail.run_id,
            "broker.data_source_id": trail.source_id,
            "broker.data_object_id": trail.fetched.entry.object_id if trail.fetched else None,
            "broker.origin": trail.fetched.origin if trail.fetched else None,
            "error.type": trail.error.code if trail.error else None,
        }
        attributes |= {name: str(value) for name, value in optional.items() if value is not None}
        failed = trail.error.code if trail.error and trail.status >= 500 else None
        self._span(
            trail.context, _ROUTE, SpanKind.SERVER, trail.started_at, trail.ended_at, attributes, failed=failed, remote=True
        )
        self._facts(trail)

    def flight(self, trail: FlightTrail) -> None:
        if self.provider is None or not trail.context.sampled:
            return
        attributes = {"broker.flight.result": trail.result}
        failed = None if trail.result == "ok" else trail.result
        self._span(trail.context, "flight", SpanKind.INTERNAL, trail.started_at, trail.ended_at, attributes, failed=failed)
        self._facts(trail)

    def close(self) -> None:
        """Export what is left; blocks, so call it off the event loop."""
        if self.provider is not None:
            self.provider.shutdown()

    def _facts(self, record: Record) -> None:
        for fact in record.facts:
            if fact.kind == "flight":
                self._wait(record, fact)
            elif fact.kind == "attempt":
                self._attempt(fact)
            else:
                self._tier(record, fact)

    def _attempt(self, fact: Fact) -> None:
        assert fact.context is not None  # noqa: S101 an attempt's context went upstream with it
        attributes = dict(fact.attributes or {})
        failed = None if fact.result == "ok" else fact.result
        if failed:
            attributes["error.type"] = str(attributes.get("http.response.status_code", failed))
        self._span(fact.context, fact.subject, SpanKind.CLIENT, fact.started_at, fact.ended_at, attributes, failed=failed)

    def _tier(self, record: Record, fact: Fact) -> None:
        system = self._systems[fact.subject]
        operation = _OPERATIONS[fact.kind, fact.subject]
        attributes = {
            "db.system.name": system,
            "db.operation.name": operation,
            "broker.tier": fact.subject,
            "broker.result": fact.result,
        }
        if fact.subject == "durable":
            attributes["db.collection.name"] = "run_data_cache" if fact.kind == "lookup" else "data_object"
        kind = SpanKind.INTERNAL if system == "memory" else SpanKind.CLIENT
        failed = fact.result if fact.result in ("broken", "spooled") else None
        self._span(
            record.branch(), f"{operation} {fact.subject}", kind, fact.started_at, fact.ended_at, attributes, failed=failed
        )

    def _wait(self, record: Record, fact: Fact) -> None:
        """A follower's wait, linked to the flight that it waited for; the leader's is the flight's own span."""
        if fact.subject == "leader":
            return
        links = [Link(_span_context(fact.context, fact.context.span_id))] if fact.context else []
        attributes = {"broker.flight.role": fact.subject, "broker.flight.result": fact.result}
        self._span(
            record.branch(), f"flight {fact.subject}", SpanKind.INTERNAL, fact.started_at, fact.ended_at, attributes, links=links
        )

    def _span(
        self,
        context: TraceContext,
        name: str,
        kind: SpanKind,
        started_at: float,
        ended_at: float | None,
        attributes: Mapping[str, Any],
        *,
        failed: str | None = None,
        links: Sequence[Link] = (),
        remote: bool = False,
    ) -> None:
        self._ids.trace_id, self._ids.span_id = context.trace_id, context.span_id
        try:
            span = self._tracer.start_span(
                name, _parent(context, remote=remote), kind, attributes, links, int(started_at * 1e9), record_exception=False
            )
        finally:
            self._ids.trace_id = self._ids.span_id = 0
        if failed:
            span.set_status(Status(StatusCode.ERROR, failed))
        span.end(int((ended_at or started_at) * 1e9))


_OPERATIONS = {("lookup", "hot"): "GET", ("store", "hot"): "SET", ("lookup", "durable"): "SELECT", ("store", "durable"): "INSERT"}


def _span_context(context: TraceContext, span_id: int, *, remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, span_id, remote, flags, state)


def _parent(context: TraceContext, *, remote: bool) -> Context:
    if context.parent_id is None:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(_span_context(context, context.parent_id, remote=remote)), Context())


def _exporter(environment: Mapping[str, str]) -> SpanExporter | None:
    """By OpenTelemetry's own variables; without an endpoint or an exporter named there, nothing is exported."""
    chosen = environment.get("OTEL_TRACES_EXPORTER", "")
    given = any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_"))
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or chosen == "none" or not (chosen or given):
        return None
    if chosen == "console":
        return ConsoleSpanExporter()
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()
