"""The facts of one request: in order, closed once, with one outcome."""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest

from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import CODES, CallerError, EdgeError, UpstreamError

ENTRY = Entry(UUID(int=1), 900.0, b"1")
CONTEXT = TraceContext(0xABC, 0x12, 0x34, sampled=True, state="vendor=1")


@pytest.fixture
def trail() -> Trail:
    return Trail(CONTEXT, 1000.0, itertools.count(100).__next__)


def fetched(origin: str, stale: bool = False) -> Fetched:
    return Fetched(ENTRY, "key", origin, stale=stale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("origin", "stale", "collapsed", "outcome"),
    [
        ("CACHE", False, False, "hit"),
        ("CACHE", False, True, "hit"),
        ("CACHE", True, False, "stale"),
        ("REQUEST", False, False, "fetched"),
        ("REQUEST", False, True, "collapsed"),
    ],
)
def test_what_was_delivered_has_an_outcome(trail: Trail, origin: str, stale: bool, collapsed: bool, outcome: str) -> None:
    trail.collapsed = collapsed
    trail.deliver(fetched(origin, stale), 1001.0)
    assert (trail.outcome, trail.status, trail.ended_at, trail.error) == (outcome, 200, 1001.0, None)
    assert trail.fetched == fetched(origin, stale)


@pytest.mark.parametrize("code", CODES)
def test_a_failure_s_outcome_is_its_code(trail: Trail, code: str) -> None:
    error = EdgeError(code, "words")
    trail.fail(error, 1001.0)
    assert (trail.outcome, trail.status, trail.error, trail.fetched) == (code.lower(), CODES[code].status, error, None)


def test_a_trail_closes_once(trail: Trail) -> None:
    trail.deliver(fetched("CACHE"), 1001.0)
    with pytest.raises(RuntimeError, match="once"):
        trail.fail(CallerError("INVALID_REQUEST", "words"), 1002.0)
    with pytest.raises(RuntimeError, match="once"):
        trail.deliver(fetched("REQUEST"), 1002.0)
    assert (trail.outcome, trail.status, trail.ended_at, trail.error) == ("hit", 200, 1001.0, None)


def test_facts_keep_their_order(trail: Trail) -> None:
    trail.note("lookup", 1.0, 2.0, "hot", "miss")
    trail.note("flight", 2.0, 3.0, "leader", "ok", trail.branch(), {"a": 1})
    assert [(fact.kind, fact.subject, fact.result) for fact in trail.facts] == [
        ("lookup", "hot", "miss"),
        ("flight", "leader", "ok"),
    ]
    assert trail.facts[0].context is None
    assert trail.facts[1].attributes == {"a": 1}


def test_a_branch_hangs_below_and_stays_in_the_trace(trail: Trail) -> None:
    one, two = trail.branch(), trail.branch()
    assert (one.trace_id, one.parent_id, one.sampled, one.state) == (0xABC, 0x12, True, "vendor=1")
    assert one.span_id != two.span_id


@pytest.mark.parametrize(
    ("sampled", "text"),
    [
        (True, "00-00000000000000000000000000000abc-0000000000000012-01"),
        (False, "00-00000000000000000000000000000abc-0000000000000012-00"),
    ],
)
def test_a_context_says_its_traceparent(sampled: bool, text: str) -> None:
    assert TraceContext(0xABC, 0x12, sampled=sampled).traceparent == text


def test_a_flight_that_never_ended_says_so() -> None:
    assert FlightTrail(CONTEXT, 1.0, lambda: 1).result == "abandoned"


def test_a_failure_s_member_has_the_upstream_s_status_where_there_is_one() -> None:
    plain = UpstreamError("TIMEOUT", "late").member()
    told = UpstreamError("UPSTREAM_STATUS", "no", upstream_status=503, retryable=True).member()
    assert plain == {"code": "TIMEOUT", "message": "late", "source": "upstream", "retryable": True}
    assert told["upstream_status"] == 503
    assert told["retryable"] is True
