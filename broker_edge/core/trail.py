"""Trail: the ordered facts of one request, and of the shared work of one flight.

The flow notes facts while it works; journal, metrics, spans and logs (telemetry/) all render them, so they can't
disagree. Times are epoch seconds. No fact holds a secret, a URL, a parameter or a body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec

from broker_edge.core.exchange import Fetched, Mode
from broker_edge.core.money import Price
from broker_edge.errors import EdgeError


class TraceContext(msgspec.Struct, frozen=True):
    """A span's place in its trace (W3C Trace Context): ids as integers, `parent_id` None for a root."""

    trace_id: int
    span_id: int
    parent_id: int | None = None
    sampled: bool = False
    state: str | None = None

    def child(self, span_id: int) -> TraceContext:
        return TraceContext(self.trace_id, span_id, self.span_id, self.sampled, self.state)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


FactKind = Literal["lookup", "flight", "attempt", "store"]


class Fact(NamedTuple):
    """One thing that was done: what, from when to when, with what result; `context` where its span had to exist early."""

    kind: FactKind
    started_at: float
    ended_at: float
    subject: str
    result: str
    context: TraceContext | None = None
    attributes: dict[str, Any] | None = None


class Record:
    """Facts in order under one span, and what was spent: `calls`, and their `cost` in millionths of the price's currency."""

    __slots__ = ("calls", "context", "cost", "ended_at", "facts", "new_id", "started_at")

    def __init__(self, context: TraceContext, started_at: float, new_id: Callable[[], int]) -> None:
        self.context = context
        self.started_at = started_at
        self.ended_at: float | None = None
        self.new_id = new_id
        self.facts: list[Fact] = []
        self.calls = self.cost = 0

    def note(
        self,
        kind: FactKind,
        started_at: float,
        ended_at: float,
        subject: str,
        result: str,
        context: TraceContext | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        self.facts.append(Fact(kind, started_at, ended_at, subject, result, context, attributes))

    def branch(self) -> TraceContext:
        """The context of a span below this one, made before its work so that the work can carry it on."""
        return self.context.child(self.new_id())

    def charge(self, micros: int) -> None:
        """One call that is paid for, or may be."""
        self.calls += 1
        self.cost += micros

    def refund(self, micros: int) -> None:
        """One that was charged and not made after all."""
        self.calls -= 1
        self.cost -= micros


class FlightTrail(Record):
    """The shared work of one flight: it may outlive the request that started it, whose trail is `opener`.

    `fetched` or `error` once it has ended.
    """

    __slots__ = ("error", "fetched", "opener", "result")

    def __init__(self, context: TraceContext, started_at: float, new_id: Callable[[], int], opener: Trail | None = None) -> None:
        super().__init__(context, started_at, new_id)
        self.opener = opener
        self.result = "abandoned"
        self.fetched: Fetched | None = None
        self.error: EdgeError | None = None

    @property
    def run_id(self) -> UUID | None:
        return None if self.opener is None else self.opener.run_id

    def end(self, outcome: Fetched | EdgeError, ended_at: float) -> None:
        self.ended_at = ended_at
        if isinstance(outcome, EdgeError):
            self.error, self.result = outcome, outcome.code.lower()
        else:
            self.fetched, self.result = outcome, "ok"


class Trail(Record):
    """One request of a fetch endpoint, from its arrival to its answer; closes exactly once."""

    # Defaults of the class: a hit sets five of them, and setting all would cost it more than its key.
    run_id: UUID | None = None
    source_id: UUID | None = None
    source_name: str | None = None
    project: str | None = None
    key: str | None = None
    mode: Mode = "live"
    why: str | None = None
    collapsed = False
    price: Price | None = None
    fetched: Fetched | None = None
    error: EdgeError | None = None
    status = 0
    outcome = ""

    def take_over(self, flight: FlightTrail) -> None:
        """What the flight spent is on this request's row from here on, and on no other."""
        self.calls += flight.calls
        self.cost += flight.cost
        flight.calls = flight.cost = 0

    @property
    def saved(self) -> int | None:
        """Millionths that a call would have cost this request, had not the cache or another's call answered it."""
        return None if self.price is None or self.fetched is None or self.calls else self.price.micros

    def deliver(self, fetched: Fetched, ended_at: float) -> None:
        self._close(ended_at, 200)
        self.fetched = fetched
        if fetched.origin == "CACHE":
            self.outcome = "revalidated" if fetched.revalidated else "stale" if fetched.stale else "hit"
        else:
            self.outcome = "collapsed" if self.collapsed else "fetched"

    def fail(self, error: EdgeError, ended_at: float) -> None:
        self._close(ended_at, error.kind.status)
        self.error = error
        self.outcome = error.code.lower()

    def tried(self, error: EdgeError | None, ended_at: float) -> None:
        """A test of a data source: it may have cost a call, and was no request of a run."""
        self._close(ended_at, error.kind.status if error else 200)
        self.error = error
        self.outcome = "test"

    def withhold(self, error: EdgeError) -> None:
        """The answer of this closed trail is not given: `error` is given in its place."""
        self.fetched, self.error = None, error
        self.status, self.outcome = error.kind.status, error.code.lower()

    def _close(self, ended_at: float, status: int) -> None:
        if self.ended_at is not None:
            raise RuntimeError("a trail closes once")
        self.ended_at = ended_at
        self.status = status
