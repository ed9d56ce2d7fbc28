"""POST /v1/fetch-data: an ASGI front before FastAPI, whose routing and models would cost more than the hit itself.

Bytes are decoded and validated by msgspec in one pass; a spec is compiled once per distinct text. The order at the end matters:
the trail closes, its row goes to the journal, and only then does the answer start.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

import msgspec

from broker_edge.api.envelope import Headers, problem, reply
from broker_edge.core.exchange import Freshness
from broker_edge.core.source import DataSource, parse_source
from broker_edge.core.trail import FlightTrail, TraceContext, Trail
from broker_edge.errors import CallerError, EdgeError, TierBroken
from broker_edge.flow.broker import Broker, FetchRequest
from broker_edge.flow.journal import Journal

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_MEMOISED = 16 * 1024  # bytes of a spec; larger ones are compiled each time, so that memory stays bounded
_DRAINED = 64 * 2**20  # bytes of a refused body that are still read, so that its sender hears the answer
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_ENUM = re.compile(r"Invalid enum value .*", re.DOTALL)

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Body(msgspec.Struct):
    """The request's members; unknown ones are ignored, null means absent."""

    data_source_spec: msgspec.Raw
    run_id: UUID
    env_variables: dict[str, Any] | None = None
    configured_params: dict[str, Any] | None = None
    mode: Literal["live", "refresh", "cache_only"] | None = None
    max_age: Seconds | None = None
    max_stale: Seconds | None = None
    credential_refs: dict[str, Any] | None = None


class _OnlyRun(msgspec.Struct):
    run_id: UUID | None = None


class Gone(Exception):
    """The caller left before its request was complete: there is nobody to answer."""


class Sink(Protocol):
    """Renders what happened, each in its own form."""

    def answer(self, trail: Trail) -> None: ...

    def flight(self, trail: FlightTrail) -> None: ...


class Begin(Protocol):
    def __call__(self, traceparent: bytes | None, tracestate: bytes | None) -> TraceContext: ...


class FetchEndpoint:
    """The ASGI application of one route. `sinks` see every closed trail after its answer is on the way."""

    def __init__(
        self,
        broker: Broker,
        journal: Journal,
        begin: Begin,
        new_span_id: Callable[[], int],
        sinks: Sequence[Sink],
        on_failure: Callable[[str, BaseException, str | None], None],
        *,
        max_request_bytes: int,
        spec_entries: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._broker = broker
        self._journal = journal
        self._begin = begin
        self._new_span_id = new_span_id
        self._sinks = sinks
        self._on_failure = on_failure
        self._max_request_bytes = max_request_bytes
        self._now = now
        self._decoder = msgspec.json.Decoder(Body)
        self._compiled = lru_cache(spec_entries)(parse_source)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trail = self._trail(scope)
        try:
            request = self._request(await self._read(receive), trail)
            trail.deliver(await self._broker.fetch(request, trail), self._now())
            status, (headers, body) = 200, reply(trail, request.source.caching.ttl)
        except EdgeError as error:
            status, headers, body = self._failed(trail, error)
        except Gone:
            return
        except asyncio.CancelledError:  # the server gives up what runs when its shutdown time-out ends
            _stay()
            status, headers, body = self._failed(trail, EdgeError("OVERLOADED", "the edge is stopping"))
        except Exception as error:  # noqa: BLE001 the caller gets an answer and the log gets the failure's name
            self._on_failure("fetch", error, f"{trail.context.trace_id:032x}")
            status, headers, body = self._failed(trail, EdgeError("INTERNAL", "the edge failed"))
        try:
            self._journal.record(trail)
        except TierBroken as error:  # an answer that can't be written down is not given
            self._on_failure("journal", error, f"{trail.context.trace_id:032x}")
            trail.withhold(error)
            status, (headers, body) = error.kind.status, problem(error)
        await _answer(send, status, headers, body)
        self._show(trail)

    def _show(self, trail: Trail) -> None:
        for sink in self._sinks:
            try:
                sink.answer(trail)
            except Exception as error:  # noqa: BLE001 the answer is given: a sink that fails is no reason to take it back
                self._on_failure("sink", error, None)

    def _trail(self, scope: Scope) -> Trail:
        traceparent = tracestate = None
        for name, value in scope["headers"]:
            if name == b"traceparent":
                traceparent = value
            elif name == b"tracestate":  # a list, which may come in several lines (W3C Trace Context section 3.3.1.1)
                tracestate = value if tracestate is None else b"%s,%s" % (tracestate, value)
        return Trail(self._begin(traceparent, tracestate), self._now(), self._new_span_id)

    async def _read(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            body = await self._read_on(receive, body)
        if len(body) > self._max_request_bytes:
            raise self._too_large()
        return body

    async def _read_on(self, receive: Receive, first: bytes) -> bytes:
        chunks, size, more = [first], len(first), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size <= self._max_request_bytes:
                chunks.append(message.get("body", b""))
            elif size > self._max_request_bytes + _DRAINED:
                raise self._too_large()
        if size > self._max_request_bytes:
            raise self._too_large()
        return b"".join(chunks)

    def _too_large(self) -> CallerError:
        return CallerError("PAYLOAD_TOO_LARGE", f"the request is larger than {self._max_request_bytes} bytes")

    def _request(self, data: bytes, trail: Trail) -> FetchRequest:
        body = self._decoded(data, trail)
        trail.run_id = body.run_id
        if body.credential_refs:
            raise CallerError("INVALID_REQUEST", "credential_refs is not supported by this version")
        source = self._source(bytes(body.data_source_spec))
        trail.source_id = source.data_source_id
        trail.mode = body.mode or "live"
        wants = Freshness(trail.mode, body.max_age, body.max_stale or 0.0)
        return FetchRequest(source, body.configured_params or {}, body.env_variables or {}, wants)

    def _decoded(self, data: bytes, trail: Trail) -> Body:
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            trail.run_id = _run_id(data)
            raise CallerError("INVALID_REQUEST", _named(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise CallerError("INVALID_REQUEST", "the request is not JSON in UTF-8") from None
        except RecursionError:
            raise CallerError("INVALID_REQUEST", "the request is nested too deeply") from None

    def _source(self, spec: bytes) -> DataSource:
        return self._compiled(spec) if len(spec) <= _MEMOISED else parse_source(spec)

    def _failed(self, trail: Trail, error: EdgeError) -> tuple[int, Headers, bytes]:
        if trail.ended_at is None:
            trail.fail(error, self._now())
        else:
            trail.withhold(error)
        headers, body = problem(error, trail)
        return error.kind.status, headers, body


def _named(message: str) -> str:
    """msgspec's message, led by the member as the caller wrote it and without the caller's value."""
    match = _AT.match(message)
    what = _ENUM.sub("not one of the allowed values", match["what"] if match else message)
    where = match["where"] if match else None
    return f"{where}: {what}" if where else what


def _stay() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def _run_id(data: bytes) -> UUID | None:
    """The run of a request that is refused for another member: its audit row should name it all the same."""
    try:
        return msgspec.json.decode(data, type=_OnlyRun).run_id
    except (msgspec.DecodeError, RecursionError):
        return None


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
