"""What is exported for a trail is what the SDK's tracer and OTLP encoder would have exported for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.telemetry.otel_rendering import Rendering
from broker_edge.telemetry.otel_spans import SCOPE, GivenIds, OtlpSpans, SdkSpans, Spans
from broker_edge.telemetry.otlp_batches import Batches, Limits
from broker_edge.telemetry.otlp_wire import Envelope
from tests.telemetry.trails import CHILD, ROOT, TRACE, failure, flight, follower, hit, miss, refused

_SYSTEMS = {"hot": "redis", "durable": "postgresql"}
_RESOURCE = Resource({"service.name": "edge", "service.version": "1", "number": 7}, "https://example.test/schema")
Make = Callable[[Spans], object]


def by_sdk(make: Make) -> ExportTraceServiceRequest:
    ids, memory = GivenIds(), InMemorySpanExporter()
    provider = TracerProvider(ALWAYS_ON, _RESOURCE, shutdown_on_exit=False, id_generator=ids)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    make(SdkSpans(provider, ids, "1.2.3"))
    return encode_spans(memory.get_finished_spans())


def by_bytes(make: Make) -> ExportTraceServiceRequest:
    sent: list[bytes] = []
    batches = Batches(sent.append, lambda: None, Envelope(_RESOURCE, InstrumentationScope(SCOPE, "1.2.3")), Limits(60, 100, 100))
    make(OtlpSpans(batches))
    batches.shutdown()
    (request,) = sent
    return ExportTraceServiceRequest.FromString(request)


def unordered(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """With attributes sorted by name: their order means nothing."""
    for span in spans(request):
        attributes = sorted(span.attributes, key=lambda pair: pair.key)
        del span.attributes[:]
        span.attributes.extend(attributes)
    return request


def spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for group in request.resource_spans:
        for scope in group.scope_spans:
            yield from scope.spans


def rendered(trail: Trail | FlightTrail) -> Make:
    def make(spans: Spans) -> None:
        rendering = Rendering(spans, _SYSTEMS)
        if isinstance(trail, Trail):
            rendering.answer(trail)
        else:
            rendering.flight(trail)

    return make


STATES = ["a=1", " a=1 ,, b=2\t", "a=1,a=2", "=,=;", "vendor=a\tb", "x" * 300, "k=" + "v" * 256]
TRAILS: dict[str, Callable[[], Trail | FlightTrail]] = {
    "hit": hit,
    "hit of a caller's trace": lambda: hit(CHILD),
    "near hit": lambda: hit(tier="near"),
    "hit of an unknown tier": lambda: hit(tier="attic"),
    "miss": miss,
    "follower": follower,
    "flight": flight,
    "flight that failed": lambda: flight("parse_error"),
    "flight of a root": lambda: flight(context=ROOT),
    "upstream's failure": lambda: failure("TIMEOUT"),
    "caller's failure": lambda: failure("MISSING_VARIABLE"),
    "refused unread": refused,
    **{f"tracestate {n}": partial(hit, TraceContext(TRACE, 5, 6, True, state)) for n, state in enumerate(STATES)},
}


@pytest.mark.parametrize("name", TRAILS)
def test_a_trail_is_exported_as_the_sdk_would(name: str) -> None:
    expected, found = (unordered(by(rendered(TRAILS[name]()))) for by in (by_sdk, by_bytes))
    assert len(list(spans(expected))) >= 1
    assert found == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 127,
        "x" * 128,
        "\u00e9\u6f22\U0001f600" * 999,
        0,
        1,
        127,
        128,
        -1,
        2**63 - 1,
        -(2**63),
        True,
        False,
        0.0,
        -1.5,
        None,
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_any_attribute_is_exported_as_the_sdk_would(value: Any, own: bool) -> None:
    given: Mapping[str, Any] = {"some.name": value, "\u00e9" * 100: value}

    def make(spans: Spans) -> None:
        shape = spans.shape("n\u00e4me", SpanKind.CLIENT, {} if own else given, "wh\u00fd")
        spans.add(shape, CHILD, 1.5, 2.5, given if own else {})

    expected, found = (unordered(by(make)) for by in (by_sdk, by_bytes))
    assert found == expected


def test_a_near_hit_is_a_look_up_in_memory() -> None:
    _, look = spans(by_bytes(rendered(hit(tier="near"))))
    attributes = {pair.key: pair.value.string_value for pair in look.attributes}
    assert (look.name, look.kind) == ("GET near", Span.SPAN_KIND_INTERNAL)
    assert (attributes["db.system.name"], attributes["db.operation.name"]) == ("memory", "GET")


def test_text_that_is_not_unicode_spoils_no_span() -> None:
    trail = hit()
    trail.key = "\ud800"
    assert len(list(spans(by_bytes(rendered(trail))))) == 2
