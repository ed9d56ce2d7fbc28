"""Tokens by OAuth 2, fetched once for everyone: single flight in this process, a lease across the fleet.

A token lies sealed in the hot tier until a minute before it expires, and in this process's own memory, which answers while the
hot tier can't be asked: the cache fails open, and then each process has a token of its own. Except for refresh tokens, which may
be good for a single use: two refreshes with the same one would make the server take the grant back, so without the lease
there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from broker_edge.core.auth import OutboundAuth
from broker_edge.core.breaker import Breaker
from broker_edge.core.credentials import Credentials
from broker_edge.core.exchange import Outbound, Reply, SecretRef
from broker_edge.core.oauth import Chain, Grant, Token, marks_after, name_of, read_grant, token_request
from broker_edge.core.redirect import REDIRECTS
from broker_edge.core.source import RetryPolicy
from broker_edge.core.trail import Record
from broker_edge.errors import EdgeError, TargetDenied, TierBroken, TokenError, UpstreamError
from broker_edge.flow.background import Background
from broker_edge.flow.guarded import guarded
from broker_edge.flow.sealed import SealedTexts
from broker_edge.flow.upstream import Upstream
from broker_edge.guard.vault import Unopened, Vault
from broker_edge.ports import Bell, Fleet, HotTier, Lead

_TWICE: Final = RetryPolicy(max_retries=1, status_forcelist=frozenset())  # where nothing was sent: see core.retry
_TO_THE_END: Final = 60.0  # seconds that a refresh has at least: one that is given up has spent its token, and got no other
_STORED: Final = b"stored"


class Want(msgspec.Struct, frozen=True):
    """Whose token is wanted: `key` stands for it in the hot tier, `chain` for its grant's refresh tokens.

    `mark` tells the configured refresh token from others, `kept` where the registry keeps it. None where there is none.
    """

    auth: OutboundAuth
    given: Credentials
    project: str | None
    patience: float
    key: str
    chain: str | None = None
    mark: str | None = None
    kept: SecretRef | None = None

    @property
    def lease(self) -> str:
        return self.chain or self.key  # one for all scopes of a grant: they would spend the same refresh token

    def __repr__(self) -> str:
        return f"Want({self.key!r})"


_token = msgspec.json.Decoder(Token).decode
_chain = msgspec.json.Decoder(Chain).decode
Keep = Callable[[SecretRef, str | None, str, Callable[[str], bool]], Awaitable[None]]


class Tokens:
    """`lease` in seconds. `keep` saves a new refresh token where the registry has the one before, if that is still there."""

    def __init__(
        self,
        hot: HotTier,
        fleet: Fleet,
        upstream: Upstream,
        vault: Vault,
        background: Background,
        *,
        lease: float,
        new_token: Callable[[], str],
        keep: Keep,
        on_failure: Callable[[str, BaseException], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._background = background
        self._lease = lease
        self._new_token = new_token
        self._keep = keep
        self._on_failure = on_failure
        self._now = now
        self._breaker = Breaker()
        self._texts = SealedTexts(hot, vault, self._breaker, now=now)
        self._running: dict[str, asyncio.Task[Token | EdgeError]] = {}
        self.digest = vault.digest

    @staticmethod
    def mark(refresh: str) -> str:
        return name_of("token", refresh)

    async def token(self, want: Want, record: Record, rejected: str | None = None) -> str:
        """A token, not the `rejected` one, which is dropped for everyone. Raises EdgeError. The caller keeps the deadline."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + want.patience
        if (found := await self._looked_up(want, record, rejected)) is not None:
            return found.access
        while True:
            task, led = self._board(want, record, rejected)
            outcome = await asyncio.shield(task)
            if isinstance(outcome, Token):
                if led or outcome.access != rejected:
                    return outcome.access
            elif led or outcome.code != "TIMEOUT" or clock() >= give_up:
                raise outcome.with_traceback(None)
            # What we joined had begun before us: without our news of the rejected token, or with less time than we have.

    def _board(self, want: Want, record: Record, rejected: str | None) -> tuple[asyncio.Task[Token | EdgeError], bool]:
        task = self._running.get(want.key)
        if task is not None:
            return task, False
        task = self._running[want.key] = self._background.spawn("token", self._fly(want, record, rejected))
        return task, True

    async def _fly(self, want: Want, record: Record, rejected: str | None) -> Token | EdgeError:
        """A task of its own: who leaves takes nobody along."""
        patience = want.patience if want.chain is None else max(want.patience, _TO_THE_END)
        try:
            return await self._led(want, record, rejected, asyncio.get_running_loop().time() + patience)
        except TimeoutError:
            return UpstreamError("TIMEOUT", "the token endpoint did not answer within source.timeout")
        except EdgeError as error:
            return error
        finally:
            del self._running[want.key]

    async def _led(self, want: Want, record: Record, rejected: str | None, deadline: float) -> Token:
        """The token, fetched under the fleet's lease; whoever wins that looks again, as somebody else may have been quicker."""
        holder = self._new_token()
        async with self._fleet.listen(want.lease) as bell:
            while True:
                try:
                    lead = await guarded(self._breaker, lambda: self._fleet.bid(want.lease, holder, self._lease))
                except TierBroken:
                    return await self._alone(want, record, deadline)
                if lead.won:
                    return await self._under_lease(want, record, rejected, deadline, holder)
                await _rung(bell, lead, deadline)
                if (found := await self._looked_up(want, record, rejected)) is not None:
                    return found

    async def _alone(self, want: Want, record: Record, deadline: float) -> Token:
        if want.chain is not None:
            raise _closed("a refresh token can't be used while nothing keeps others from using it too")
        return await self._bought(want, record, None, deadline)

    async def _under_lease(self, want: Want, record: Record, rejected: str | None, deadline: float, holder: str) -> Token:
        renewal = self._background.spawn("token-lease", self._renew_forever(want.lease, holder))
        try:
            if (found := await self._looked_up(want, record, rejected)) is not None:
                return found
            if rejected is not None:  # nobody else has to be turned away with it, should the next one not be had
                with contextlib.suppress(TierBroken):
                    await self._texts.drop(want.key)
            return await self._bought(want, record, await self._chain_of(want), deadline)
        finally:
            renewal.cancel()
            with contextlib.suppress(TierBroken):  # it lapses by itself
                await guarded(self._breaker, lambda: self._fleet.settle(want.lease, holder, _STORED))

    async def _renew_forever(self, key: str, holder: str) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            with contextlib.suppress(TierBroken):
                if not await self._fleet.renew(key, holder, self._lease):
                    await self._fleet.bid(key, holder, self._lease)  # flushed away: nobody else may begin meanwhile

    async def _bought(self, want: Want, record: Record, chain: Chain | None, deadline: float) -> Token:
        """One call of the token endpoint. What it gave is written down whatever the time: it may be the only one still good."""
        began = self._now()
        request = token_request(want.auth, want.given, None if chain is None else chain.latest)
        async with asyncio.timeout_at(deadline):
            reply = await self._called(request, record, deadline)
        grant = read_grant(reply.body)
        marks = () if want.mark is None else await self._went_on(want, want.mark, grant, chain)
        token = Token(grant.access, began + grant.lifetime, marks)
        if (left := token.until - self._now()) > 0:
            with contextlib.suppress(TierBroken):
                await self._texts.put(want.key, _text(token), left)
        return token

    async def _called(self, request: Outbound, record: Record, deadline: float) -> Reply:
        clock = asyncio.get_running_loop().time
        try:
            return await self._upstream.send(request, _TWICE, lambda: deadline - clock(), record)
        except UpstreamError as error:
            raise _of_the_endpoint(error) from None
        except TargetDenied:
            raise TargetDenied("The address of the token endpoint may not be called") from None

    async def _went_on(self, want: Want, configured: str, grant: Grant, chain: Chain | None) -> tuple[str, ...]:
        """Keep the refresh token that takes the place of the one that was spent; answers the marks of all that mean the same."""
        marks = (configured,) if chain is None else chain.marks
        spent = want.given["REFRESH_TOKEN"] if chain is None else chain.latest
        if grant.refresh is None or grant.refresh == spent or want.chain is None:
            return marks
        marks = marks_after(marks, configured, self.mark(grant.refresh))
        try:
            await self._texts.put(want.chain, _text(Chain(grant.refresh, marks)), None)
        except TierBroken as error:  # put again at the next look
            self._on_failure("refresh token", error)
        if want.kept is not None:
            try:
                await self._keep(want.kept, want.project, grant.refresh, lambda current: self.mark(current) in marks)
            except EdgeError as error:  # the hot tier has it: only the loss of that would lose it
                self._on_failure("refresh token", error)
        return marks

    async def _chain_of(self, want: Want) -> Chain | None:
        """The grant's refresh tokens so far; None where the configured one is to be used: at first, or as it is a new one."""
        if want.chain is None:
            return None
        try:
            text = await self._texts.lasting(want.chain)
        except TierBroken:
            raise _closed("which refresh token is the last one can't be told") from None
        except Unopened as error:
            if want.kept is None:  # better none than one that is spent
                raise EdgeError("INTERNAL", f"which refresh token is the last one can't be told: {error.message}") from None
            return None  # the registry has it too
        chain = _decoded(_chain, text)
        return chain if chain is not None and want.mark in chain.marks else None

    async def _looked_up(self, want: Want, record: Record, rejected: str | None) -> Token | None:
        started_at = self._now()
        try:
            text = await self._texts.get(want.key)
            result = "miss" if text is None else "hit"
        except TierBroken:
            text, result = self._texts.own(want.key), "broken"
        record.note("lookup", started_at, self._now(), "token", result)
        token: Token | None = _decoded(_token, text)
        if token is None or token.until <= self._now() or token.access == rejected:
            return None
        return token if want.mark is None or want.mark in token.marks else None


async def _rung(bell: Bell, lead: Lead, deadline: float) -> None:
    async with asyncio.timeout_at(deadline):
        await bell.ring(lead.lease_left + 0.05)


def _text(kept: Token | Chain) -> str:
    return msgspec.json.encode(kept).decode()


def _decoded(decode: Callable[[str], Any], text: str | None) -> Any:
    """What another version wrote otherwise is made anew."""
    try:
        return None if text is None else decode(text)
    except msgspec.MsgspecError:
        return None


def _closed(why: str) -> EdgeError:
    return EdgeError("STORAGE_UNAVAILABLE", why, retry_after=1.0)


def _of_the_endpoint(error: UpstreamError) -> UpstreamError:
    """The same failure in words that say whose it is; nothing of the answer is quoted.

    Only that a server fails or has too much to do is told as the upstream's status: what else a token endpoint says is about our
    credentials, and must not be taken for the upstream's word on what was asked.
    """
    status = error.upstream_status
    failing = status is not None and (status >= 500 or status == 429)
    if status in REDIRECTS:
        told = f"the token endpoint redirects ({status}), which is not followed: credentials go nowhere else"
    elif status is not None:
        told = f"the token endpoint answered {status}"
    else:
        told = f"the token endpoint failed: {error.message}"
    return TokenError(
        error.code,
        told,
        sent=error.sent,
        retryable=error.retryable and (status is None or failing),
        retry_after=error.retry_after,
        upstream_status=status if failing else None,
    )
