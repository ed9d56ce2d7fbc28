"""`broker-edge retention`: what the settings let go of, and letting it go at once instead of within the hour."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from broker_edge.cli_screen import progress, say, say_json, say_table
from broker_edge.cli_start import fail, refuse_unmigrated, settings_in_force
from broker_edge.core.retention import Removal
from broker_edge.errors import TierBroken
from broker_edge.flow.retention import Retention
from broker_edge.settings import PREFIX, Settings

retention = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="What is kept for how long (DATA_BROKER_RETENTION_...)."
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
T = TypeVar("T")
_LIMITS = tuple(name for name in Settings.model_fields if name.startswith("retention_") and name.endswith("_days"))
_HEAD = ("table", "how", "partition", "before", "rows", "kept")


@retention.command()
def plan(as_json: AsJson = False) -> None:
    """Say what is past its time; nothing is changed."""
    _show([_told(removal) for removal in _with_retention("counting", lambda work: work.plan())], as_json)


@retention.command()
def run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and change nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop the partitions, and delete the rows, that are past their time."""
    if dry_run:
        return plan(as_json)
    done = _with_retention("removing", lambda work: work.run())
    if done is None:
        fail("another process is at it")
    _show([{**_told(one.removal), "rows": one.gone} for one in done], as_json)
    if any(one.gone is None for one in done):
        fail("not all could go: a table is in use; what is left goes next time")
    return None


def _with_retention(what: str, work: Callable[[Retention], Awaitable[T]]) -> T:
    from broker_edge.backends.sql_durable import close_engine, make_engine
    from broker_edge.wiring.retention import make_retention

    settings = settings_in_force()

    async def worked() -> T:
        await refuse_unmigrated(settings)
        engine = make_engine(settings.database)
        try:
            with progress(what):
                return await work(make_retention(settings, engine, None, _unheard))
        except TierBroken as error:
            fail(f"{error.message}: check {PREFIX}DATABASE_URL or {PREFIX}DB_*")
        finally:
            await close_engine(engine)

    return asyncio.run(worked())


def _unheard(_what: str, **_facts: object) -> None:
    """The table that is printed says it all."""


def _told(removal: Removal) -> dict[str, Any]:
    return {
        "table": removal.table,
        "how": removal.how,
        "partition": removal.partition,
        "before": removal.before.isoformat(),
        "rows": removal.rows,
        "kept": removal.kept,
    }


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        say_json(list(rows))
    elif not rows and not any(getattr(settings_in_force(), name) for name in _LIMITS):
        names = ", ".join(f"{PREFIX}{name.upper()}" for name in _LIMITS)
        say(f"no retention is set, everything is kept for ever: {names}")
    elif not rows:
        say("nothing is past its time")
    else:
        say_table(_HEAD, [["-" if row[name] is None else str(row[name]) for name in _HEAD] for row in rows])
