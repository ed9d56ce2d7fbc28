"""The OpenAPI page says what the front does: the front validates by itself, so the two are compared here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_edge.api import schemas
from broker_edge.api.intake import Body, CredentialRef, NamedBody
from broker_edge.core import spec as wire
from broker_edge.core.money import NO_CURRENCY
from broker_edge.core.source import METHODS, RESPONSE_TYPES
from broker_edge.errors import CODES
from tests.edges import Bureau, InProcess, in_process, request, settings, spec

# What a fetch never answers.
_ELSEWHERE = {"UNAUTHENTICATED", "METHOD_NOT_ALLOWED", "DATA_SOURCE_ALREADY_EXISTS"}


@pytest.fixture
async def page(tmp_path: Path) -> dict[str, Any]:
    async with in_process(settings(tmp_path)) as edge:
        answer = await edge.get("/openapi.json")
    assert answer.status == 200
    document: dict[str, Any] = answer.json()
    return document


def _fetch(page: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = page["paths"]["/v1/fetch-data"]["post"]
    return operation


async def test_every_path_is_there(page: dict[str, Any]) -> None:
    paths = {path for path in page["paths"] if not path.startswith("/data-sources")}
    assert paths == {"/v1/fetch-data", "/internal/data-broker", "/healthz", "/readyz", "/health", "/metrics"}


async def test_failures_are_documented_as_the_problems_that_they_are(page: dict[str, Any]) -> None:
    responses = dict(_fetch(page)["responses"])
    assert list(responses.pop("200")["content"]) == ["application/json"]
    given = {str(kind.status) for code, kind in CODES.items() if code not in _ELSEWHERE}
    assert set(responses) == given
    for response in responses.values():
        assert response["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


async def test_readiness_objects_and_usage_say_what_they_answer(page: dict[str, Any]) -> None:
    paths = page["paths"]
    down = paths["/readyz"]["get"]["responses"]["503"]
    assert down["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/Readiness"}}}
    assert "Link" in paths["/data-sources/{data_source_id}/objects"]["get"]["responses"]["200"]["headers"]
    asked = {one["name"]: one for one in paths["/data-sources/{data_source_id}/usage"]["get"]["parameters"]}
    assert "money_by_run" in asked["run_id"]["description"]
    assert f"`{NO_CURRENCY}`" in page["components"]["schemas"]["Spending"]["properties"]["currency"]["description"]


async def test_no_reference_leads_nowhere(page: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    names = {reference.rpartition("/")[2] for reference in references(page)}
    assert names <= set(page["components"]["schemas"])


@pytest.mark.parametrize(
    ("model", "struct"),
    [
        (schemas.FetchDataRequest, Body),
        (schemas.DataSourceSpec, wire.Spec),
        (schemas.HttpSource, wire.Source),
        (schemas.Retry, wire.Retry),
        (schemas.Caching, wire.Caching),
        (schemas.Auth, wire.Auth),
        (schemas.Amount, wire.Amount),
        (schemas.Budget, wire.Budget),
        (schemas.CredentialRef, CredentialRef),
        (schemas.DataBrokerRequest, NamedBody),
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_models_have_the_members_that_the_front_reads(model: type[Any], struct: type[msgspec.Struct]) -> None:
    fields = msgspec.structs.fields(struct)
    assert set(model.model_fields) == {field.name for field in fields}
    required = {field.name for field in fields if field.required}
    assert {name for name, field in model.model_fields.items() if field.is_required()} == required


async def test_the_allowed_words_are_those_of_the_front(page: dict[str, Any]) -> None:
    source = page["components"]["schemas"]["HttpSource"]["properties"]
    assert tuple(source["method"]["enum"]) == METHODS
    assert tuple(source["response_type"]["enum"]) == RESPONSE_TYPES


async def test_replies_and_problems_have_the_documented_members(tmp_path: Path, bureau: Bureau, page: dict[str, Any]) -> None:
    models = page["components"]["schemas"]
    async with in_process(settings(tmp_path / "edge", bureau.port)) as edge:
        reply = (await edge.post(request(spec(bureau.url)))).json()
        problem = (await edge.post(b"")).json()
        upstream = (await failing(edge, bureau)).json()
    assert reply.keys() == set(models["FetchDataReply"]["properties"])
    assert set(models["Problem"]["required"]) <= problem.keys() < upstream.keys() == set(models["Problem"]["properties"])
    assert upstream["error"].keys() == set(models["FetchError"]["properties"])


async def failing(edge: InProcess, bureau: Bureau) -> Any:
    bureau._answer = lambda _: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    return await edge.post(request(spec(f"{bureau.url}/missing")))
