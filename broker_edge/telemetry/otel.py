"""OpenTelemetry spans, rendered from a closed trail: a request that isn't sampled pays for a few random bits and no more.

Ids are drawn when the work begins, because the trace goes on upstream before any span exists. What a trail says is in
otel_rendering.py, how spans are made in otel_spans.py and otlp_wire.py, how they leave in otel_export.py and otlp_batches.py.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping

from opentelemetry.trace import SpanKind, get_current_span

from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.telemetry.otel_export import export
from broker_edge.telemetry.otel_rendering import ROUTE, Rendering
from broker_edge.telemetry.otel_sampling import LOW_BITS, PASSED_ON
from broker_edge.telemetry.otel_spans import parent_context

# W3C Trace Context section 4.3: of a later version as much is read as version 00 has; ff is none.
_TRACEPARENT = re.compile(
    rb"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)
# What can go on as a header, up to what must be propagated at least (section 3.3.1.5).
_TRACESTATE = re.compile(rb"[\t\x20-\x7e]{1,512}")


def new_span_id() -> int:
    return random.getrandbits(64) or 1


class Tracing:
    """Begins traces and renders trails; `systems` names the database system behind each tier (OpenTelemetry's names)."""

    def __init__(self, environment: Mapping[str, str], version: str, systems: Mapping[str, str]) -> None:
        exporting = export(environment, version)
        self._rendering = Rendering(exporting.spans, systems) if exporting else None
        self._rule = exporting.rule if exporting else PASSED_ON
        self.provider = exporting.provider if exporting else None

    @property
    def dropped(self) -> int:
        """Spans that were not exported because the exporter fell behind."""
        return self._rendering.dropped if self._rendering else 0

    def begin(self, traceparent: bytes | None, tracestate: bytes | None) -> TraceContext:
        """The context of a request's server span; an incoming trace is continued, a malformed header starts a new one."""
        match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        if match is None:
            trace_id = random.getrandbits(128) or 1
            return TraceContext(trace_id, new_span_id(), None, self._sampled(trace_id, None, None))
        trace_id, parent_id, flag = int(match[1], 16), int(match[2], 16), bool(int(match[3], 16) & 1)
        state = tracestate.decode("ascii") if tracestate and _TRACESTATE.fullmatch(tracestate) else None
        return TraceContext(trace_id, new_span_id(), parent_id, self._sampled(trace_id, parent_id, flag), state)

    def begin_below(self, traceparent: bytes | None, tracestate: bytes | None) -> TraceContext:
        """As `begin`, below the span that the instrumentation of routes has begun here, where there is one."""
        here = get_current_span().get_span_context()
        if here.is_valid:
            traceparent = b"00-%032x-%016x-%02x" % (here.trace_id, here.span_id, here.trace_flags)
        return self.begin(traceparent, tracestate)

    def _sampled(self, trace_id: int, parent_id: int | None, flag: bool | None) -> bool:
        rule = self._rule
        if rule is not None:
            return flag if flag is not None and rule.follows else trace_id & LOW_BITS < rule.bound
        assert self.provider is not None  # noqa: S101 without a provider there is a rule
        parent = parent_context(TraceContext(trace_id, 0, parent_id, bool(flag)), remote=True)
        decision = self.provider.sampler.should_sample(parent, trace_id, ROUTE, SpanKind.SERVER).decision
        return decision.is_sampled()  # type: ignore[no-untyped-call,no-any-return]

    def answer(self, trail: Trail) -> None:
        """Render a closed trail and its facts, where its trace is sampled."""
        if trail.context.sampled and self._rendering is not None:
            self._rendering.answer(trail)

    def flight(self, trail: FlightTrail) -> None:
        """Render the shared work of a flight and its facts, where its trace is sampled."""
        if trail.context.sampled and self._rendering is not None:
            self._rendering.flight(trail)

    def close(self, within: float = 30.0) -> None:
        """Export what is left, for at most `within` seconds; blocks, so call it off the event loop."""
        if self.provider is not None:
            # No exporter can be told how long it may take. A daemon is what the process' end need not wait for.
            end = threading.Thread(target=self.provider.shutdown, name="otlp-end", daemon=True)
            end.start()
            end.join(within)
