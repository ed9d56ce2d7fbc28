"""What the stores of the registry share: the end of SQLAlchemy's and the drivers' exceptions, and times as columns hold them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from broker_edge.errors import TierBroken


@contextlib.asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Raises TierBroken for whatever the database or its driver raises, and lets our own errors pass."""
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError):
        raise TierBroken("the database can't be reached") from None
    except (ValueError, TypeError, OverflowError):  # drivers let these through as they are
        raise TierBroken("the database can't take a value") from None


def time_of(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)


def epoch_of(time: datetime) -> float:
    """SQLite keeps no zone: what it gives back is the UTC that was put in."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
