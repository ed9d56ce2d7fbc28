"""A breaker around a use of a cache tier or of the fleet's leases, so that requests don't wait one by one for what is dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker_edge.core.breaker import Breaker
from broker_edge.errors import TierBroken

T = TypeVar("T")
_HANGING = 0.25  # seconds: no healthy tier takes as long


async def guarded(breaker: Breaker, call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call`; raises TierBroken: its own, or at once while the breaker is open.

    A caller whose deadline strikes while it waits counts as a failure too: else a tier that hangs costs each its deadline.
    """
    began = time.monotonic()
    if not breaker.allows(began):
        raise TierBroken("it is left alone for a while")
    try:
        answer = await call()
    except asyncio.CancelledError:
        if time.monotonic() - began > _HANGING:
            breaker.record(ok=False, now=time.monotonic())
        raise
    except TierBroken:
        breaker.record(ok=False, now=time.monotonic())
        raise TierBroken("it does not answer") from None
    breaker.record(ok=True, now=began)
    return answer
