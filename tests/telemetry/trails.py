"""Trails as the flow leaves them, with ids that are counted rather than drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from uuid import UUID

from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import EdgeError

TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
ROOT = TraceContext(TRACE, 0xFFF0_0000_0000_0001, None, True)
CHILD = TraceContext(TRACE, 7, 0x00F067AA0BA902B7, True, "vendor=a1,other=b2")
_AT = 1_760_000_000.123456


def counted() -> Callable[[], int]:
    return itertools.count(2).__next__


def asked(context: TraceContext = ROOT) -> Trail:
    trail = Trail(context, _AT, counted())
    trail.run_id, trail.source_id = UUID(int=1 << 100), UUID(int=2)
    trail.key = "0123456789abcdef" * 2
    return trail


def hit(context: TraceContext = ROOT, tier: str = "hot") -> Trail:
    trail = asked(context)
    trail.note("lookup", _AT + 0.0001, _AT + 0.0002, tier, "hit")
    trail.deliver(Fetched(Entry(UUID(int=3), _AT, b"1"), "k", "CACHE"), _AT + 0.0003)
    return trail


def miss(context: TraceContext = ROOT) -> Trail:
    trail = asked(context)
    trail.note("lookup", _AT, _AT + 0.1, "hot", "miss")
    trail.note("flight", _AT, _AT + 0.1, "leader", "ok", trail.branch())
    trail.deliver(Fetched(Entry(UUID(int=3), _AT, b"1"), "k", "REQUEST", _AT, _AT + 1, 200), _AT + 1)
    return trail


def failure(code: str) -> Trail:
    trail = asked(CHILD)
    trail.mode = "refresh"
    trail.note("lookup", _AT, _AT + 0.1, "hot", "broken")
    trail.fail(EdgeError(code, "it failed"), _AT + 1)
    return trail


def refused() -> Trail:
    trail = Trail(ROOT, _AT, counted())
    trail.fail(EdgeError("INVALID_REQUEST", "no"), _AT)
    return trail


def follower(context: TraceContext = ROOT) -> Trail:
    trail = miss(context)
    flight = TraceContext(TRACE + 1, 99, 98, True, "vendor=z")
    trail.note("flight", _AT, _AT + 0.5, "follower", "ok", flight)
    trail.note("flight", _AT, _AT + 0.5, "fleet_follower", "lapsed")
    return trail


def flight(result: str = "ok", context: TraceContext = CHILD) -> FlightTrail:
    trail = FlightTrail(context, _AT, counted())
    trail.note("flight", _AT, _AT + 0.1, "fleet_leader", "ok")
    trail.note("lookup", _AT, _AT + 0.1, "durable", "miss")
    called = {
        "http.request.method": "GET",
        "url.scheme": "https",
        "server.port": 443,
        "http.request.resend_count": 1,
        "http.response.body.size": 2**40,
        "network.protocol.version": "1.1",
    }
    trail.note("attempt", _AT, _AT + 0.2, "GET", "timeout", trail.branch(), {"http.request.method": "GET", "server.port": 80})
    trail.note("attempt", _AT, _AT + 0.2, "GET", "upstream_status", trail.branch(), {**called, "http.response.status_code": 503})
    trail.note("attempt", _AT, _AT + 0.3, "GET", "ok", trail.branch(), {**called, "http.response.status_code": 200})
    trail.note("attempt", _AT, _AT + 0.3, "PURGE\u00e9", "ok", trail.branch(), None)
    trail.note("store", _AT, _AT + 0.4, "durable", "spooled")
    trail.note("store", _AT, _AT + 0.5, "hot", "ok")
    trail.result = result
    trail.ended_at = _AT + 0.6
    return trail
