"""Housekeeping by the settings: for the loop of a process that serves, and for the command that does it once."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_retention import SqlHousekeeping
from broker_edge.core.retention import Limits, Table
from broker_edge.flow.retention import OnEvent, Retention
from broker_edge.settings import Settings


def limits(settings: Settings) -> Limits:
    given: dict[Table, int | None] = {
        "run_data_request": settings.retention_run_data_request_days,
        "data_object": settings.retention_data_object_days,
        "run_data_cache": settings.retention_run_data_cache_days,
        "secret_access": settings.retention_secret_access_days,
    }
    days = {table: days for table, days in given.items() if days is not None}
    return Limits(days, settings.retention_data_object_force)


def make_retention(
    settings: Settings, engine: AsyncEngine, writer: contextlib.AbstractAsyncContextManager[Any] | None, on_event: OnEvent
) -> Retention:
    return Retention(SqlHousekeeping(engine, writer), limits(settings), now=time.time, on_event=on_event)
