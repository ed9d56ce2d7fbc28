"""From a plan to the upstream's answer: what is sent, who the edge is, and who pays, settled at the last moment.

Kept secrets are revealed, the request is rendered and gets its proof; live fetches and tests of a source go the same way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote_plus
from uuid import UUID

import msgspec

from broker_edge.core.auth import CLIENT, USER
from broker_edge.core.exchange import Outbound, Reply, SecretRef
from broker_edge.core.plan import Plan
from broker_edge.core.record import Reading
from broker_edge.core.render import render
from broker_edge.core.retry import keyed
from broker_edge.core.source import RetryPolicy
from broker_edge.core.trail import Record
from broker_edge.errors import CallerError, EdgeError, UpstreamError
from broker_edge.flow.budget import Purses
from broker_edge.flow.outbound_auth import Proofs
from broker_edge.flow.secrets import Secrets
from broker_edge.flow.upstream import Upstream

Scalar = str | int | float


class Probed(NamedTuple):
    """What a test of a source saw: the request as it was sent, and its answer or what became of it.

    `secrets` are the values that went along, tokens and what Basic joins included: those to be kept out of any report.
    """

    outbound: Outbound
    reply: Reply | None
    error: EdgeError | None
    secrets: tuple[Scalar, ...]


class _Errand:
    """One fetch on its way: the request as it is to be sent next, and the tokens that it has carried."""

    __slots__ = ("plan", "request", "revealed", "tokens")

    def __init__(self, plan: Plan, revealed: Mapping[str, Any], request: Outbound) -> None:
        self.plan = plan
        self.revealed = revealed
        self.request = request
        self.tokens: list[str] = []


class Calls:
    def __init__(
        self,
        upstream: Upstream,
        purses: Purses,
        new_key: Callable[[], UUID],
        secrets: Secrets,
        proofs: Proofs,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._purses = purses
        self._new_key = new_key
        self._secrets = secrets
        self._proofs = proofs
        self._now = now
        self.expect = upstream.expect

    async def call(
        self, plan: Plan, remaining: Callable[[], float], record: Record, conditions: tuple[tuple[str, str], ...] = ()
    ) -> Reply:
        """A 2xx answer, 304 where `conditions` (headers; RFC 9110 section 13.1) ask for no more, or EdgeError."""
        errand = self._begun(plan, await self._revealed(plan, record, "fetch"))
        if conditions:
            errand.request = msgspec.structs.replace(errand.request, conditions=conditions)
        return await self._done(errand, plan.source.retry, remaining, record)

    async def probe(self, plan: Plan, remaining: Callable[[], float], record: Record) -> Probed:
        """One call without retries and its answer whatever its status, or what befell it, at the deadline at the latest.

        Raises `CallerError` where the request can't be made of what the caller gave, and TierBroken where secrets can't be read.
        """
        errand = self._begun(plan, await self._revealed(plan, record, "test"))
        errand.request = msgspec.structs.replace(errand.request, any_status=True)
        policy = dataclasses.replace(plan.source.retry, max_retries=0)
        reply: Reply | None = None
        error: EdgeError | None = None
        try:
            async with asyncio.timeout(remaining()):
                reply = await self._done(errand, policy, remaining, record)
        except TimeoutError:
            error = UpstreamError("TIMEOUT", "the data source did not answer within source.timeout")
        except CallerError:
            raise
        except EdgeError as failure:
            error = failure
        used = {name: errand.revealed[name] for name, _ in _needed(plan)}
        return Probed(errand.request, reply, error, (*_scalars(used.values()), *_pairs(used), *errand.tokens))

    def _begun(self, plan: Plan, revealed: Mapping[str, Any]) -> _Errand:
        """Rendered, with the key that all attempts share, the one after a refused token included."""
        request = render(msgspec.structs.replace(plan, env=revealed))
        return _Errand(plan, revealed, keyed(request, plan.source.idempotency_header, self._new_key))

    async def _done(self, errand: _Errand, policy: RetryPolicy, remaining: Callable[[], float], record: Record) -> Reply:
        """Once more with another token where the upstream refuses the first.

        A billable call too: 401 says that it was refused for want of valid credentials (RFC 9110 section 15.5.2), before
        anything was done that could be charged.
        """
        purse = self._purses.of(errand.plan, record)
        await self._prove(errand, record)
        try:
            first = _but_401(policy) if errand.tokens else policy
            reply = await self._upstream.send(errand.request, first, remaining, record, purse)
            if reply.status != 401 or not errand.tokens:
                return reply
        except UpstreamError as error:
            if error.upstream_status != 401 or not errand.tokens:
                raise
        await self._prove(errand, record)
        return await self._upstream.send(errand.request, policy, remaining, record, purse)

    async def _prove(self, errand: _Errand, record: Record) -> None:
        """`source.auth` on the request; a token that it carried already was refused."""
        rejected = errand.tokens[-1] if errand.tokens else None
        errand.request, token = await self._proofs.prove(errand.request, errand.plan, errand.revealed, record, rejected=rejected)
        if token is not None:
            errand.tokens.append(token)

    async def _revealed(self, plan: Plan, record: Record, purpose: Literal["fetch", "test"]) -> Mapping[str, Any]:
        """The plan's env with values in place of references: those that this request needs, and no others."""
        needed = {name: value for name, value in _needed(plan) if isinstance(value, SecretRef)} if plan.env else {}
        if not needed:
            return plan.env
        run_id: UUID | None = getattr(record, "run_id", None)
        reading = Reading(purpose, self._now(), run_id, f"{record.context.trace_id:032x}")
        return {**plan.env, **await self._secrets.reveal(needed, plan.project, reading)}


def _but_401(policy: RetryPolicy) -> RetryPolicy:
    """What is repeated with the same token: not what was refused for it."""
    if 401 not in policy.status_forcelist:
        return policy
    return dataclasses.replace(policy, status_forcelist=policy.status_forcelist - {401})


def _needed(plan: Plan) -> Iterator[tuple[str, Any]]:
    source, env = plan.source, plan.env
    names = source.request.env_names | {name for name in source.request.names if name not in plan.params}
    if source.auth is not None:
        names |= source.auth.chosen([name for name, value in env.items() if value is not None])
    return ((name, env[name]) for name in names if name in env)


def _pairs(used: Mapping[str, Any]) -> Iterator[str]:
    """Users with their passwords, as Basic joins them (RFC 7617 section 2, RFC 6749 section 2.3.1)."""
    for names in (CLIENT, USER):
        pair = [value for name in names if isinstance(value := used.get(name), str)]
        if len(pair) == 2:
            yield ":".join(pair)
            yield ":".join(map(quote_plus, pair))


def _scalars(values: Iterable[Any]) -> Iterator[Scalar]:
    """What of JSON values could be told again; a reference was not needed, and so told nobody anything."""
    for value in values:
        if isinstance(value, dict):
            yield from _scalars(value.values())
        elif isinstance(value, list):
            yield from _scalars(value)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield value
