"""The edge that a command asks: one that runs at a URL, or one in this process, over the database that the settings name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import typer

from broker_edge.api.app import front
from broker_edge.backends.edge_client import EdgeClient, over_application, over_network
from broker_edge.backends.key_file import NAME
from broker_edge.cli_start import fail, refuse_unmigrated, settings_in_force
from broker_edge.settings import Settings, SettingsError
from broker_edge.telemetry.logs import configure
from broker_edge.wiring import Edge, build


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
    """An edge that serves nobody else, started and stopped here: when it is left, all its rows are in the database."""
    edge = _built(settings)
    await edge.start()
    try:
        async with over_application(front(edge), project) as client:
            yield client
    finally:
        await edge.stop()


def _built(settings: Settings) -> Edge:
    """Standard output is the command's: beside it come the edge's failures, and what must not be missed."""
    key_file = settings.data_dir / NAME
    had_keys = key_file.exists()
    try:
        edge = build(settings, configure("ERROR", sys.stderr))
    except SettingsError as error:
        fail(str(error), 2)
    if not had_keys and key_file.exists():
        typer.echo(f"an encryption key was made in DATA_DIR ({NAME}): without it, secrets can't be read any more", err=True)
    return edge
