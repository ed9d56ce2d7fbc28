"""The ASGI application: a front that takes fetches, FastAPI behind it for everything else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.exceptions import HTTPException

from broker_edge import __version__
from broker_edge.api.analytics import analytics_routes
from broker_edge.api.asgi import Receive, Scope, Send
from broker_edge.api.envelope import Headers, problem
from broker_edge.api.fetch import FetchEndpoint, Respond, Spawn, show
from broker_edge.api.intake import Intake, IntakeByName, Reads
from broker_edge.api.objects import object_routes
from broker_edge.api.ops import ops_routes
from broker_edge.api.pages import BY_NAME, PATH, fetch_routes, page
from broker_edge.api.probe import Book, probe_routes
from broker_edge.api.problems import add_problem_handlers
from broker_edge.api.sources import source_routes
from broker_edge.errors import EdgeError
from broker_edge.settings import Settings, load
from broker_edge.telemetry.logs import configure
from broker_edge.telemetry.otel import new_span_id
from broker_edge.wiring import Edge, build, new_id


class Front:
    """Takes fetches, by spec and by name, before any routing; hands the rest on."""

    def __init__(self, edge: Edge, app: FastAPI) -> None:
        self.edge = edge
        self.app = app
        self._fetches = {
            PATH: _endpoint(edge, Intake(edge.settings.spec_cache_entries, edge.registry)),
            BY_NAME: _endpoint(edge, IntakeByName(edge.registry)),
        }
        self._beginnings = {path.encode(): endpoint.begin for path, endpoint in self._fetches.items()}

    def begin(self, path: bytes, headers: Headers, body: bytes, respond: Respond, spawn: Spawn) -> None:
        """A fetch that comes round ASGI, at `path`; see `FetchEndpoint.begin`."""
        self._beginnings[path](headers, body, respond, spawn)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fetch = self._fetches.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if fetch is not None:
            await fetch(scope, receive, send)
        else:
            await self.app(scope, receive, send)  # type: ignore[arg-type]


def _endpoint(edge: Edge, intake: Reads) -> FetchEndpoint:
    return FetchEndpoint(
        intake,
        edge.broker,
        edge.journal,
        edge.tracing.begin,
        new_span_id,
        edge.sinks,
        edge.log.failure,
        max_request_bytes=edge.settings.max_request_bytes,
    )


def create_app(settings: Settings | None = None, started: Callable[[], object] = bool) -> Front:
    """The application of one process; its lifespan starts and stops the edge, and calls `started` in between."""
    settings = settings or load()
    log = configure(settings.log_level)
    return front(build(settings, log), started)


def front(edge: Edge, started: Callable[[], object] = bool) -> Front:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await edge.start()
        started()
        try:
            yield
        finally:
            await edge.stop()

    app = FastAPI(title="broker_edge", version=__version__, summary="Cached external data for decisions", lifespan=lifespan)
    app.include_router(ops_routes(edge.prober, edge.metrics))
    app.include_router(fetch_routes())
    app.include_router(analytics_routes(edge.registry.get, edge.analytics, time.time))
    app.include_router(source_routes(edge.registry, edge.secrets, edge.settings.max_request_bytes))
    app.include_router(object_routes(edge.registry, edge.archive))
    seen_by = partial(show, sinks=edge.sinks, on_failure=edge.log.failure)
    book = Book(edge.journal, edge.spool.check, edge.tracing.begin_below, new_span_id, seen_by)
    app.include_router(probe_routes(edge.registry, edge.calls, book, new_id, edge.settings.max_request_bytes))
    app.openapi = partial(page, app.openapi)  # type: ignore[method-assign]
    add_problem_handlers(app)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    if edge.tracing.provider is not None:
        # Fetches never come here: their spans are rendered from the trail.
        FastAPIInstrumentor.instrument_app(app, tracer_provider=edge.tracing.provider, excluded_urls="healthz,readyz,metrics")
    return Front(edge, app)


async def _refused(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(status, "INVALID_REQUEST")
    response = _response(EdgeError(code, "there is no such path" if status == 404 else "the path does not take this method"))
    response.headers.update(getattr(error, "headers", None) or {})  # Allow
    return response


async def _failed(_request: Request, _error: Exception) -> Response:
    return _response(EdgeError("INTERNAL", "the edge failed"))


def _response(error: EdgeError) -> Response:
    headers, body = problem(error)
    return Response(body, error.kind.status, {name.decode(): value.decode() for name, value in headers})
