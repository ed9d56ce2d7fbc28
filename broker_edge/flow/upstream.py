"""The call itself: retries { addresses -> transport -> bounded decoding }, redirects hop by hop, all within one deadline.

The deadline is not kept here: whoever awaits `send` cancels it. `remaining` only says whether a pause still fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import msgspec

from broker_edge.core.content_coding import Decoder
from broker_edge.core.exchange import Outbound, Reply, Target
from broker_edge.core.pacing import next_delay, parse_retry_after
from broker_edge.core.redirect import MAX_HOPS, redirected
from broker_edge.core.retry import may_retry
from broker_edge.core.source import RetryPolicy
from broker_edge.core.trail import Record, TraceContext
from broker_edge.core.urls import origin_of
from broker_edge.errors import EdgeError, UpstreamError
from broker_edge.flow.budget import Purse
from broker_edge.guard.addresses import AddressGuard
from broker_edge.ports import RawReply, Transport

_MOST_ADDRESSES = 3  # tried one after the other while nothing has been sent
_GROWTH = 2.0  # seconds
_LONG_CALLS = 512  # under way and abandoned: beyond, calls get no more time than their own callers need
_AT_ONCE = 64 * 1024  # bytes of a body that is read in one go where its length is known beforehand
_SHOWN_BODY = 2**20
_ERROR_BODY = 64 * 1024  # read of an answer that nobody wants, so that its connection can be used again


class Upstream:
    """Sends rendered requests; `in_flight` counts the calls that are under way."""

    def __init__(
        self,
        transport: Transport,
        guard: AddressGuard,
        *,
        max_encoded: int,
        max_decoded: int,
        now: Callable[[], float] = time.time,
        random: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._guard = guard
        self._max_encoded = max_encoded
        self._max_decoded = max_decoded
        self._at_once = min(_AT_ONCE, max_encoded, max_decoded)
        self._now = now
        self._random = random
        self.in_flight = 0
        self._abandoned: list[float] = []  # a heap: when calls end that nobody waits for
        self._patience = 0.0

    def expect(self, patience: float) -> None:
        """Somebody may wait for a call for `patience` seconds, be it their own or another's."""
        if patience > self._patience:
            self._patience = patience

    async def send(
        self,
        request: Outbound,
        policy: RetryPolicy,
        remaining: Callable[[], float],
        record: Record,
        purse: Purse | None = None,
    ) -> Reply:
        """A 2xx answer, 304 to a conditional request, or the last attempt's EdgeError.

        `purse` pays for each attempt; raises BUDGET_EXHAUSTED where it can't.
        """
        for attempt in itertools.count():
            try:
                if purse is None:
                    return await self._attempt(request, policy, attempt, record, remaining)
                async with purse.paying():
                    return await self._attempt(request, policy, attempt, record, remaining, purse)
            except UpstreamError as error:
                if attempt >= policy.max_retries or not may_retry(request.method, error, policy):
                    raise
                delay = next_delay(attempt, policy.backoff_factor, error.retry_after, self._random(), remaining())
                if delay is None:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("unreachable")

    async def _attempt(
        self,
        request: Outbound,
        policy: RetryPolicy,
        attempt: int,
        record: Record,
        remaining: Callable[[], float],
        purse: Purse | None = None,
    ) -> Reply:
        started_at, context = self._now(), record.branch()
        result = "abandoned"
        reply: Reply | int | None = None
        within = self._within(policy, remaining)
        self.in_flight += 1
        try:
            send = self._follow if policy.attempt_timeout is None else self._timed
            reply = answer = await send(_traced(request, context), policy, within, purse)
            result = "ok"
            return answer
        except EdgeError as error:
            result = error.code.lower()
            reply = error.upstream_status
            raise
        finally:
            self.in_flight -= 1
            if result == "abandoned":
                heappush(self._abandoned, started_at + within)
            attributes = _attributes(request, attempt, reply) if context.sampled else None
            record.note("attempt", started_at, self._now(), request.method, result, context, attributes)

    def _within(self, policy: RetryPolicy, remaining: Callable[[], float]) -> float:
        """Seconds after which the engine may end an attempt by itself, as nobody is likely to be waiting any more.

        A deadline may still grow, with a follower who has more time: as much as anybody had before. No more than that, since a
        call that is cancelled may live on in the engine until then, with its connection; and while an upstream hangs, and the
        abandoned are many, only about twice its time: patient followers may lose then, the process does not.
        """
        if policy.attempt_timeout is not None:
            return policy.attempt_timeout
        now = self._now()
        while self._abandoned and self._abandoned[0] <= now:
            heappop(self._abandoned)
        many = self.in_flight + len(self._abandoned) >= _LONG_CALLS
        return max(2 * remaining(), 0.0 if many else self._patience) + _GROWTH

    async def _timed(self, request: Outbound, policy: RetryPolicy, within: float, purse: Purse | None) -> Reply:
        try:
            async with asyncio.timeout(policy.attempt_timeout) as limit:
                return await self._follow(request, policy, within, purse)
        except TimeoutError:
            if not limit.expired():
                raise
            raise UpstreamError("TIMEOUT", "an attempt took longer than source.retry.attempt_timeout") from None

    async def _follow(self, request: Outbound, policy: RetryPolicy, within: float, purse: Purse | None) -> Reply:
        for hop in range(MAX_HOPS + 1):
            reply = await (self._onward(request, within) if hop else self._call(_conditional(request), within, purse))
            if 200 <= reply.status < 300:
                return msgspec.structs.replace(reply, redirected=True) if hop else reply
            if reply.status == 304 and request.conditions:
                return reply
            onward = redirected(request, reply)
            if onward is None and request.any_status:
                return reply
            if onward is None:
                raise self._failed(reply, policy)
            request = onward
        raise UpstreamError("UPSTREAM_STATUS", f"the upstream redirects more than {MAX_HOPS} times", upstream_status=reply.status)

    def _failed(self, reply: Reply, policy: RetryPolicy) -> UpstreamError:
        return UpstreamError(
            "UPSTREAM_STATUS",
            f"the upstream answered {reply.status}",
            retryable=reply.status in policy.status_forcelist or reply.status in (429, 503),
            retry_after=parse_retry_after(reply.headers.get("retry-after"), self._now()),
            upstream_status=reply.status,
        )

    async def _onward(self, request: Outbound, within: float) -> Reply:
        """A further hop: somebody has had the request already, though whom it leads to may never hear of it."""
        try:
            return await self._call(request, within)
        except UpstreamError as error:
            error.sent = True
            raise

    async def _call(self, request: Outbound, within: float, purse: Purse | None = None) -> Reply:
        """One hop: every address is classified before it is dialled, and dialled as classified."""
        targets = await self._guard.targets(*origin_of(request.url), request.tls)
        if purse is None:
            return await self._dialled(request, targets, within)
        with purse.sending():
            return await self._dialled(request, targets, within)

    async def _dialled(self, request: Outbound, targets: Sequence[Target], within: float) -> Reply:
        for target in targets[: _MOST_ADDRESSES - 1]:
            try:
                return await self._exchange(request, target, within)
            except UpstreamError as error:
                if error.sent or error.code not in ("CONNECT_ERROR", "TIMEOUT") or target is targets[-1]:
                    raise
        return await self._exchange(request, targets[:_MOST_ADDRESSES][-1], within)

    async def _exchange(self, request: Outbound, target: Target, within: float) -> Reply:
        async with self._transport.open(request, target, within=within) as raw:
            if 200 <= raw.status < 300:
                body = await self._read(raw)
            else:
                body = await (_shown(raw) if request.any_status else _discard(raw))
            return Reply(raw.status, raw.headers, body, raw.http_version)

    async def _read(self, raw: RawReply) -> bytes:
        coding = raw.headers.get("content-encoding")
        if not coding and (body := await raw.whole(self._at_once)) is not None:
            return body
        decoder = Decoder(coding, max_encoded=self._max_encoded, max_decoded=self._max_decoded)
        async for chunk in raw.chunks():
            decoder.feed(chunk)
        return decoder.finish()


async def _discard(raw: RawReply) -> bytes:
    read = 0
    with contextlib.suppress(UpstreamError):  # the status is known: a body that is cut short changes nothing about it
        async for chunk in raw.chunks():
            read += len(chunk)
            if read > _ERROR_BODY:
                break
    return b""


async def _shown(raw: RawReply) -> bytes:
    """The body of an answer that is to be shown whatever its status; none where it can't be read, or is too large for that."""
    decoder = Decoder(raw.headers.get("content-encoding"), max_encoded=_SHOWN_BODY, max_decoded=_SHOWN_BODY)
    try:
        async for chunk in raw.chunks():
            decoder.feed(chunk)
        return decoder.finish()
    except UpstreamError:
        return b""


def _traced(request: Outbound, context: TraceContext) -> Outbound:
    """The trace goes on upstream (W3C Trace Context), unless the spec sets the header itself."""
    for name, _ in request.headers:
        if len(name) == 11 and name.lower() == "traceparent":
            return request
    headers = (*request.headers, ("traceparent", context.traceparent))
    if context.state:
        headers = (*headers, ("tracestate", context.state))
    return msgspec.structs.replace(request, headers=headers)


def _conditional(request: Outbound) -> Outbound:
    """The first hop's request. Where it redirects to, other validators hold (RFC 9110 section 15.4)."""
    if not request.conditions:
        return request
    return msgspec.structs.replace(request, headers=(*request.headers, *request.conditions))


def _attributes(request: Outbound, attempt: int, reply: Reply | int | None) -> dict[str, object]:
    """Span attributes by the HTTP client conventions; the URL itself may hold a secret and stays out."""
    scheme, _, port = origin_of(request.url)
    attributes: dict[str, object] = {"http.request.method": request.method, "url.scheme": scheme, "server.port": port}
    if attempt:
        attributes["http.request.resend_count"] = attempt
    if isinstance(reply, Reply):
        attributes["http.response.status_code"] = reply.status
        attributes["http.response.body.size"] = len(reply.body)
        attributes["network.protocol.version"] = reply.http_version
    elif reply is not None:
        attributes["http.response.status_code"] = reply
    return attributes
