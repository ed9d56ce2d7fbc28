"""How long a refill that failed is left alone, while its stale entry is served in its place.

`flow.backoff` keeps one `Pause` for each key. Seconds by any one clock.
"""

from __future__ import annotations

import msgspec

from broker_edge.core.pacing import full_jitter

_FIRST = 1.0  # seconds: the longest wait after the first failure; doubled with each further one


class Pause(msgspec.Struct, frozen=True):
    """No refill before `until`; `failures` in a row led to it. `excused`: the last of them may be answered with what is stale."""

    failures: int
    until: float
    excused: bool = True


def paused(before: Pause | None, now: float, *, retry_after: float | None, rand: float, excused: bool = True) -> Pause:
    """The pause after one more failure: exponential with full jitter, at most a minute, and never less than `retry_after`.

    A failure that comes while a pause lasts (a refresh takes no notice of it) prolongs it and never cuts it short.
    """
    failures = before.failures if before else 0
    until = now + max(full_jitter(failures, _FIRST, rand), retry_after or 0.0)
    return Pause(failures + 1, max(until, before.until) if before else until, excused)
