"""OpenTelemetry's own exporters carry our requests, as their variables say."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server

from broker_edge.telemetry.otel import Tracing
from broker_edge.telemetry.otel_export import export
from broker_edge.telemetry.otel_spans import OtlpSpans, SdkSpans
from tests.otlp import receiver
from tests.telemetry.trails import hit

_SYSTEMS = {"hot": "redis", "durable": "postgresql"}


@contextlib.contextmanager
def exporting(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Iterator[Tracing]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing = Tracing(variables, "1", _SYSTEMS)
    try:
        yield tracing
    finally:
        tracing.close()


class Grpc(TraceServiceServicer):
    """A collector over gRPC."""

    def __init__(self) -> None:
        self.calls: list[tuple[ExportTraceServiceRequest, dict[str, str]]] = []

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:  # noqa: N802 as gRPC names it
        self.calls.append((request, dict(context.invocation_metadata())))
        return ExportTraceServiceResponse()


@contextlib.contextmanager
def grpc_collector() -> Iterator[tuple[Grpc, int]]:
    server, collector = grpc.server(ThreadPoolExecutor(2)), Grpc()
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, port
    finally:
        server.stop(None).wait()


def names(request: ExportTraceServiceRequest) -> list[str]:
    return [span.name for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]


async def test_grpc_carries_our_requests_with_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_collector() as (collector, port):
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_HEADERS": "x-team=scores"}
        with exporting(monkeypatch, **variables, OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_SERVICE_NAME="edge") as tracing:
            assert tracing.provider is not None
            tracing.provider.get_tracer("fastapi").start_span("GET /health").end()
            tracing.answer(hit())
        ((request, metadata),) = collector.calls
    assert sorted(names(request)) == ["GET /health", "GET hot", "POST /v1/fetch-data"]
    assert metadata["x-team"] == "scores"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_exporters_take_requests_that_are_encoded_already(monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    """They have no public name for it: a release that takes the way from us is to be seen here, it would only be slow."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    found = export({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}, "1")
    assert found is not None
    assert isinstance(found.spans, OtlpSpans)
    found.provider.shutdown()


async def test_http_has_the_variables_headers_and_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            # The first is asked to come again: a status that the exporter retries.
            self.send_response(503 if len(requests) == 1 else 200)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 as http.server names it
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        variables = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}/here",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-team=scores",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        with exporting(monkeypatch, **variables) as tracing:
            tracing.answer(hit())
        server.shutdown()
        thread.join()
    assert len(requests) == 2
    headers, body = requests[1]
    assert headers["x-team"] == "scores"
    assert names(ExportTraceServiceRequest.FromString(gzip.decompress(body))) == ["POST /v1/fetch-data", "GET hot"]


async def test_span_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as traces:
        variables = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "4", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "3"}
        with exporting(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, **variables) as tracing:
            tracing.answer(hit())
        server = next(span for span in traces.spans if span.kind == "SERVER")
    assert (len(server.attributes), {len(value) for value in server.attributes.values()}) == (4, {3})


def test_other_exporters_have_the_sdks_spans() -> None:
    found = export({"OTEL_TRACES_EXPORTER": "console"}, "1")
    assert found is not None
    assert isinstance(found.spans, SdkSpans)
    found.provider.shutdown()


@pytest.mark.parametrize(
    "variables", [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}]
)
def test_nothing_is_exported_unless_asked(variables: dict[str, str]) -> None:
    assert export(variables, "1") is None


def test_a_collector_that_is_mute_holds_up_nobody_beyond_the_time_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with exporting(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_TIMEOUT="20") as tracing:
            tracing.answer(hit())
            closer = threading.Thread(target=tracing.close, args=(0.05,))
            closer.start()
            closer.join(10)
            assert not closer.is_alive()
            left = [thread for thread in threading.enumerate() if thread.name.startswith("otlp")]
            assert left
            assert all(thread.daemon for thread in left)  # so the process ends
            monkeypatch.setattr(tracing, "close", lambda: None)
