"""Two makers of spans from one description: `OtlpSpans` in our own bytes, `SdkSpans` for what only the SDK can do.

What they export is the same. A description is a shape (what all spans of a kind share, made once), the span's context, its times
and its own attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from broker_edge.core.trail import TraceContext
from broker_edge.telemetry.otlp_batches import Batches
from broker_edge.telemetry.otlp_wire import attribute, constant, link_to, span

SCOPE = "broker_edge"
Attributes = Mapping[str, Any]
NO_ATTRIBUTES: Attributes = MappingProxyType({})


class Spans(Protocol):
    """Makes and queues spans; none of it blocks. Attributes are text, UUIDs (which become text), bools, ints, floats."""

    @property
    def dropped(self) -> int:
        """Spans that there was no room for."""

    def room(self, count: int) -> bool:
        """Whether the next `count` spans, those of one trail, can be queued; where not they count as dropped."""

    def shape(self, name: str, kind: SpanKind, attributes: Attributes, failed: str | None = None) -> Any:
        """`failed` is the description of the error status, None where nothing failed."""

    def add(
        self,
        shape: Any,
        context: TraceContext,
        started_at: float,
        ended_at: float,
        own: Attributes = NO_ATTRIBUTES,
        *,
        link: TraceContext | None = None,
        remote: bool = False,
    ) -> None:
        """Times in epoch seconds; `link` is a span that this one waited for; `remote`: the parent is another process's."""


class OtlpSpans:
    """Spans as OTLP's bytes, ready to be sent: a twentieth of the cost of the SDK's spans and their encoder."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._add = batches.add
        self.room = batches.room

    @property
    def dropped(self) -> int:
        return self._batches.dropped

    def shape(self, name: str, kind: SpanKind, attributes: Attributes, failed: str | None = None) -> bytes:
        return constant(name, kind, attributes, failed)

    def add(
        self,
        shape: bytes,
        context: TraceContext,
        started_at: float,
        ended_at: float,
        own: Attributes = NO_ATTRIBUTES,
        *,
        link: TraceContext | None = None,
        remote: bool = False,
    ) -> None:
        tail = [attribute(name, value) for name, value in own.items()] if own else ()
        if link is not None:
            tail = (*tail, link_to(link))
        self._add(span(shape, context, started_at, ended_at, tail, remote=remote))


class _Shape(NamedTuple):
    name: str
    kind: SpanKind
    attributes: Attributes
    failed: str | None


class GivenIds(RandomIdGenerator):
    """Answers the ids that were drawn already; spans are started one at a time, so one pair is enough."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self.span_id or super().generate_span_id()


class SdkSpans:
    """Spans by the SDK's tracer, which was built with these `ids`: for other exporters, and where its span limits are set."""

    def __init__(self, provider: TracerProvider, ids: GivenIds, version: str) -> None:
        self._ids = ids
        self._tracer = provider.get_tracer(SCOPE, version)

    @property
    def dropped(self) -> int:
        return 0  # the SDK's queue drops what it can't take, and logs it

    def room(self, count: int) -> bool:
        return True

    def shape(self, name: str, kind: SpanKind, attributes: Attributes, failed: str | None = None) -> _Shape:
        return _Shape(name, kind, attributes, failed)

    def add(
        self,
        shape: _Shape,
        context: TraceContext,
        started_at: float,
        ended_at: float,
        own: Attributes = NO_ATTRIBUTES,
        *,
        link: TraceContext | None = None,
        remote: bool = False,
    ) -> None:
        attributes = {
            **shape.attributes,
            **{name: str(value) if isinstance(value, UUID) else value for name, value in own.items()},
        }
        links = [Link(_span_context(link, link.span_id))] if link else []
        parent = parent_context(context, remote=remote)
        self._ids.trace_id, self._ids.span_id = context.trace_id, context.span_id
        try:
            started = self._tracer.start_span(
                shape.name, parent, shape.kind, attributes, links, int(started_at * 1e9), record_exception=False
            )
        finally:
            self._ids.trace_id = self._ids.span_id = 0
        if shape.failed is not None:
            started.set_status(Status(StatusCode.ERROR, shape.failed))
        started.end(int(ended_at * 1e9))


def _span_context(context: TraceContext, span_id: int, *, remote: bool = False) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, span_id, remote, flags, state)


def parent_context(context: TraceContext, *, remote: bool) -> Context:
    """The SDK's context with the parent of the span of `context` in it."""
    if context.parent_id is None:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(_span_context(context, context.parent_id, remote=remote)), Context())
