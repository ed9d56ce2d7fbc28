"""The reply around a value: ready JSON bytes are spliced in, nothing is parsed or dumped again. And its headers."""

from __future__ import annotations

import math

import msgspec
import orjson

from broker_edge.core.trail import Trail
from broker_edge.errors import EdgeError, RememberedStatus

Headers = list[tuple[bytes, bytes]]
Parts = tuple[bytes | memoryview, ...]

_PROBLEM = (b"content-type", b"application/problem+json")
_NULLS = dict.fromkeys(("data_object_id", "origin", "key", "value", "start_time", "end_time", "duration"))
_id = msgspec.json.Encoder().encode  # a UUID as a JSON string, at a fifth of the cost of str()
_CACHED_TAIL = b',"start_time":null,"end_time":null,"duration":null,"error":null}'


def reply(trail: Trail, ttl: float | None) -> tuple[bytes, Parts]:
    """Header lines and body of a delivered trail; `ttl` of the source in seconds, None where entries never expire."""
    fetched = trail.fetched
    assert fetched is not None  # noqa: S101 the caller delivered it
    entry = fetched.entry
    head = b'{"data_object_id":%s,"origin":"%s","key":"%s","value":' % (
        _id(entry.object_id),
        fetched.origin.encode(),
        fetched.key.encode(),
    )
    if fetched.origin == "CACHE":
        age = max(0.0, (trail.ended_at or 0) - entry.created_at)
        if fetched.forwarded:  # RFC 9211 section 2.1: it is a hit only where nothing went forward
            status = _forwarded(trail, fetched.upstream_status, stored=False)
        else:
            status = b"broker-edge; hit" if ttl is None else b"broker-edge; hit; ttl=%d" % math.floor(ttl - age)
        return b"content-type: application/json\r\ncache-status: %s\r\nage: %d\r\n" % (status, age), (
            head,
            entry.value,
            _CACHED_TAIL,
        )
    started, ended = fetched.started_at or 0.0, fetched.ended_at or 0.0
    tail = b',"start_time":%s,"end_time":%s,"duration":%s,"error":null}' % (
        orjson.dumps(started),
        orjson.dumps(ended),
        orjson.dumps(round(ended - started, 6)),
    )
    status = _forwarded(trail, fetched.upstream_status, stored=trail.why != "bypass")
    return b"content-type: application/json\r\ncache-status: %s\r\n" % status, (head, entry.value, tail)


def lines(headers: Headers) -> bytes:
    """Headers as they stand in a message."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def fields(lines: bytes) -> Headers:
    """`lines` undone."""
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


def problem(error: EdgeError, trail: Trail | None = None) -> tuple[Headers, bytes]:
    """Headers and body of a failure, as RFC 9457 has it beside the members of a reply."""
    body = {
        "type": f"urn:broker-edge:problem:{error.code.lower().replace('_', '-')}",
        "title": error.kind.title,
        "status": error.kind.status,
        "detail": error.message,
        **_NULLS,
        "error": error.member(),
    }
    if error.upstream_status is not None:
        body["upstream_status"] = error.upstream_status
    headers = [_PROBLEM]
    if isinstance(error, RememberedStatus):
        headers += [(b"cache-status", b"broker-edge; hit; ttl=%d" % error.remaining), (b"age", b"%d" % error.age)]
    elif trail is not None and trail.why is not None and error.kind.source != "caller":  # else nothing went forward
        headers.append((b"cache-status", _forwarded(trail, error.upstream_status, stored=False)))
    if error.kind.status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after or 1))))
    return headers, orjson.dumps(body)


def _forwarded(trail: Trail, upstream_status: int | None, *, stored: bool) -> bytes:
    """Cache-Status of a request that went, or would have gone, upstream (RFC 9211 section 2)."""
    parts = [f"broker-edge; fwd={trail.why}"]
    if upstream_status is not None:
        parts.append(f"fwd-status={upstream_status}")
    if stored:
        parts.append("stored")
    if trail.collapsed:
        parts.append("collapsed")
    return "; ".join(parts).encode()
