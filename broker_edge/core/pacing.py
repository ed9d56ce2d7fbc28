"""Arithmetic of waiting: back-off, Retry-After, jitter. All in seconds; clock and randomness (`rand` in [0, 1)) are arguments."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

BACKOFF_CAP = 60.0
RETRY_AFTER_CAP = 86_400.0
TTL_JITTER = 0.05

# Beyond it the power is over any cap with any factor worth the name, and 2.0 ** 1024 is an OverflowError.
_MAX_EXPONENT = 64
_DELTA_SECONDS = re.compile(r"[0-9]+")


def full_jitter(attempt: int, backoff_factor: float, rand: float) -> float:
    """The wait before retry number `attempt` (0 is the first): anything up to `backoff_factor` doubled with each, at most 60 s.

    "Full jitter" of Marc Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015: of its variants the one with the
    fewest calls in all, because retries spread over the whole interval instead of meeting again.
    """
    return rand * min(BACKOFF_CAP, backoff_factor * 2.0 ** min(attempt, _MAX_EXPONENT))


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` (epoch) that Retry-After asks for, 0 to a day; None where it says nothing that can be read.

    RFC 9110 section 10.2.3: delta-seconds, or an HTTP-date in any of the three forms of section 5.6.7.
    """
    text = (value or "").strip(" \t")
    if _DELTA_SECONDS.fullmatch(text):
        # Not by way of int: it refuses thousands of digits, a float turns them into infinity.
        return min(float(text), RETRY_AFTER_CAP)
    try:
        moment = parsedate_to_datetime(text)
        until = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, until - now), RETRY_AFTER_CAP)


def next_delay(attempt: int, policy_backoff: float, retry_after: float | None, rand: float, remaining: float) -> float | None:
    """The wait before the next try: the longer of back-off and Retry-After; None where `remaining` leaves no time after it."""
    delay = max(full_jitter(attempt, policy_backoff, rand), retry_after or 0.0)
    return delay if delay < remaining else None


def ttl_jitter(ttl: float, rand: float) -> float:
    """`ttl` less up to 5 per cent, so that what was stored together doesn't expire together; never above `ttl`."""
    return ttl * (1.0 - TTL_JITTER * rand)
