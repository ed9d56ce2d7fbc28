"""The sample bureau: a stand-in for the providers behind the edge, for demonstrations, tests and load.

GET /score/{tax_id} (JSON), GET /catalogue.csv (CSV, `page`), POST /registry (SOAP), GET /notice (text), each with the knobs of
`broker_edge.demo.knobs`; GET /calls says how often each path was asked, in this process, and DELETE /calls forgets it.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from xml.etree.ElementTree import ParseError

import brotli  # type: ignore[import-untyped]
import zstandard
from defusedxml import DefusedXmlException, ElementTree  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from broker_edge.demo import answers
from broker_edge.demo.knobs import BadKnob, Knobs, read_knobs

TOKEN = "demo-token"  # noqa: S105 - the published token of a sample
MAX_PATHS = 100_000
MAX_REQUEST = 1024 * 1024
BODYLESS = frozenset({204, 205, 304})

Answer = tuple[int, str, bytes]
Sleep = Callable[[float], Awaitable[None]]

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, compresslevel=1, mtime=0),
    "deflate": partial(zlib.compress, level=1),  # RFC 9110 section 8.4.1.2: the zlib format, not the bare stream
    "br": partial(brotli.compress, quality=1),
    "zstd": lambda body: zstandard.compress(body, 1),
}


class CutShort(Response):
    """Promises its whole length and stops half way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # More is announced and never comes: the server has nothing left but to close the connection.
        await send({"type": "http.response.body", "body": bytes(self.body)[: len(self.body) // 2], "more_body": True})


class CallLog:
    """What was asked in this process, bounded: paths beyond `MAX_PATHS` are counted together."""

    def __init__(self) -> None:
        self.paths: Counter[str] = Counter()
        self.failing: Counter[bytes] = Counter()

    def note(self, path: str) -> None:
        self.paths[path if path in self.paths or len(self.paths) < MAX_PATHS else "(others)"] += 1

    def failed_before(self, target: bytes) -> int:
        """How many calls of this very target (path, query and body) came before this one."""
        if target not in self.failing and len(self.failing) >= MAX_PATHS:
            del self.failing[next(iter(self.failing))]
        self.failing[target] += 1
        return self.failing[target] - 1

    def clear(self) -> None:
        self.paths.clear()
        self.failing.clear()


class Bureau:
    """The endpoints' shared half: count, wait, fail if asked to, answer, code, cut."""

    def __init__(self, sleep: Sleep, chance: random.Random) -> None:
        self.calls = CallLog()
        self._sleep = sleep
        self._chance = chance

    def endpoint(self, answer: Callable[[Request, Knobs, bytes], Answer]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            self.calls.note(request.scope["path"])
            knobs = read_knobs(request.query_params)
            body = await _body(request)
            if body is None:
                return PlainTextResponse(f"The request body must be at most {MAX_REQUEST} bytes.", 413)
            if knobs.latency_ms:
                await self._sleep(knobs.latency_ms / 1000)
            if self._fails(request, knobs, body):
                return respond(knobs, (knobs.status or 503, "application/json", b'{"error": "This call fails, as asked."}'))
            return respond(knobs, _with_status(knobs, answer(request, knobs, body)))

        return handle

    def _fails(self, request: Request, knobs: Knobs, body: bytes) -> bool:
        scope = request.scope
        if knobs.fail_first:
            parts = (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body)
            target = hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
            if self.calls.failed_before(target) < knobs.fail_first:
                return True
        return self._chance.random() < knobs.fail_rate

    async def show_calls(self, request: Request) -> Response:
        if request.method == "DELETE":
            self.calls.clear()
            return Response(status_code=204)
        return JSONResponse(dict(self.calls.paths))


async def _body(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST:
            return None
    return bytes(body)


def _with_status(knobs: Knobs, answer: Answer) -> Answer:
    """`status` replaces a good answer's own; beside a failure knob it belongs to the failures alone."""
    status, kind, body = answer
    if knobs.status is None or knobs.fail_first or knobs.fail_rate or status != 200:
        return answer
    return knobs.status, kind, body


def respond(knobs: Knobs, answer: Answer) -> Response:
    """`answer` on the wire: coded, cut and marked as the knobs say; a status that has no body gets none."""
    status, kind, body = answer
    headers: dict[str, str] = {} if status in BODYLESS else {"content-type": kind}
    if knobs.retry_after is not None:
        headers["retry-after"] = str(knobs.retry_after)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in BODYLESS:
        return Response(status_code=status, headers=headers)
    if knobs.encoding:
        headers["content-encoding"] = knobs.encoding
        body = ENCODERS[knobs.encoding](body)
        # The length is right and the coding's tail is missing: only a decoder that asks for the end notices.
        return Response(body[: len(body) // 2] if knobs.truncate else body, status, headers)
    return (CutShort if knobs.truncate else Response)(body, status, headers)


def score(request: Request, knobs: Knobs, body: bytes) -> Answer:
    if knobs.auth and request.headers.get("authorization") != f"Bearer {TOKEN}":
        return 401, "application/json", b'{"error": "The score needs a bearer token."}'
    return 200, "application/json", answers.score(request.path_params["tax_id"], knobs.size)


def catalogue(request: Request, knobs: Knobs, body: bytes) -> Answer:
    return 200, "text/csv; charset=utf-8", answers.catalogue(knobs.page, knobs.size)


def notice(request: Request, knobs: Knobs, body: bytes) -> Answer:
    return 200, "text/plain; charset=utf-8", answers.notice(knobs.size)


def registry(request: Request, knobs: Knobs, body: bytes) -> Answer:
    """SOAP 1.1 over HTTP: a fault is a 500 (section 6.2). The Content-Type names no character set: the prolog does."""
    try:
        tax_id = ElementTree.fromstring(body, forbid_dtd=True).findtext(".//{*}tax_id")
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return 500, "text/xml", answers.fault("The request is not well-formed XML.")
    if not tax_id or not tax_id.strip():
        return 500, "text/xml", answers.fault("The request names no tax_id.")
    return 200, "text/xml", answers.company(tax_id.strip(), knobs.size)


async def bad_knob(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


def create_bureau(*, sleep: Sleep = asyncio.sleep, seed: int = 7) -> Starlette:
    """A bureau with counters of its own. `sleep` takes seconds; `seed` fixes which calls `fail_rate` picks."""
    bureau = Bureau(sleep, random.Random(seed))
    handlers: dict[Any, Any] = {BadKnob: bad_knob}
    return Starlette(
        routes=[
            Route("/score/{tax_id}", bureau.endpoint(score)),
            Route("/catalogue.csv", bureau.endpoint(catalogue)),
            Route("/notice", bureau.endpoint(notice)),
            Route("/registry", bureau.endpoint(registry), methods=["POST"]),
            Route("/calls", bureau.show_calls, methods=["GET", "DELETE"]),
        ],
        exception_handlers=handlers,
    )


app = create_bureau()
