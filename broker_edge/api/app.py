"""The ASGI application: a front that takes fetches, FastAPI behind it for everything else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.exceptions import HTTPException

from broker_edge import __version__
from broker_edge.api.asgi import Receive, Scope, Send
from broker_edge.api.envelope import problem
from broker_edge.api.fetch import FetchEndpoint
from broker_edge.api.ops import ops_routes
from broker_edge.api.schemas import FetchDataReply, FetchDataRequest, Problem
from broker_edge.errors import EdgeError
from broker_edge.settings import Settings, load
from broker_edge.telemetry.logs import configure
from broker_edge.telemetry.otel import new_span_id
from broker_edge.wiring import Edge, build

PATH = "/v1/fetch-data"


class Front:
    """Takes POST /v1/fetch-data before any routing; hands the rest on."""

    def __init__(self, edge: Edge, app: FastAPI) -> None:
        self.edge = edge
        self.app = app
        self._fetch = FetchEndpoint(
            edge.broker,
            edge.journal,
            edge.tracing.begin,
            new_span_id,
            edge.sinks,
            edge.log.failure,
            max_request_bytes=edge.settings.max_request_bytes,
            spec_entries=edge.settings.spec_cache_entries,
        )
        self.begin = self._fetch.begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            await self._fetch(scope, receive, send)
        else:
            await self.app(scope, receive, send)  # type: ignore[arg-type]


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
    app.add_api_route(
        PATH,
        _documented,
        methods=["POST"],
        response_model=FetchDataReply,
        responses=_PROBLEMS,
        tags=["data"],
        summary="Fetch data",
    )
    app.openapi = partial(_page, app.openapi)  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    if edge.tracing.provider is not None:
        # Fetches never come here: their spans are rendered from the trail.
        FastAPIInstrumentor.instrument_app(app, tracer_provider=edge.tracing.provider, excluded_urls="healthz,readyz,metrics")
    return Front(edge, app)


_PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem} for status in (400, 403, 404, 413, 429, 500, 502, 503)
}


def _page(generated: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's page with failures as they are sent: problem+json, and no 422, which is FastAPI's own way to refuse."""
    page = generated()
    responses = page["paths"][PATH]["post"]["responses"]
    responses.pop("422", None)
    for status, response in responses.items():
        if status != "200" and "application/json" in response["content"]:
            response["content"] = {"application/problem+json": response["content"].pop("application/json")}
    for name in ("HTTPValidationError", "ValidationError"):
        page["components"]["schemas"].pop(name, None)
    return page


async def _documented(_body: FetchDataRequest) -> FetchDataReply:
    """External data by an inline data source spec, from the cache or fetched once for everyone who waits."""
    raise AssertionError("the front answers this route")


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
