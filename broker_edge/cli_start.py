"""What every command begins with: settings, the data directory, a database at the right revision; and how it fails."""

from __future__ import annotations

from typing import Any, NoReturn

import typer

from broker_edge.settings import PREFIX, Settings, SettingsError, load


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def settings_in_force(**overrides: Any) -> Settings:
    try:
        return load(**overrides)
    except SettingsError as error:
        fail(str(error), 2)


def prepare(settings: Settings) -> None:
    try:
        for directory in (settings.data_dir, settings.data_dir / "spool", settings.data_dir / "rejected"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        fail(f"{PREFIX}DATA_DIR: the directory can't be made or written")


async def refuse_unmigrated(settings: Settings) -> None:
    from broker_edge.backends.sql_durable import close_engine, make_engine
    from broker_edge.wiring import NotMigrated, check_migrated

    prepare(settings)
    engine = make_engine(settings.database)
    try:
        await check_migrated(engine)
    except NotMigrated as error:
        fail(str(error))
    except Exception as error:  # noqa: BLE001 whatever the driver says may hold the URL
        fail(f"the database can't be reached ({type(error).__name__}): check {PREFIX}DATABASE_URL or {PREFIX}DB_*")
    finally:
        await close_engine(engine)


def refuse_closed_keys(settings: Settings) -> None:
    """A key file that can't be used stops the start; where there is none yet, the edge makes one."""
    from broker_edge.wiring.keys import keys_of

    try:
        keys_of(settings)
    except SettingsError as error:
        fail(str(error))
