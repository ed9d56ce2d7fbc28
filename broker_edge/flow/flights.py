"""Single flight: one fetch for everyone who waits, in this process by a shared task, across the fleet by a lease.

The shared work runs in its own task under its own deadline, so a caller that leaves or times out takes nobody along; the
deadline grows with whoever joins and has more time. Across the fleet: bid for the lease; the winner LOOKS AGAIN before it
fetches, because another instance may have finished between the look-up that missed and this bid; a loser waits for the bell, at
most until the lease lapses, and bids anew. Leadership fails open: without it an instance fetches alone, and that is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from broker_edge.core.breaker import Breaker
from broker_edge.core.exchange import Entry, Fetched
from broker_edge.core.trail import FlightTrail, Trail
from broker_edge.errors import CODES, EdgeError, RememberedStatus, TierBroken, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.flight import Flight, Outcome, timed_out
from broker_edge.flow.guarded import guarded
from broker_edge.ports import Bell, Fleet, Lead

B = TypeVar("B")
_STORED = b"stored"
# Another instance's secrets, patience or budget may differ: these failures of its leader say nothing about our own attempt.
_NOT_OURS = frozenset({"TIMEOUT", "MISSING_VARIABLE", "INVALID_VALUE", "INTERNAL", "BUDGET_EXHAUSTED"})
# Whoever's secrets went along: no caller's own attempt would fare better. Not so for errors of connecting: a secret may be
# the host, and an attempt that reaches nobody costs nothing.
_ANYBODYS = frozenset({"TIMEOUT", "OVERLOADED", "CIRCUIT_OPEN", "STORAGE_UNAVAILABLE"})
_ANYBODYS_STATUS = frozenset({502, 503, 504})


class Work(Protocol[B]):
    """The work of a flight: `recall` answers what the tiers hold by now, `buy` calls the upstream, `keep` stores the answer.

    `landed` hears the outcome, before anybody else does. Works of equal `terms` may spend the same.
    """

    @property
    def terms(self) -> object: ...

    async def recall(self, found: Entry | None, trail: FlightTrail) -> Fetched | None: ...

    async def reread(self, trail: FlightTrail) -> Fetched | None: ...

    async def buy(self, trail: FlightTrail, remaining: Callable[[], float]) -> B: ...

    async def keep(self, bought: B, trail: FlightTrail) -> Fetched: ...

    def landed(self, outcome: Outcome) -> None: ...


class Flights:
    """`lease` and `wait` in seconds; `on_end` gets the trail of every flight.

    `on_charge` gets before that the trail of one that spent something for which no request's row can account.
    """

    def __init__(
        self,
        fleet: Fleet,
        background: Background,
        *,
        lease: float,
        wait: float,
        new_token: Callable[[], str],
        on_end: Callable[[FlightTrail], None],
        on_charge: Callable[[FlightTrail], None],
        on_failure: Callable[[str, BaseException, str | None], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._background = background
        self._lease = lease
        self._wait = wait
        self._new_token = new_token
        self._on_end = on_end
        self._on_charge = on_charge
        self._on_failure = on_failure
        self._now = now
        self._breaker = Breaker()
        self._running: dict[str, Flight] = {}

    async def join(self, key: str, identity: Mapping[str, Any], deadline: float, trail: Trail, work: Work[Any]) -> Fetched:
        """The result of the flight of `key`, started if none is under way; raises its EdgeError, or TIMEOUT at `deadline`.

        `identity` holds the caller's secrets: where a flight fails that another caller's secrets led, another one goes, until
        one went with ours; so too where one was refused by a budget that is not ours, as specs bring theirs along. And where one
        gave up that began before us, we still have time for another.
        """
        while True:
            flight, led = self._board(key, identity, deadline, trail, work)
            outcome = await self._result(flight, led, deadline, trail)
            if led or not isinstance(outcome, EdgeError) or deadline <= asyncio.get_running_loop().time():
                break
            if not _again(flight, identity, work.terms, outcome):
                break
        trail.collapsed = not led
        if isinstance(outcome, EdgeError):
            raise outcome.with_traceback(None)
        return outcome

    def start(self, key: str, identity: Mapping[str, Any], deadline: float, trail: Trail, work: Work[Any]) -> None:
        """Refill behind a reply: a flight that nobody waits for, unless it is under way already."""
        if key not in self._running:
            self._board(key, identity, deadline, trail, work)

    def _board(
        self, key: str, identity: Mapping[str, Any], deadline: float, trail: Trail, work: Work[Any]
    ) -> tuple[Flight, bool]:
        flight = self._running.get(key)
        if flight is not None and flight.admit(deadline):
            return flight, False
        record = FlightTrail(trail.branch(), self._now(), trail.new_id, trail)
        flight = self._running[key] = Flight(key, identity, work.terms, record, deadline, self._background.timers)
        flight.task = self._background.spawn("flight", self._fly(flight, work))
        return flight, True

    async def _result(self, flight: Flight, led: bool, deadline: float, trail: Trail) -> Outcome:
        started_at, result = self._now(), "timeout"
        try:
            outcome = await flight.ride(deadline, trail if led else None)
            result = outcome.code.lower() if isinstance(outcome, EdgeError) else "ok"
            return outcome
        finally:
            role = "leader" if led else "follower"
            trail.note("flight", started_at, self._now(), role, result, flight.trail.context)

    async def _fly(self, flight: Flight, work: Work[Any]) -> None:
        """Passengers are told as soon as the answer is safe; the fleet is told behind them, but of a failure before them.

        A request that comes after a failure is known here must not hear that flight's bell and take it for its own.
        """
        try:
            outcome = await self._outcome(flight, work)
            work.landed(outcome)
            if isinstance(outcome, EdgeError):
                await self._settle(flight, _message_of(outcome, bare=not flight.identity))
        except asyncio.CancelledError:
            self._close(flight, EdgeError("OVERLOADED", "the edge is stopping"))
            flight.crash()
            raise
        finally:
            if self._running.get(flight.key) is flight:
                del self._running[flight.key]
        self._close(flight, outcome)
        flight.land(outcome)
        self._on_end(flight.trail)
        if not isinstance(outcome, EdgeError):
            await self._settle(flight, _STORED)

    def _close(self, flight: Flight, outcome: Outcome) -> None:
        """End the trail, and settle who accounts for what was spent: the leader's row, or where nobody leads one of its own.

        Just before the passengers are told, without a pause between: so it is always one of the two, and never both.
        """
        record, leader = flight.trail, flight.leader()
        record.end(outcome, self._now())
        if not record.calls:
            return
        if leader is not None:
            leader.take_over(record)
        else:
            self._on_charge(record)

    async def _outcome(self, flight: Flight, work: Work[Any]) -> Outcome:
        """An outcome that many waiters share is a value. Raises only the cancellation that is not its own deadline's."""
        flight.take_off()
        try:
            return await self._lead(flight, work)
        except asyncio.CancelledError:
            if not flight.expired or flight.task.uncancel():
                await self._settle(flight, _message_of(timed_out(), bare=False))  # followers elsewhere are let go
                raise
            return timed_out()
        except EdgeError as error:
            return error
        except Exception as error:  # noqa: BLE001 whatever it was, waiters get an answer and the log gets its name
            self._on_failure("flight", error, f"{flight.trail.context.trace_id:032x}")
            return EdgeError("INTERNAL", "the edge failed while it fetched")
        finally:
            flight.touch_down()

    async def _lead(self, flight: Flight, work: Work[Any]) -> Fetched:
        key, token = flight.tier_key, self._new_token()
        give_up = asyncio.get_running_loop().time() + self._wait
        async with self._fleet.listen(key) as bell:
            while True:
                started_at = self._now()
                try:
                    lead = await self._bid(key, token)
                except TierBroken:
                    fetched = await self._alone(flight, work, started_at, "broken")
                    flight.token = token  # the lease may have been granted and only the answer lost: then somebody waits for it
                    return fetched
                if lead.won:
                    flight.trail.note("flight", started_at, self._now(), "fleet_leader", "ok")
                    flight.token = token
                    return await self._led(key, token, flight, work, lead.entry)
                patience = min(lead.lease_left + 0.05, give_up - asyncio.get_running_loop().time())
                if patience <= 0:
                    return await self._alone(flight, work, started_at, "alone")
                told = await self._told(bell, patience, work, flight, started_at)
                if told is not None:
                    return told

    async def _bid(self, key: str, token: str) -> Lead:
        """Once more where the first try fails: a stall of this process looks like a broken Redis, and costs a second call."""
        try:
            return await guarded(self._breaker, lambda: self._fleet.bid(key, token, self._lease))
        except TierBroken:
            return await guarded(self._breaker, lambda: self._fleet.bid(key, token, self._lease))

    async def _told(self, bell: Bell, patience: float, work: Work[Any], flight: Flight, started_at: float) -> Fetched | None:
        """What the leader's bell brings; None where this instance must bid again. Raises the leader's error if it is ours too."""
        message = await bell.ring(patience)
        flight.trail.note("flight", started_at, self._now(), "fleet_follower", "ok" if message else "lapsed")
        if message is None:
            return None
        if message == _STORED:
            return await work.reread(flight.trail)
        error, bare = _error_of(message)
        without_secrets = bare and not flight.identity
        if error.code in _NOT_OURS or not (without_secrets or _is_anybodys(error)):
            return None
        raise error

    async def _alone(self, flight: Flight, work: Work[Any], started_at: float, role: str) -> Fetched:
        flight.trail.note("flight", started_at, self._now(), role, "ok")
        return await work.recall(None, flight.trail) or await self._bought(flight, work)

    async def _led(self, key: str, token: str, flight: Flight, work: Work[Any], found: Entry | None) -> Fetched:
        """The work under the lease, which is kept while it lasts; quick work never comes to that."""
        timers, soon = self._background.timers, asyncio.get_running_loop().time() + self._lease / 3
        alarm = timers.at(soon, partial(self._begin_to_renew, flight, key, token))
        try:
            return await work.recall(found, flight.trail) or await self._bought(flight, work)
        finally:
            timers.off(alarm)
            if flight.renewal is not None:
                flight.renewal.cancel()

    def _begin_to_renew(self, flight: Flight, key: str, token: str) -> None:
        flight.renewal = self._background.spawn("renew", self._renew_forever(key, token))

    async def _bought(self, flight: Flight, work: Work[Any]) -> Fetched:
        bought = await work.buy(flight.trail, flight.remaining)
        flight.bought = True
        return await work.keep(bought, flight.trail)

    async def _settle(self, flight: Flight, message: bytes) -> None:
        token = flight.token
        if token is not None:
            with contextlib.suppress(TierBroken):  # the lease lapses by itself
                await guarded(self._breaker, lambda: self._fleet.settle(flight.tier_key, token, message))

    async def _renew_forever(self, key: str, token: str) -> None:
        while True:
            with contextlib.suppress(TierBroken):
                if not await self._fleet.renew(key, token, self._lease):
                    await self._fleet.bid(key, token, self._lease)  # flushed away: nobody else may lead while this call runs
            await asyncio.sleep(self._lease / 3)


def _again(flight: Flight, identity: Mapping[str, Any], terms: object, error: EdgeError) -> bool:
    """Whether another flight might bring its passenger what this one did not."""
    if error.code == "BUDGET_EXHAUSTED" and flight.terms != terms:
        return True
    return flight.expired or not (_is_anybodys(error) or flight.identity == identity)


def _is_anybodys(error: EdgeError) -> bool:
    return (
        error.code in _ANYBODYS or error.upstream_status in _ANYBODYS_STATUS or isinstance(error, RememberedStatus)
    )  # the last: what the hot tier remembers, it tells everyone


def _message_of(error: EdgeError, *, bare: bool) -> bytes:
    """`bare`: the leader's caller had sent no secrets."""
    return msgspec.json.encode([error.code, error.message, error.retryable, error.retry_after, error.upstream_status, bare])


def _error_of(message: bytes) -> tuple[EdgeError, bool]:
    try:
        code, text, retryable, retry_after, status, bare = msgspec.json.decode(message)
        kind = UpstreamError if CODES[code].source == "upstream" else EdgeError
        return kind(code, text, retryable=retryable, retry_after=retry_after, upstream_status=status), bare
    except (msgspec.DecodeError, ValueError, KeyError, TypeError):
        return EdgeError("INTERNAL", "the fleet's leader failed"), False
