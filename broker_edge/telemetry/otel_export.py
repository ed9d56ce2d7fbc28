"""What OpenTelemetry's variables ask for, built: exporter, provider for the other routes, who samples, who makes our spans.

The exporters are OpenTelemetry's own, so that endpoints, headers, certificates, compression, time-outs and retries are theirs
too; we hand them requests that are encoded already.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from broker_edge.telemetry.otel_sampling import Rule, configured
from broker_edge.telemetry.otel_spans import SCOPE, GivenIds, OtlpSpans, SdkSpans, Spans
from broker_edge.telemetry.otlp_batches import Batches, limits
from broker_edge.telemetry.otlp_wire import Envelope

_Request = type(encode_spans(()))  # ExportTraceServiceRequest


class Export(NamedTuple):
    """`rule` is None where only the SDK's sampler (`provider.sampler`) knows."""

    provider: TracerProvider
    spans: Spans
    rule: Rule | None


def export(environment: Mapping[str, str], version: str) -> Export | None:
    """Start exporting; None where nothing is to be exported."""
    chosen = exporter(environment)
    if chosen is None:
        return None
    name = environment.get("OTEL_SERVICE_NAME", "broker-edge")
    resource = Resource.create(
        {"service.name": name, "service.version": version, "service.instance.id": f"{random.getrandbits(128):032x}"}
    )
    rule, sampler = configured(environment) or (None, None)
    ids = GivenIds()
    provider = TracerProvider(sampler=sampler, resource=resource, id_generator=ids)
    if chosen.send is None or any(name.endswith("_LIMIT") for name in environment):  # span limits are the SDK's to keep
        provider.add_span_processor(BatchSpanProcessor(chosen.exporter))
        return Export(provider, SdkSpans(provider, ids, version), rule)
    envelope = Envelope(resource, InstrumentationScope(SCOPE, version))
    batches = Batches(chosen.send, chosen.exporter.shutdown, envelope, limits(environment))
    provider.add_span_processor(batches)
    return Export(provider, OtlpSpans(batches), rule)


class Exporter(NamedTuple):
    """`send` exports one encoded request: it blocks, retries, logs what fails. None: this exporter takes the SDK's spans only."""

    exporter: SpanExporter
    send: Callable[[bytes], object] | None


def exporter(environment: Mapping[str, str]) -> Exporter | None:
    """By OpenTelemetry's own variables; without an endpoint or an exporter named there, nothing is exported."""
    chosen = environment.get("OTEL_TRACES_EXPORTER", "")
    given = any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_"))
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or chosen == "none" or not (chosen or given):
        return None
    if chosen == "console":
        return Exporter(ConsoleSpanExporter(), None)
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    grpc = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general) == "grpc"
    return _over_grpc() if grpc else _over_http()


def _over_http() -> Exporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter()
    # The exporter's client adds compression, headers and retries to bytes. It has no public name: a release without it gets
    # the SDK's spans, which costs time and nothing else.
    return Exporter(exporter, getattr(getattr(exporter, "_client", None), "export", None))


def _over_grpc() -> Exporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    class OfMessages(OTLPSpanExporter):
        """Exports messages in the place of the SDK's spans; those it can still translate."""

        def _translate_data(self, data: Any) -> Any:
            return data if isinstance(data, _Request) else super()._translate_data(data)

        def _count_data(self, data: Any) -> int:
            if not isinstance(data, _Request):
                return len(data)
            return sum(len(scope.spans) for group in data.resource_spans for scope in group.scope_spans)

    exporter = OfMessages()
    if not (hasattr(OTLPSpanExporter, "_translate_data") and hasattr(exporter, "_export")):
        return Exporter(exporter, None)
    send: Callable[[Any], object] = exporter.export
    return Exporter(exporter, lambda request: send(_Request.FromString(request)))
