"""The queue of the exporter: bounded, batched, never in the way of who adds to it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from broker_edge.telemetry.otel_rendering import Rendering
from broker_edge.telemetry.otel_spans import OtlpSpans
from broker_edge.telemetry.otlp_batches import Batches, Limits, limits
from broker_edge.telemetry.otlp_wire import Envelope
from tests.telemetry.trails import ROOT, hit

_PATIENCE = 30.0  # seconds; a safety net, nothing waits for it to pass
_NEVER = 3600.0
_RESOURCE = Resource({"service.name": "edge"})


@dataclass
class Collector:
    """Where batches go: it can be held up and can fail; `names` has the spans' names of every request."""

    names: list[list[str]] = field(default_factory=list)
    stopped: bool = False
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.open, self.called, self.changed = threading.Event(), threading.Event(), threading.Condition()
        self.open.set()

    def send(self, request: bytes) -> None:
        self.called.set()
        assert self.open.wait(_PATIENCE)
        if self.failure is not None:
            raise self.failure
        groups = ExportTraceServiceRequest.FromString(request).resource_spans
        with self.changed:
            self.names.append([span.name for group in groups for scope in group.scope_spans for span in scope.spans])
            self.changed.notify_all()

    def stop(self) -> None:
        self.stopped = True
        self.open.set()

    def wait(self, until: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(until, _PATIENCE)


def queue(collector: Collector, limits: Limits) -> Batches:
    return Batches(collector.send, collector.stop, Envelope(_RESOURCE, InstrumentationScope("broker_edge", "1")), limits)


def add(batches: Batches, *names: str) -> None:
    spans = OtlpSpans(batches)
    for name in names:
        spans.add(spans.shape(name, SpanKind.INTERNAL, {}), ROOT, 1.0, 2.0)


def test_a_full_batch_is_exported_at_once_and_the_rest_waits() -> None:
    collector = Collector()
    batches = queue(collector, Limits(_NEVER, 100, 3))
    add(batches, *"abcd")
    collector.wait(lambda: len(collector.names) == 1)
    assert collector.names == [["a", "b", "c"]]
    batches.shutdown()
    assert collector.names == [["a", "b", "c"], ["d"]]


def test_what_waits_is_exported_after_the_delay() -> None:
    collector = Collector()
    batches = queue(collector, Limits(0.01, 100, 50))
    add(batches, "a")
    collector.wait(lambda: collector.names == [["a"]])
    batches.shutdown()


def test_a_flush_exports_everything_in_batches() -> None:
    collector = Collector()
    batches = queue(collector, Limits(_NEVER, 100, 2))
    add(batches, "a")
    assert batches.force_flush()
    assert collector.names == [["a"]]
    batches.shutdown()


def test_a_collector_that_hangs_costs_spans_and_no_time(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    collector.open.clear()
    batches = queue(collector, Limits(_NEVER, 4, 2))
    rendering = Rendering(OtlpSpans(batches), {"hot": "redis"})
    rendering.answer(hit())
    assert collector.called.wait(_PATIENCE)
    for _ in range(4):  # two spans each: two fit
        rendering.answer(hit())
    assert rendering.dropped == 4
    collector.open.set()
    with caplog.at_level(logging.WARNING):
        batches.shutdown()
    assert [len(names) for names in collector.names] == [2, 2, 2]
    assert [record.getMessage() for record in caplog.records] == ["4 spans were dropped: the queue of the exporter was full"]


def test_a_trail_is_exported_whole_or_not_at_all() -> None:
    collector = Collector()
    batches = queue(collector, Limits(_NEVER, 3, 3))
    collector.open.clear()
    rendering = Rendering(OtlpSpans(batches), {"hot": "redis"})
    with batches._exporting:  # nothing leaves
        for _ in range(3):
            rendering.answer(hit())
        assert (len(batches._queue), rendering.dropped) == (4, 2)
    collector.open.set()
    batches.shutdown()


def test_a_batch_that_fails_is_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(failure=RuntimeError("a secret"))
    batches = queue(collector, Limits(_NEVER, 100, 2))
    with caplog.at_level(logging.WARNING):
        add(batches, "a", "b", "c")
        batches.force_flush()
    collector.failure = None
    add(batches, "d")
    batches.shutdown()
    assert [name for names in collector.names for name in names] == ["d"]
    assert {record.getMessage() for record in caplog.records} >= {"1 spans could not be exported: RuntimeError"}
    assert "a secret" not in caplog.text


def test_the_end_is_bounded_by_a_collector_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_edge.telemetry.otlp_batches._END", 0.01)
    collector = Collector()
    collector.open.clear()
    batches = queue(collector, Limits(_NEVER, 100, 1))
    add(batches, "a", "b")
    batches.shutdown()
    assert collector.stopped


def test_nothing_is_taken_after_the_end() -> None:
    collector = Collector()
    batches = queue(collector, Limits(_NEVER, 100, 50))
    batches.shutdown()
    batches.shutdown()
    assert (batches.room(1), collector.names) == (False, [])


@pytest.mark.parametrize(("sampler", "expected"), [(ALWAYS_ON, [["a", "sdk"]]), (TraceIdRatioBased(0), [["a"]])])
def test_the_spans_of_the_sdk_share_the_batches(sampler: Sampler, expected: list[list[str]]) -> None:
    collector = Collector()
    batches = queue(collector, Limits(_NEVER, 100, 50))
    provider = TracerProvider(sampler, _RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(batches)
    add(batches, "a")
    provider.get_tracer("fastapi").start_span("sdk").end()
    assert provider.force_flush()
    provider.shutdown()
    assert collector.names == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Limits(5.0, 2048, 512)),
        ({"SCHEDULE_DELAY": "50", "MAX_QUEUE_SIZE": "9000", "MAX_EXPORT_BATCH_SIZE": "700"}, Limits(0.05, 9000, 700)),
        ({"SCHEDULE_DELAY": "soon", "MAX_QUEUE_SIZE": "", "MAX_EXPORT_BATCH_SIZE": "1.5"}, Limits(5.0, 2048, 512)),
        ({"MAX_QUEUE_SIZE": "10"}, Limits(5.0, 10, 10)),
    ],
)
def test_the_limits_are_those_of_the_variables(variables: dict[str, str], expected: Limits) -> None:
    assert limits({f"OTEL_BSP_{name}": value for name, value in variables.items()}) == expected


@pytest.mark.parametrize("name", ["SCHEDULE_DELAY", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_limit_that_is_not_positive_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"OTEL_BSP_{name}"):
        limits({f"OTEL_BSP_{name}": value})
