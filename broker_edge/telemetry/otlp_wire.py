"""Spans in OTLP's own bytes (opentelemetry-proto's trace.proto, in protobuf's wire format), without an object per attribute.

What spans of one shape share is encoded once (`constant`); a span is that, its ids and times packed into fixed places, and its
own attributes. The order of fields means nothing in protobuf, so the constant part can stand together.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceState

from broker_edge.core.trail import TraceContext

# SpanFlags: whether the parent is remote is known (0x100), and it is (0x200).
_LOCAL, _REMOTE = 0x100, 0x300
# Tags (field number << 3 | wire type) of trace_id, span_id and parent_span_id with their lengths, of the times, of flags.
_TRACE_ID, _SPAN_ID, _PARENT_ID, _STARTED, _ENDED, _FLAGS = b"\x0a\x10", b"\x12\x08", b"\x22\x08", 0x39, 0x41, b"\x85\x01"
_ROOT = struct.Struct("<2s16s2s8sBQBQ2sI")
_CHILD = struct.Struct("<2s16s2s8sBQBQ2sI2s8s")
_LINK = struct.Struct("<2s16s2s8sBI")
_LINK_FLAGS = 0x35
_DOUBLE = struct.Struct("<Bd")
_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
_ERROR = 2


def varint(number: int) -> bytes:
    """Protobuf's base 128 integer, negative ones as 64 bits in two's complement."""
    number &= 2**64 - 1
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _sized(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + varint(len(content)) + content


# A span as an element of ScopeSpans.spans: its tag and length, ready for all usual lengths.
_SPAN = 0x12
_USUAL = 2048
_HEADS = tuple(bytes((_SPAN,)) + varint(size) for size in range(_USUAL))


def attribute(name: str, value: Any) -> bytes:
    """One element of Span.attributes; `value` is text, a UUID (sent as text), a bool, an int, a float or None."""
    kind = type(value)
    if kind is str:
        text: bytes = value.encode("utf-8", "replace")
    elif kind is UUID:
        text = orjson.dumps(value)[1:-1]  # a third of the cost of str()
    else:
        return _sized(0x4A, _sized(0x0A, name.encode()) + _sized(0x12, _scalar(value)))
    return _text_head(name, len(text)) + text


@lru_cache(4096)
def _text_head(name: str, size: int) -> bytes:
    """All of a text attribute that stands before the text of `size` bytes."""
    string = b"\x0a" + varint(size)
    value = b"\x12" + varint(len(string) + size) + string
    key = _sized(0x0A, name.encode())
    return b"\x4a" + varint(len(key) + len(value) + size) + key + value


def _scalar(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bool):
        return bytes((0x10, value))
    if isinstance(value, int):
        return b"\x18" + varint(value)
    if isinstance(value, float):
        return _DOUBLE.pack(0x21, value)
    return _sized(0x0A, str(value).encode("utf-8", "replace"))


def constant(name: str, kind: SpanKind, attributes: Mapping[str, Any], failed: str | None) -> bytes:
    """What all spans of one shape share: name, kind, attributes and status, `failed` being the description of an error's."""
    status = b"" if failed is None else _sized(0x12, failed.encode()) + bytes((0x18, _ERROR))
    named = _sized(0x2A, name.encode()) + bytes((0x30, _KINDS[kind]))
    return named + b"".join(attribute(*pair) for pair in attributes.items()) + _sized(0x7A, status)


def span(
    shape: bytes, context: TraceContext, started_at: float, ended_at: float, tail: Sequence[bytes], *, remote: bool = False
) -> bytes:
    """One element of ScopeSpans.spans, of the shape that `constant` made; `tail` are encoded attributes and links of its own."""
    trace_id, span_id = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    start, end = int(started_at * 1e9), int(ended_at * 1e9)
    if context.parent_id is None:
        head = _ROOT.pack(_TRACE_ID, trace_id, _SPAN_ID, span_id, _STARTED, start, _ENDED, end, _FLAGS, _LOCAL)
    else:
        parent, flags = context.parent_id.to_bytes(8, "big"), _REMOTE if remote else _LOCAL
        head = _CHILD.pack(
            _TRACE_ID, trace_id, _SPAN_ID, span_id, _STARTED, start, _ENDED, end, _FLAGS, flags, _PARENT_ID, parent
        )
        if context.state:
            head += _state(context.state)
    body = b"".join((head, shape, *tail))
    size = len(body)
    return (_HEADS[size] if size < _USUAL else bytes((_SPAN,)) + varint(size)) + body


def link_to(context: TraceContext) -> bytes:
    """One element of Span.links."""
    trace_id, span_id = context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big")
    return _sized(0x6A, _LINK.pack(_TRACE_ID, trace_id, _SPAN_ID, span_id, _LINK_FLAGS, _LOCAL))


@lru_cache(256)
def _state(header: str) -> bytes:
    """Span.trace_state as the SDK reads the header: a list with a malformed member is dropped whole."""
    text = TraceState.from_header([header]).to_header()
    return _sized(0x1A, text.encode()) if text else b""


class Envelope:
    """What stands around the spans of a batch: the resource and the scope, encoded by the SDK's own encoder, once."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        span = ReadableSpan("", SpanContext(1, 1, is_remote=False), resource=resource, instrumentation_scope=scope)
        (resource_spans,) = encode_spans([span]).resource_spans
        (scope_spans,) = resource_spans.scope_spans
        scope_spans.ClearField("spans")
        self._scope = scope_spans.SerializeToString()
        resource_spans.ClearField("scope_spans")
        self._resource = resource_spans.SerializeToString()

    def request(self, spans: Sequence[bytes]) -> bytes:
        """An ExportTraceServiceRequest. Requests can be concatenated: protobuf merges their resource_spans."""
        size = sum(map(len, spans))
        scope = b"\x12" + varint(len(self._scope) + size) + self._scope
        return b"".join((b"\x0a", varint(len(self._resource) + len(scope) + size), self._resource, scope, *spans))
