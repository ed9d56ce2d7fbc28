"""`broker-edge doctor`: what is wrong with a set-up, each finding with its remedy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broker_edge.backends.key_file import KeyFileError, read_keys
from broker_edge.backends.migrations import current, head
from broker_edge.backends.redis_link import RedisHot, connect
from broker_edge.backends.sql_durable import close_engine, make_engine
from broker_edge.guard.addresses import parse_allowed
from broker_edge.guard.vault import KeyRing
from broker_edge.settings import PREFIX, Settings

_PATIENCE = 5.0


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


async def _database(settings: Settings) -> Finding:
    # Not left to the driver: the thread of a connection that failed may outlive the event loop, and complain.
    if settings.embedded and not Path(settings.database.partition("///")[2].partition("?")[0]).parent.is_dir():
        return Finding("database", False, "has no directory", _REMEDIES["database"])
    engine = make_engine(settings.database, timeout=_PATIENCE)
    try:
        revision = await current(engine)
    finally:
        await close_engine(engine)
    if revision == head():
        return Finding("database", True, f"is at revision {revision}")
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
    if settings.encryption_keys is not None:
        count = len(KeyRing.parse(settings.encryption_keys.get_secret_value()).ids)
        return Finding("encryption keys", True, f"{count} in force: the first seals, all open")
    try:
        text = read_keys(settings.data_dir)
        if text is not None:
            KeyRing.parse(text)
    except KeyFileError as error:
        return Finding("encryption keys", False, str(error), _REMEDIES["encryption keys"])
    except ValueError as error:
        return Finding("encryption keys", False, f"the file in DATA_DIR: {error}", _REMEDIES["encryption keys"])
    if settings.embedded:
        return Finding("encryption keys", True, "are in DATA_DIR" if text else "will be made in DATA_DIR at the first start")
    message = "are in DATA_DIR alone, and other instances would need them" if text else "are not set"
    return Finding("encryption keys", False, message, _REMEDIES["encryption keys"])


async def _guard(settings: Settings) -> Finding:
    parse_allowed(settings.allowed_private_hosts)
    count = len(settings.allowed_private_hosts)
    return Finding(
        "address guard", True, f"{count} private entries are let through" if count else "only public addresses are called"
    )
