"""Who the edge is to an upstream: `source.auth` put on a rendered request, at the last moment and never for a hit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from broker_edge.core.auth import OutboundAuth
from broker_edge.core.credentials import Credentials, authorized, credentials_of
from broker_edge.core.exchange import Outbound, SecretRef
from broker_edge.core.oauth import name_of
from broker_edge.core.plan import Plan
from broker_edge.core.record import Reading
from broker_edge.core.trail import Record
from broker_edge.errors import EdgeError
from broker_edge.flow.registry import Registry
from broker_edge.flow.secrets import Secrets
from broker_edge.flow.tokens import Tokens, Want


class Proven(NamedTuple):
    """A request that is ready to be sent; `token` is the one that it carries, where `source.auth` is bearer."""

    request: Outbound
    token: str | None = None


class Proofs:
    """Makes requests ready; `tokens` are bearer's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def prove(
        self, request: Outbound, plan: Plan, revealed: Mapping[str, Any], record: Record, *, rejected: str | None = None
    ) -> Proven:
        """The rendered request of `plan` with its proof; `revealed` is the plan's env with values in place of references.

        `rejected` is a token that the upstream refused. Raises `CallerError` INVALID_VALUE naming a credential that can't be
        used, and what fetching a token raises. The caller keeps the deadline.
        """
        auth = plan.source.auth
        if auth is None:
            return Proven(request)
        given = credentials_of(auth, revealed)
        if auth.method != "bearer":
            return Proven(authorized(request, auth, given))
        authorized(request, auth, given, "")  # what can't be sent is refused before a token is asked for
        token = await self._tokens.token(self._want(plan, auth, given), record, rejected)
        return Proven(authorized(request, auth, given, token), token)

    def _want(self, plan: Plan, auth: OutboundAuth, given: Credentials) -> Want:
        """Digests of passwords are keyed: whoever reads Redis can't try any against them."""
        owner = (plan.project, str(plan.source.data_source_id), auth.token_url)
        told = [part for name, value in given.items() if name != "REFRESH_TOKEN" for part in (name, value)]
        patience = plan.source.timeout
        if auth.grant != "refresh_token":
            key = self._tokens.digest(("token", *owner, auth.grant, auth.scope, auth.client_auth, *told))
            return Want(auth, given, plan.project, patience, f"token:{key}")
        refresh = given["REFRESH_TOKEN"]
        ref = plan.env["REFRESH_TOKEN"]
        kept = ref if isinstance(ref, SecretRef) else None
        # A kept one is replaced by its successors: it is known by its place. One that callers bring is known by itself.
        known = ("ref", str(kept.data_source_id), kept.kind, kept.name) if kept is not None else ("value", refresh)
        # The client's secret is left out: it may change, and the chain goes on.
        chain = name_of("chain", *owner, given["CLIENT_ID"], *known)
        key = self._tokens.digest(("token", *owner, auth.grant, auth.scope, auth.client_auth, *told, *known))
        return Want(auth, given, plan.project, patience, f"token:{key}", f"refresh:{chain}", self._tokens.mark(refresh), kept)


class RefreshTokens:
    """Puts a new refresh token where the registry keeps the one that it takes the place of, so that no restart loses it."""

    def __init__(self, secrets: Secrets, registry: Registry, now: Callable[[], float]) -> None:
        self._secrets = secrets
        self._registry = registry
        self._now = now

    async def keep(self, ref: SecretRef, project: str | None, refresh: str, precedes: Callable[[str], bool]) -> None:
        """Unless somebody has set another one meanwhile, which `precedes` tells. Raises EdgeError."""
        self._secrets.forget(ref.data_source_id)
        current = (await self._secrets.reveal({"": ref}, project, Reading("change", self._now())))[""]
        if not isinstance(current, str) or not precedes(current):
            raise EdgeError("INTERNAL", "the refresh token was changed while it was used")
        record = await self._registry.get(project, ref.data_source_id)
        await self._secrets.set(record, ref.kind, {ref.name: refresh}, complete=False, tries=1)
        await self._registry.secrets_changed(ref.data_source_id)
