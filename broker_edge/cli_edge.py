"""The edge that a command asks: one that runs at a URL, or one in this process, over the database that the settings name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

from broker_edge.api.app import front
from broker_edge.backends.edge_client import EdgeClient, over_application, over_network
from broker_edge.cli_start import refuse_unmigrated, settings_in_force
from broker_edge.settings import Settings
from broker_edge.telemetry.logs import configure
from broker_edge.wiring import build


@contextlib.asynccontextmanager
async def reached(url: str | None, project: str | None) -> AsyncIterator[EdgeClient]:
    if url is not None:
        async with over_network(url, project) as client:
            yield client
        return
    settings = settings_in_force(workers=1)
    await refuse_unmigrated(settings)
    async with in_this_process(settings, project) as client:
        yield client


@contextlib.asynccontextmanager
async def in_this_process(settings: Settings, project: str | None) -> AsyncIterator[EdgeClient]:
    """An edge that serves nobody else. Standard output is the command's: the edge logs its failures, beside it."""
    edge = build(settings, configure("ERROR", sys.stderr))
    await edge.start()
    try:
        async with over_application(front(edge), project) as client:
            yield client
    finally:
        await edge.stop()
