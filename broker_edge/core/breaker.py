"""A circuit breaker as a transition table, for cache tiers: so that a dead Redis isn't waited for by each request.

The caller asks `allows` before each use and tells `record` how it went; time is an argument, on a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType


class State(Enum):
    """CLOSED: everything passes. OPEN: nothing does. HALF_OPEN: a probe is out, nothing else passes."""

    CLOSED = auto()
    OPEN = auto()
    HALF_OPEN = auto()


class Event(Enum):
    """SUCCEEDED, FAILED: a use came back. TRIPPED: one failure too many. COOLED: a use is asked for after the cool-down."""

    SUCCEEDED = auto()
    FAILED = auto()
    TRIPPED = auto()
    COOLED = auto()


# What isn't listed changes nothing. Above all a use that began before the breaker opened and comes back while it is OPEN: one
# success among failures is no recovery, and its failure must not postpone the probe.
TRANSITIONS: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        (State.CLOSED, Event.TRIPPED): State.OPEN,
        (State.OPEN, Event.COOLED): State.HALF_OPEN,
        (State.HALF_OPEN, Event.COOLED): State.HALF_OPEN,  # the probe never came back: its caller was cancelled, say
        (State.HALF_OPEN, Event.SUCCEEDED): State.CLOSED,
        (State.HALF_OPEN, Event.FAILED): State.OPEN,
        (State.HALF_OPEN, Event.TRIPPED): State.OPEN,
    }
)


class Breaker:
    """Opens after `failures` failures in a row; after `cooldown` seconds one use passes as a probe and decides."""

    __slots__ = ("_cooldown", "_entered", "_failures", "_row", "_state")

    def __init__(self, *, failures: int = 3, cooldown: float = 1.0) -> None:
        self._failures = failures
        self._cooldown = cooldown
        self._state = State.CLOSED
        self._row = 0
        self._entered = 0.0

    @property
    def state(self) -> State:
        return self._state

    def allows(self, now: float) -> bool:
        """Whether a use may go ahead at `now`; True on an open breaker makes the caller the probe, which has to `record`."""
        if self._state is State.CLOSED:
            return True
        if now - self._entered < self._cooldown:
            return False
        self._move(Event.COOLED, now)
        return True

    def record(self, ok: bool, now: float) -> None:
        """How a use went that `allows` let through."""
        self._row = 0 if ok else self._row + 1
        if ok:
            if self._state is not State.CLOSED:  # where it changes nothing: looking that up would be dearer than all the rest
                self._move(Event.SUCCEEDED, now)
        else:
            self._move(Event.TRIPPED if self._row >= self._failures else Event.FAILED, now)

    def _move(self, event: Event, now: float) -> None:
        following = TRANSITIONS.get((self._state, event))
        if following is not None:
            self._state = following
            self._entered = now
