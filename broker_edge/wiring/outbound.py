"""What is needed on the way upstream beside the call itself: the vault, kept secrets, tokens, budgets."""

from __future__ import annotations

import random
import time
import uuid

from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.backends.sql_budget import SqlBudgets
from broker_edge.backends.sql_durable import SqlDurable
from broker_edge.backends.sql_seals import SqlSeals
from broker_edge.backends.sql_secrets import SqlSecrets
from broker_edge.flow.background import Background
from broker_edge.flow.budget import Purses
from broker_edge.flow.calling import Calls
from broker_edge.flow.key_watch import KeyWatch
from broker_edge.flow.outbound_auth import Proofs, RefreshTokens
from broker_edge.flow.registry import Registry
from broker_edge.flow.secrets import Secrets
from broker_edge.flow.tokens import Tokens
from broker_edge.flow.upstream import Upstream
from broker_edge.ports import Fleet, HotTier
from broker_edge.settings import Settings
from broker_edge.telemetry.logs import Log
from broker_edge.wiring.keys import make_vault


def new_token() -> str:
    """Of a holder of a lease."""
    return f"{random.getrandbits(64):016x}"


class Outgoing:
    """`secrets`, the `calls` that use them, and the watch over the `keys` that open them."""

    def __init__(
        self, settings: Settings, engine: AsyncEngine, durable: SqlDurable, registry: Registry, background: Background, log: Log
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._background = background
        self._log = log
        self._vault = make_vault(settings, log)
        self.keys = KeyWatch(SqlSeals(engine), self._vault.key_ids, within=settings.db_timeout, on_error=log.error)
        self._purses = Purses(SqlBudgets(engine, durable.writer), background, within=settings.db_timeout)
        self.secrets = Secrets(
            SqlSecrets(engine, durable.writer),
            self._vault,
            background,
            new_id=uuid.uuid4,
            within=settings.db_timeout,
            hears=lambda: registry.hearing,
            on_unopened=self.keys.unopened,
        )
        registry.listeners.append(self.secrets.forget)

    def calls(self, upstream: Upstream, hot: HotTier, fleet: Fleet) -> Calls:
        tokens = Tokens(
            hot,
            fleet,
            upstream,
            self._vault,
            self._background,
            lease=self._settings.flight_lease,
            new_token=new_token,
            keep=RefreshTokens(self.secrets, self._registry, time.time).keep,
            on_failure=self._log.failure,
        )
        return Calls(upstream, self._purses, uuid.uuid4, self.secrets, Proofs(tokens))
