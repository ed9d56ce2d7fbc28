"""Secrets and what is made of them on the way upstream: the vault, kept secrets, tokens, calls."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_durable import SqlDurable
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.flow.background import Background
from broker_edge.flow.budget import Purses
from broker_edge.flow.calling import Calls
from broker_edge.flow.outbound_auth import Proofs, RefreshTokens
from broker_edge.flow.registry import Registry
from broker_edge.flow.secrets import Secrets
from broker_edge.flow.tokens import Tokens
from broker_edge.flow.upstream import Upstream
from broker_edge.guard.vault import Vault
from broker_edge.ports import Fleet, HotTier
from broker_edge.settings import Settings
from broker_edge.telemetry.logs import Log


def new_token() -> str:
    """Of a holder of a lease."""
    return f"{random.getrandbits(64):016x}"


def make_secrets(
    settings: Settings,
    engine: AsyncEngine,
    durable: SqlDurable,
    vault: Vault,
    registry: Registry,
    background: Background,
    new_id: Callable[[], uuid.UUID],
) -> Secrets:
    secrets = Secrets(
        SqlSecrets(engine, durable.writer, new_id=new_id),
        vault,
        background,
        new_id=new_id,
        within=settings.db_timeout,
        hears=lambda: registry.hearing,
    )
    registry.listeners.append(secrets.forget)
    return secrets


def make_calls(
    settings: Settings,
    upstream: Upstream,
    purses: Purses,
    secrets: Secrets,
    registry: Registry,
    vault: Vault,
    hot: HotTier,
    fleet: Fleet,
    background: Background,
    log: Log,
) -> Calls:
    tokens = Tokens(
        hot,
        fleet,
        upstream,
        vault,
        background,
        lease=settings.flight_lease,
        new_token=new_token,
        keep=RefreshTokens(secrets, registry, time.time).keep,
        on_failure=log.failure,
    )
    return Calls(upstream, purses, uuid.uuid4, secrets, Proofs(tokens))
