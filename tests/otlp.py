"""A real OTLP/HTTP receiver on a loopback port: what an exporter sends it, decoded.

with receiver() as traces:
    ...
    traces.wait(lambda spans: len(spans) >= 5)
"""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire

_PATIENCE = 30.0  # seconds; a safety net, nothing waits for it to pass


@dataclass(frozen=True)
class Span:
    """One span as it was received; ids in hexadecimal, empty where there is none; times in nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    started_at: int
    ended_at: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: str | None
    state: str
    resource: dict[str, Any] = field(repr=False)

    def within(self, other: Span) -> bool:
        return other.started_at <= self.started_at <= self.ended_at <= other.ended_at


class Receiver:
    """`raw` holds every body as it came; `spans` those of all of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.raw: list[bytes] = []
        self.spans: list[Span] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, body: bytes) -> None:
        with self._changed:
            self.raw.append(body)
            if path == "/v1/traces":
                self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self._changed.notify_all()

    def wait(self, until: Callable[[Sequence[Span]], bool]) -> list[Span]:
        """All spans once `until` holds; blocks, so call it off the event loop."""
        with self._changed:
            assert self._changed.wait_for(lambda: until(self.spans), _PATIENCE), [span.name for span in self.spans]
            return list(self.spans)


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    taker = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taker.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 as http.server names it
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        taker.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield taker
        finally:
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        _span(span, {pair.key: _value(pair.value) for pair in group.resource.attributes})
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _span(wire: Wire, resource: dict[str, Any]) -> Span:
    return Span(
        trace_id=wire.trace_id.hex(),
        span_id=wire.span_id.hex(),
        parent_id=wire.parent_span_id.hex(),
        name=wire.name,
        kind=Wire.SpanKind.Name(wire.kind).removeprefix("SPAN_KIND_"),
        started_at=wire.start_time_unix_nano,
        ended_at=wire.end_time_unix_nano,
        attributes={pair.key: _value(pair.value) for pair in wire.attributes},
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in wire.links],
        failed=wire.status.message if wire.status.code == 2 else None,
        state=wire.trace_state,
        resource=resource,
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
