"""`broker-edge doctor`: what is wrong with a set-up, each finding with its remedy."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker_edge.backends.key_file import KeyFileError, read_keys
from broker_edge.backends.migrations import NewerDatabase, current, head, is_newer
from broker_edge.backends.redis_link import RedisHot, connect
from broker_edge.backends.sql_durable import close_engine, make_engine
from broker_edge.backends.sql_seals import SqlSeals
from broker_edge.errors import TierBroken
from broker_edge.guard.addresses import parse_allowed
from broker_edge.guard.vault import KeyRing
from broker_edge.settings import PREFIX, Settings

_PATIENCE = 5.0
_COUNTING = 3.0  # seconds of them for the secrets' keys


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    ok: bool
    message: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.subject}: {self.message}" + (f" -> {self.remedy}" if self.remedy else "")


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which its remedy would be applied."""
    checks: list[tuple[str, Callable[[Settings], Awaitable[Finding]]]] = [
        ("data directory", _data_dir),
        ("database", _database),
        ("hot tier", _hot_tier),
        ("encryption keys", _keys),
        ("address guard", _guard),
    ]
    findings = []
    for subject, check in checks:
        try:
            async with asyncio.timeout(_PATIENCE):
                findings.append(await check(settings))
        except Exception as error:  # noqa: BLE001 a check that fails is a finding; what a driver says may hold a URL
            findings.append(Finding(subject, False, f"can't be reached ({type(error).__name__})", _REMEDIES[subject]))
    return findings


_REMEDIES = {
    "data directory": f"set {PREFIX}DATA_DIR to a directory that this user may write",
    "database": f"check {PREFIX}DATABASE_URL, {PREFIX}DATA_DIR or {PREFIX}DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASSWORD",
    "hot tier": f"check {PREFIX}REDIS_URL, and that Redis runs",
    "encryption keys": f"set {PREFIX}ENCRYPTION_KEYS to the same entry for every instance: the one in DATA_DIR/encryption_keys, "
    "or a new one of `broker-edge keys generate` where nothing is sealed yet",
    "address guard": f"check {PREFIX}ALLOWED_PRIVATE_HOSTS",
}


async def _data_dir(settings: Settings) -> Finding:
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    writable = os.access(settings.data_dir, os.W_OK | os.X_OK)
    message = "is writable" if writable else "is not writable"
    return Finding("data directory", writable, message, None if writable else _REMEDIES["data directory"])


def _homeless(settings: Settings) -> bool:
    """Not left to the driver: the thread of a connection that failed may outlive the event loop, and complain."""
    return settings.embedded and not Path(settings.database.partition("///")[2].partition("?")[0]).parent.is_dir()


async def _database(settings: Settings) -> Finding:
    if _homeless(settings):
        return Finding("database", False, "has no directory", _REMEDIES["database"])
    engine = make_engine(settings.database, timeout=_PATIENCE)
    try:
        revision = await current(engine)
    finally:
        await close_engine(engine)
    if revision == head():
        return Finding("database", True, f"is at revision {revision}")
    if is_newer(revision):
        message, _, remedy = str(NewerDatabase()).partition(": ")
        return Finding("database", False, message, remedy)
    return Finding("database", False, f"is at revision {revision or 'none'}, not {head()}", "run `broker-edge migrate`")


async def _hot_tier(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return Finding("hot tier", True, "is in memory: one worker, and nothing shared with other instances")
    hot = RedisHot(connect(settings.redis_url.get_secret_value(), settings.redis_timeout))
    try:
        await hot.ping()
    finally:
        await hot.aclose()
    return Finding("hot tier", True, "Redis answers")


async def _keys(settings: Settings) -> Finding:
    own = None if settings.encryption_keys is None else settings.encryption_keys.get_secret_value()
    try:
        text = own or read_keys(settings.data_dir)
        ids = KeyRing.parse(text).ids if text else ()
    except KeyFileError as error:
        return Finding("encryption keys", False, str(error), _REMEDIES["encryption keys"])
    except ValueError as error:
        return Finding("encryption keys", False, f"the file in DATA_DIR: {error}", _REMEDIES["encryption keys"])
    if (lacking := await _lacking(settings, ids)) is not None:
        return lacking
    if own is not None:
        return Finding("encryption keys", True, f"{len(ids)} in force: the first seals, all open")
    if settings.embedded:
        return Finding("encryption keys", True, "are in DATA_DIR" if text else "will be made in DATA_DIR at the first start")
    message = "are in DATA_DIR alone" if text else "are not set, so that `serve` makes one in DATA_DIR"
    why = "it serves, but no other instance, nor this one without that directory, could open the secrets in Postgres"
    return Finding("encryption keys", False, f"{message}: {why}", _REMEDIES["encryption keys"])


async def _lacking(settings: Settings, ids: Collection[str]) -> Finding | None:
    """Whether secrets are sealed with keys that are not in force. A database that can't tell is another finding."""
    if _homeless(settings):
        return None
    engine = make_engine(settings.database, timeout=_COUNTING)
    missing: dict[str | None, int] = {}
    try:
        with contextlib.suppress(TierBroken, TimeoutError):
            async with asyncio.timeout(_COUNTING):
                missing = {key_id: count for key_id, count in (await SqlSeals(engine).counts()).items() if key_id not in ids}
    finally:
        await close_engine(engine)
    if not missing:
        return None
    told = ", ".join(f"{count} with {'none' if key_id is None else f'key {key_id}'}" for key_id, count in missing.items())
    names = " and ".join(key_id for key_id in missing if key_id is not None)
    remedy = f"put {names} back into {PREFIX}ENCRYPTION_KEYS behind the others, or " if names else ""
    message = f"secrets are sealed with keys that are not in force, and can't be opened: {told}"
    return Finding("encryption keys", False, message, f"{remedy}set those secrets again")


async def _guard(settings: Settings) -> Finding:
    parse_allowed(settings.allowed_private_hosts)
    count = len(settings.allowed_private_hosts)
    return Finding(
        "address guard", True, f"{count} private entries are let through" if count else "only public addresses are called"
    )
