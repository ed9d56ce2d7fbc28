"""A test of a data source: the call that a live fetch would make, told in full, with every secret taken out.

It reads no cache, fills none and keeps no object; it obeys the same guard, deadline and budget, and leaves a row in the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request, Response

from broker_edge.api.fetch import Begin
from broker_edge.api.problems import body_of
from broker_edge.api.source_models import DataSourceTestParams, DataSourceTestResponse, ProbeIn
from broker_edge.api.sources import ONE, add_route, in_words_of_the_resource, project_text
from broker_edge.core.exchange import Reply
from broker_edge.core.formats import shape
from broker_edge.core.lifecycle import refuse_archived
from broker_edge.core.plan import Plan, make_plan
from broker_edge.core.redaction import MASK, UNSHOWN, Redaction
from broker_edge.core.trail import Trail
from broker_edge.errors import CallerError, EdgeError, UpstreamError
from broker_edge.flow.calling import Calls, Probed
from broker_edge.flow.journal import Journal
from broker_edge.flow.registry import Registry
from broker_edge.flow.snapshot import named_of

_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization"})
_SHOWN: Final = 2**20  # bytes of a value: it is searched for every secret in every form, which takes time
_AT_ONCE: Final = 2  # reports that are searched at the same time: it is work for a processor, which fetches need too
_PATIENCE: Final = 1.0  # seconds that a report may wait for its turn, though the call took all of its own time


class Book(NamedTuple):
    """Where a test is written down: `begin` and `new_span_id` place it in its trace, `check` raises where nothing can be.

    `show` hands its closed trail to whoever renders trails, metrics of what was spent among them.
    """

    journal: Journal
    check: Callable[[], None]
    begin: Begin
    new_span_id: Callable[[], int]
    show: Callable[[Trail], None]


class Probes:
    """The handler; `most` bytes of a request are read."""

    def __init__(self, registry: Registry, calls: Calls, book: Book, new_id: Callable[[], UUID], most: int) -> None:
        self._registry = registry
        self._calls = calls
        self._book = book
        self._new_id = new_id
        self._most = most
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def test(self, request: Request, data_source_id: UUID, project_id: UUID | None = None) -> Response:
        """Call the upstream as a fetch would; a failing upstream is reported, a request that can't be made is refused."""
        body = await body_of(request, ProbeIn, self._most)
        params = _either(body.params, body.configured_params, "configured_params")
        env = _either(body.env_vars, body.env_variables, "env_variables")
        trail = self._trail(request)
        trail.run_id, trail.source_id, trail.project = body.run_id, data_source_id, project_text(project_id)
        plan = await self._plan(data_source_id, trail, params, env)
        trail.price = plan.source.price
        self._book.check()
        started = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + plan.source.timeout
        probed = await self._probed(plan, trail, deadline)
        taken = 1000 * (time.perf_counter() - started)
        report = partial(_report, probed, plan.source.request.response_type, self._new_id(), taken)
        return Response(await self._searched(report, deadline), media_type="application/json")

    async def _searched(self, report: Callable[..., bytes], deadline: float) -> bytes:
        """The report, made in a thread; one for which there is no turn until the deadline shows nothing that must be searched."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + _PATIENCE)):
                await self._turns.acquire()
        except TimeoutError:
            return report(blind=True)
        running = loop.run_in_executor(None, report)
        running.add_done_callback(lambda _: self._turns.release())  # a caller who leaves does not end the thread
        return await asyncio.shield(running)

    async def _plan(self, data_source_id: UUID, trail: Trail, params: dict[str, Any], env: dict[str, Any]) -> Plan:
        record = await self._registry.get(trail.project, data_source_id)
        refuse_archived(record)
        trail.source_name = record.name
        with in_words_of_the_resource():
            named = named_of(record)
            return make_plan(named.source, params, {**named.env, **env}, project=trail.project, generation=named.generation)

    async def _probed(self, plan: Plan, trail: Trail, deadline: float) -> Probed:
        loop = asyncio.get_running_loop()
        error: EdgeError | None = EdgeError("OVERLOADED", "the edge is stopping")  # unless this ends in another way
        try:
            probed = _judged(await self._calls.probe(plan, lambda: deadline - loop.time(), trail))
            error = probed.error
            if error is not None and error.kind.source != "upstream":
                raise error
        except EdgeError as refused:
            error = refused
            raise
        finally:
            trail.tried(error, time.time())
            try:
                self._book.journal.record(trail)
            finally:
                self._book.show(trail)
        return probed

    def _trail(self, request: Request) -> Trail:
        named = {name: value.encode() for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}
        context = self._book.begin(named.get("traceparent"), named.get("tracestate"))
        return Trail(context, time.time(), self._book.new_span_id)


def probe_routes(registry: Registry, calls: Calls, book: Book, new_id: Callable[[], UUID], most: int) -> APIRouter:
    router = APIRouter(tags=["data sources"])
    probes = Probes(registry, calls, book, new_id, most)
    add_route(router, "POST", f"{ONE}/test", probes.test, DataSourceTestResponse, DataSourceTestParams, statuses={403, 429})
    return router


def _judged(probed: Probed) -> Probed:
    """With the error that a live fetch would have met."""
    reply = probed.reply
    if reply is None or 200 <= reply.status < 300:
        return probed
    message = f"the upstream answered with status {reply.status}"
    return probed._replace(error=UpstreamError("UPSTREAM_STATUS", message, upstream_status=reply.status))


def _either(one: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> dict[str, Any]:
    if one is not None and other is not None:
        raise CallerError("INVALID_REQUEST", f"{name}: is given under both its names")
    return one or other or {}


def _report(probed: Probed, response_type: str, test_id: UUID, taken: float, *, blind: bool = False) -> bytes:
    """The whole answer: `response_body` is spliced in, so that its numbers stay what they were.

    `blind`: without all that secrets could be in.
    """
    redaction = Redaction(probed.secrets, blind=blind)
    request, reply, error = probed.outbound, probed.reply, probed.error
    value = b"null"
    if reply is not None and redaction.blind:
        value = msgspec.json.encode(UNSHOWN)
    elif reply is not None:
        value, unread = _value(reply, response_type)
        error = error or unread
    told = {
        "test_id": test_id,
        "request_url": None if request is None else redaction.url(request.url),
        "request_headers": None if request is None else _headers(request.headers, redaction),
        "status_code": None if reply is None else reply.status,
        "response_time_ms": round(taken, 3),
        "response_headers": None if reply is None else _headers(reply.headers.items(), redaction),
        "error": None if error is None else redaction.text(error.message),
        "error_code": None if error is None else error.code,
    }
    return b'%s,"response_body":%s}' % (msgspec.json.encode(told)[:-1], value if redaction.blind else redaction.json(value))


def _value(reply: Reply, response_type: str) -> tuple[bytes, UpstreamError | None]:
    """The body as JSON text: by the response type, else as text, else words in its place; and why it is not the first."""
    content_type = reply.headers.get("content-type")
    unread: UpstreamError | None = None
    for form in (response_type, "PLAIN_TEXT"):
        try:
            return _bounded(shape(reply.body, form, content_type)), unread
        except UpstreamError as error:
            unread = unread or error
    return msgspec.json.encode(f"<binary, {len(reply.body)} bytes>"), unread


def _bounded(value: bytes) -> bytes:
    return value if len(value) <= _SHOWN else msgspec.json.encode(f"<{len(value)} bytes, {_SHOWN} at most are shown>")


def _headers(headers: Iterable[tuple[str, str]], redaction: Redaction) -> dict[str, str]:
    return {redaction.text(name): _header(name, value, redaction) for name, value in headers}


def _header(name: str, value: str, redaction: Redaction) -> str:
    if name.lower() in _CREDENTIALS:
        scheme, blank, _ = value.partition(" ")
        return f"{scheme} {MASK}" if blank else MASK
    return redaction.text(value)
