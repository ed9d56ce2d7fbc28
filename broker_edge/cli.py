"""The command line: serve, migrate, doctor, demo, bureau. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from broker_edge import __version__
from broker_edge.cli_fetch import fetch
from broker_edge.cli_keys import keys
from broker_edge.cli_retention import retention
from broker_edge.cli_sources import sources
from broker_edge.cli_start import fail, prepare, refuse_closed_keys, refuse_unmigrated, settings_in_force
from broker_edge.settings import MULTIPROCESS, PREFIX, Settings, share_with_children

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="An edge proxy for external data."
)

Host = Annotated[str | None, typer.Option(help="Address to listen on")]
Port = Annotated[int | None, typer.Option(help="Port to listen on", min=0, max=65535)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]

app.add_typer(sources, name="sources")
app.add_typer(retention, name="retention")
app.add_typer(keys, name="keys")
app.command()(fetch)


def main() -> None:
    app()


@app.callback(invoke_without_command=True)
def version(ctx: typer.Context, show: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit
    del ctx


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve; more than one needs Redis", min=1, max=256)] = None,
) -> None:
    """Run the service."""
    settings = settings_in_force(host=host, port=port, workers=workers)
    asyncio.run(refuse_unmigrated(settings))
    refuse_closed_keys(settings)
    # Workers are processes of their own and read the environment anew.
    for name, value in (("HOST", settings.host), ("PORT", settings.port), ("WORKERS", settings.workers)):
        share_with_children(f"{PREFIX}{name}", str(value))
    from broker_edge.server import run_server

    with _shared_metrics(settings):
        served = run_server(settings)
    sys.stdout.flush()
    # All is flushed and closed. The HTTP engine's threads may still run, and one that meets a dying interpreter aborts it.
    os._exit(0 if served else 1)


@contextlib.contextmanager
def _shared_metrics(settings: Settings) -> Iterator[None]:
    """Several workers share their metrics in files, so that a scrape of any of them answers for all."""
    if settings.workers == 1:
        yield
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="metrics-", dir=settings.data_dir))
    share_with_children(MULTIPROCESS, str(directory))
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the database up to date."""
    settings = settings_in_force()
    prepare(settings)
    revision = asyncio.run(_migrate(settings))
    typer.echo(json.dumps({"revision": revision}) if as_json else f"the database is at revision {revision}")


async def _migrate(settings: Settings) -> str:
    from broker_edge.backends.migrations import NewerDatabase
    from broker_edge.backends.migrations import migrate as bring_up
    from broker_edge.backends.sql_durable import close_engine, make_engine

    engine = make_engine(settings.database)
    try:
        return await bring_up(engine)
    except NewerDatabase as error:
        fail(str(error))
    except Exception as error:  # noqa: BLE001 whatever the driver says may hold the URL
        fail(f"the database can't be migrated ({type(error).__name__}): check {PREFIX}DATABASE_URL or {PREFIX}DB_*")
    finally:
        await close_engine(engine)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is wrong with a set-up, each line with its remedy."""
    from broker_edge.doctor import examine

    settings = settings_in_force()
    findings = asyncio.run(examine(settings))
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        for finding in findings:
            typer.echo(finding.line())
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    port: Port = None,
    bureau_port: Annotated[int, typer.Option(help="Port of the sample bureau, if it is free", min=0, max=65535)] = 7001,
) -> None:
    """Start the edge with its embedded default and a sample bureau, and print requests to paste."""
    from broker_edge.demo.run import run_demo

    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_demo(port, bureau_port))


@app.command()
def bureau(host: str = "127.0.0.1", port: Annotated[int, typer.Option(min=0, max=65535)] = 7001) -> None:
    """Run the sample bureau alone."""
    from broker_edge.demo.run import run_bureau

    if not run_bureau(host, port):
        fail(f"{host}:{port} can't be listened on: take another port with --port")


@app.command(name="config")
def show_config(as_json: AsJson = False) -> None:
    """Print the settings in force; secrets are starred."""
    values = settings_in_force().model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        text = ",".join(value) if isinstance(value, list) else value
        typer.echo(f"{PREFIX}{name.upper()}={'' if text is None else text}")
