"""`broker-edge keys`: make an entry of the key ring, say what is sealed with which key, move everything under the first one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer

from broker_edge.cli_screen import aside, progress, say, say_json, say_table
from broker_edge.cli_start import fail, refuse_unmigrated, settings_in_force
from broker_edge.errors import EdgeError
from broker_edge.flow.rotation import rotate
from broker_edge.guard.vault import KeyRing, Vault, new_entry
from broker_edge.ports import Seals, SecretStore
from broker_edge.settings import PREFIX, Settings, SettingsError

keys = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="The keys that secrets are sealed with.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
Name = Annotated[str | None, typer.Option("--id", help="Its id: letters, digits, - and _")]
T = TypeVar("T")
_HEAD = ("key", "secrets", "state")


@keys.command()
def generate(name: Name = None, as_json: AsJson = False) -> None:
    """Print a new entry for DATA_BROKER_ENCRYPTION_KEYS."""
    entry = new_entry(f"k{secrets.token_hex(4)}" if name is None else name)
    try:
        key_id = KeyRing.parse(entry).current
    except ValueError:
        fail("--id: must be 1 to 32 letters, digits, - and _", 2)
    if as_json:
        say_json({"key": key_id, "entry": entry})
    else:
        typer.echo(entry)


@keys.command(name="list")
def show(as_json: AsJson = False) -> None:
    """Say which keys are in force and how many secrets each has sealed; no key is shown."""
    settings = settings_in_force()
    ids = _vault(settings).key_ids
    counts = _with_store(settings, _counts)
    rows = [(key_id, counts.get(key_id, 0), "opens" if number else "seals") for number, key_id in enumerate(ids)]
    rows += [(key_id or "?", count, "missing") for key_id, count in counts.items() if key_id not in ids]
    if as_json:
        say_json([dict(zip(_HEAD, row, strict=True)) for row in rows])
    else:
        say_table(_HEAD, [(key_id, str(count), state) for key_id, count, state in rows])


@keys.command(name="rotate")
def move(as_json: AsJson = False) -> None:
    """Seal every secret anew that is not under the first key. Ended halfway, it is just started again.

    The service goes on, if every running instance has that key: one that has not answers 500 from then on. So, in turn:

    1. `keys generate`; add the entry behind the others in DATA_BROKER_ENCRYPTION_KEYS (or DATA_DIR/encryption_keys, comma
    between) of every instance, and restart each.

    2. Put it first in all of them, and restart each.

    3. `keys rotate`, with the same keys.

    4. Once `keys list` shows 0 under the old key, take its entry out and restart. Refresh tokens that callers bring in
    env_variables have successors in Redis, which move at their next use: wait for that too.
    """
    settings = settings_in_force()
    vault = _vault(settings)
    first = vault.key_ids[0]

    async def moved(store: SecretStore, seals: Seals) -> Any:
        counts = await seals.counts()
        if todo := sum(counts.values()) - counts.get(first, 0):
            aside(
                f"running instances need key {first} in {PREFIX}ENCRYPTION_KEYS: those without it can't open what it seals",
                "yellow",
            )
        with progress("sealing", todo) as step:
            return await rotate(store, vault, progress=step)

    done = _with_store(settings, moved)
    if as_json:
        say_json({"key": first, **done._asdict()})
    else:
        say(f"{done.resealed} sealed anew with {first}")
    if done.unreadable:
        fail(f"{done.unreadable} are sealed with no key in force: put theirs into {PREFIX}ENCRYPTION_KEYS, or set them again")


def _vault(settings: Settings) -> Vault:
    from broker_edge.wiring.keys import keys_of

    try:
        ring = keys_of(settings)
    except SettingsError as error:
        fail(str(error))
    if ring is None:
        fail(f"there is no key yet: set {PREFIX}ENCRYPTION_KEYS, or start the edge, which makes one in DATA_DIR")
    return Vault(ring)


async def _counts(_: SecretStore, seals: Seals) -> Mapping[str | None, int]:
    return await seals.counts()


def _with_store(settings: Settings, work: Callable[[SecretStore, Seals], Awaitable[T]]) -> T:
    from broker_edge.backends.sql_durable import close_engine, make_engine
    from broker_edge.backends.sql_seals import SqlSeals
    from broker_edge.backends.sql_secrets import SqlSecrets

    async def worked() -> T:
        await refuse_unmigrated(settings)
        engine = make_engine(settings.database)
        try:
            return await work(SqlSecrets(engine), SqlSeals(engine))
        finally:
            await close_engine(engine)

    try:
        return asyncio.run(worked())
    except EdgeError as error:
        fail(error.message)
