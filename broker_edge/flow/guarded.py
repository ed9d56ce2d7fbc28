"""A breaker around a use of a cache tier or of the fleet's leases, so that requests don't wait one by one for what is dead."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker_edge.core.breaker import Breaker
from broker_edge.errors import TierBroken

T = TypeVar("T")


async def guarded(breaker: Breaker, call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call`; raises TierBroken, its own or at once while the breaker is open."""
    if not breaker.allows(time.monotonic()):
        raise TierBroken("it is left alone for a while")
    try:
        answer = await call()
    except TierBroken:
        breaker.record(ok=False, now=time.monotonic())
        raise
    breaker.record(ok=True, now=time.monotonic())
    return answer
