"""The predecessor's own clients, unchanged, against a running edge: what its policies get, and what they hear when it fails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from vulkan.runners.shared.app_client import BaseAppClient, JWTAppClient, SimpleAppClient, create_app_client

from tests.edges import Bureau, EdgeProcess, edge_process, http_reply, json_reply
from tests.upstreams import Received

RUN = "7d1c2b3a-0000-4000-8000-000000000001"
JWT = {"jwt_secret": "a secret of thirty-two bytes or so", "jwt_issuer": "vulkan", "jwt_audience": "data-broker"}
TAX_ID = "01234567890"


def score(got: Received) -> bytes:
    if got.line.split()[1].endswith("/broken"):
        return http_reply(b"no", 503)
    return json_reply({"tax_id": got.line.split()[1].rpartition("/")[2], "score": 700})


@pytest.fixture
async def scores() -> AsyncIterator[Bureau]:
    async with Bureau(score).running() as bureau:
        yield bureau


@pytest.fixture
async def edge(tmp_path: Path, scores: Bureau) -> AsyncIterator[EdgeProcess]:
    with edge_process(tmp_path, scores.port) as running:
        await running.ready()
        yield running


async def register(edge: EdgeProcess, bureau: Bureau, project: str | None = None, **members: Any) -> None:
    source = {"url": f"{bureau.url}/score/{{{{ tax_id }}}}", "response_type": "JSON", **members}
    body = {"name": "credit_score", "source": source, "caching": {"enabled": True, "ttl": 3600}}
    async with httpx.AsyncClient(base_url=edge.url, trust_env=False) as http:
        query = {"project_id": project} if project else {}
        created = await http.post("/data-sources", json=body, params=query)
        assert created.status_code == 201, created.text
        published = await http.post(f"/data-sources/{created.json()['data_source_id']}/publish", params=query)
        assert published.status_code == 200, published.text


async def fetch(client: BaseAppClient, name: str = "credit_score", **params: Any) -> httpx.Response:
    """The client is synchronous: it works in a thread, while the loop runs the bureau."""
    return await asyncio.to_thread(client.fetch_data, name, params)


@pytest.mark.parametrize("make", [SimpleAppClient, lambda url, run: JWTAppClient(url, run, **JWT)], ids=["simple", "jwt"])
async def test_a_miss_then_a_hit(edge: EdgeProcess, scores: Bureau, make: Any) -> None:
    await register(edge, scores)
    with make(edge.url, RUN) as client:
        miss, hit = await fetch(client, tax_id=TAX_ID), await fetch(client, tax_id=TAX_ID)
    assert (miss.json()["origin"], hit.json()["origin"]) == ("REQUEST", "CACHE")
    assert miss.json()["value"] == hit.json()["value"] == {"tax_id": TAX_ID, "score": 700}
    assert miss.json()["data_object_id"] == hit.json()["data_object_id"]
    assert len(scores.calls) == 1


async def test_the_factory_s_client_is_served_with_a_token_and_without(
    edge: EdgeProcess, scores: Bureau, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(edge, scores)
    for name in ("SECRET", "ISSUER", "AUDIENCE", "TTL"):
        monkeypatch.delenv(f"VULKAN_JWT_{name}", raising=False)
    with create_app_client(edge.url, RUN) as simple:
        assert isinstance(simple, SimpleAppClient)
        assert (await fetch(simple, tax_id="1")).status_code == 200
    for name, value in JWT.items():
        monkeypatch.setenv(f"VULKAN_{name.upper()}", value)
    with create_app_client(edge.url, RUN) as signed:
        assert isinstance(signed, JWTAppClient)
        sent = signed.client.headers["authorization"].removeprefix("Bearer ")
        assert jwt.decode(sent, JWT["jwt_secret"], ["HS256"], audience=JWT["jwt_audience"])["jti"] == RUN
        assert (await fetch(signed, tax_id="1")).json()["origin"] == "CACHE"


async def test_a_client_of_a_project_sees_that_project_s_source_alone(edge: EdgeProcess, scores: Bureau) -> None:
    project = str(uuid.uuid4())
    await register(edge, scores, project)
    with SimpleAppClient(edge.url, RUN, project) as inside, SimpleAppClient(edge.url, RUN) as outside:
        assert (await fetch(inside, tax_id="1")).json()["origin"] == "REQUEST"
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await fetch(outside, tax_id="1")
    assert refused.value.response.status_code == 404


async def test_missing_variables_are_named_in_the_detail(edge: EdgeProcess, scores: Bureau) -> None:
    await register(edge, scores, headers={"Authorization": "Bearer {{ env.token }}"})
    with SimpleAppClient(edge.url, RUN) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        await fetch(client)
    assert refused.value.response.status_code == 400
    body = refused.value.response.json()
    assert body["error"]["code"] == "MISSING_VARIABLE"
    assert all(name in body["detail"] for name in ("tax_id", "token"))
    assert scores.calls == []


async def test_an_unknown_source_is_a_404_with_a_detail(edge: EdgeProcess) -> None:
    with SimpleAppClient(edge.url, RUN) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        await fetch(client, "nobody", tax_id="1")
    assert refused.value.response.status_code == 404
    body = refused.value.response.json()
    assert body["error"]["code"] == "DATA_SOURCE_NOT_FOUND"
    assert isinstance(body["detail"], str)
    assert body["detail"]


async def test_an_upstream_failure_is_a_502_that_the_client_tries_again(edge: EdgeProcess, scores: Bureau) -> None:
    await register(edge, scores)
    with SimpleAppClient(edge.url, RUN) as client, pytest.raises(httpx.HTTPStatusError) as failed:
        await fetch(client, tax_id="broken")
    assert failed.value.response.status_code == 502
    assert failed.value.response.json()["detail"]
    assert len(scores.calls) == 3
