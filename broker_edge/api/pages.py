"""The OpenAPI page: the fetches, which the front answers by itself, and failures as they are sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from broker_edge.api.schemas import DataBrokerRequest, FetchDataReply, FetchDataRequest, Problem
from broker_edge.api.source_models import BODIES

PATH = "/v1/fetch-data"
BY_NAME = "/internal/data-broker"
_PROBLEMS: dict[int | str, dict[str, object]] = {
    status: {"model": Problem} for status in (400, 403, 404, 413, 429, 500, 502, 503)
}


def fetch_routes() -> APIRouter:
    """The routes of the fetches, for the page alone."""
    router = APIRouter(tags=["data"])

    @router.post(PATH, response_model=FetchDataReply, responses=_PROBLEMS, summary="Fetch data by a spec")
    async def by_spec(_body: FetchDataRequest) -> FetchDataReply:
        """External data by an inline data source spec, from the cache or fetched once for everyone who waits."""
        raise AssertionError("the front answers this route")

    @router.post(BY_NAME, response_model=FetchDataReply, responses=_PROBLEMS, summary="Fetch data by a data source's name")
    async def by_name(_body: DataBrokerRequest) -> FetchDataReply:
        """External data by the name of a registered data source: the predecessor's endpoint, for clients that exist."""
        raise AssertionError("the front answers this route")

    return router


def page(generated: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's page with failures as they are sent: problem+json, and no 422, which is FastAPI's own way to refuse."""
    whole = generated()
    for name, schema in BODIES.items():
        whole["components"]["schemas"].setdefault(name, schema)
    for operations in whole["paths"].values():
        for operation in operations.values():
            _as_sent(operation["responses"])
    for name in ("HTTPValidationError", "ValidationError"):
        whole["components"]["schemas"].pop(name, None)
    return whole


def _as_sent(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for response in responses.values():
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema") == {"$ref": "#/components/schemas/Problem"}:
            content["application/problem+json"] = content.pop("application/json")
