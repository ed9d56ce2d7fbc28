"""Fetches by a data source's name, as the predecessor's clients make them, and secrets that stay with the registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker_edge.api.intake import REFS_LIMIT
from broker_edge.errors import CallerError
from broker_edge.settings import Settings
from tests.edges import Answer, Bureau, InProcess, in_process, request, settings, spec
from tests.scenarios.test_cost import CountingProxy, Statements
from tests.scenarios.test_cost import edge as edge
from tests.scenarios.test_cost import proxy as proxy

BY_NAME = "/internal/data-broker"


async def registered(edge: InProcess, source: Mapping[str, Any], project: str | None = None, **members: Any) -> dict[str, Any]:
    """A published data source with a name of its own; its record."""
    query = f"?project_id={project}" if project else ""
    body = {"name": f"source-{uuid.uuid4()}", "source": source, "caching": {"enabled": True, "ttl": 3600}, **members}
    made = await edge.post(body, {"content-type": "application/json"}, f"/data-sources{query}")
    assert made.status == 201, made.body
    published = await edge.post({}, {}, f"/data-sources/{made.json()['data_source_id']}/publish{query}")
    assert published.status == 200, published.body
    record: dict[str, Any] = published.json()
    return record


def by_name(record: Mapping[str, Any], params: Mapping[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {
        "data_source_name": record["name"],
        "configured_params": dict(params or {}),
        "run_id": str(uuid.uuid4()),
        **members,
    }


async def asked(edge: InProcess, record: Mapping[str, Any], params: Mapping[str, Any] | None = None, **members: Any) -> Answer:
    return await edge.post(by_name(record, params, **members), path=BY_NAME)


async def set_variables(edge: InProcess, record: Mapping[str, Any], **values: Any) -> None:
    body = [{"name": name, "value": value} for name, value in values.items()]
    answer = await edge.put(f"/data-sources/{record['data_source_id']}/variables", body)
    assert answer.status == 200, answer.body


@pytest.fixture
async def running(backends: Settings) -> AsyncIterator[InProcess]:
    async with in_process(backends) as edge:
        yield edge


async def test_a_source_is_fetched_by_its_name_and_served_from_the_cache(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": f"{bureau.url}/{{{{ tax_id }}}}", "response_type": "JSON"})
    first = await asked(running, record, {"tax_id": "01"})
    second = await asked(running, record, {"tax_id": "01"})
    assert [(one.status, one.json()["origin"], one.json()["value"]) for one in (first, second)] == [
        (200, "REQUEST", {"score": 700}),
        (200, "CACHE", {"score": 700}),
    ]
    assert first.json()["key"] == second.json()["key"]
    assert [call.line for call in bureau.calls] == ["GET /01 HTTP/1.1"]
    rows = [row for row in await running.rows() if row.outcome in ("fetched", "hit")]
    assert [(str(row.data_source_id), row.data_origin) for row in sorted(rows, key=lambda row: row.created_at)] == [
        (record["data_source_id"], "REQUEST"),
        (record["data_source_id"], "CACHE"),
    ]


async def test_a_hit_by_name_is_one_get_and_no_sql(edge: InProcess, bureau: Bureau, proxy: CountingProxy) -> None:
    record = await registered(edge, {"url": bureau.url, "response_type": "JSON"})
    assert (await asked(edge, record)).status == 200
    assert await edge.edge.background.drain(30) == 0
    edge.edge.tracking = None
    proxy.reset()
    with Statements().heard_on(edge) as statements:
        answer = await asked(edge, record)
    assert answer.json()["origin"] == "CACHE"
    assert (proxy.round_trips, proxy.commands()) == (1, ["GET"])
    assert statements.said == []


async def test_missing_variables_are_named(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": f"{bureau.url}/{{{{ tax_id }}}}", "headers": {"X-Key": "{{ env.api_key }}"}})
    answer = await asked(running, record)
    problem = answer.json()
    assert (answer.status, problem["error"]["code"]) == (400, "MISSING_VARIABLE")
    assert "tax_id" in problem["detail"]
    assert "env.api_key" in problem["detail"]
    assert bureau.calls == []


async def test_missing_credentials_are_named(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url, "auth": {"method": "basic"}})
    answer = await asked(running, record)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "MISSING_VARIABLE")
    assert "CLIENT_ID, CLIENT_SECRET" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_source_name": None}, "data_source_name"),
        ({"data_source_name": 7}, "data_source_name"),
        ({"run_id": "run-1"}, "run_id"),
        ({"run_id": None}, "run_id"),
        ({"project_id": "mine"}, "project_id"),
        ({"configured_params": []}, "configured_params"),
        ({"mode": "offline"}, "mode"),
    ],
)
async def test_a_malformed_request_is_refused_by_name(running: InProcess, change: dict[str, Any], named: str) -> None:
    answer = await running.post({**by_name({"name": "any"}), **change}, path=BY_NAME)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert named in answer.json()["detail"]
    [row] = await running.rows()
    assert (row.outcome, row.data_origin) == ("invalid_request", None)


async def test_an_unknown_name_is_not_found(running: InProcess) -> None:
    answer = await asked(running, {"name": "nobody"})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "DATA_SOURCE_NOT_FOUND")
    assert answer.json()["detail"]


async def test_projects_share_neither_names_nor_answers(running: InProcess, bureau: Bureau) -> None:
    ours, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    record = await registered(running, {"url": bureau.url, "response_type": "JSON"}, project=ours)
    assert (await asked(running, record, project_id=theirs)).status == 404
    assert (await asked(running, record)).status == 404
    assert (await asked(running, record, project_id=ours)).json()["origin"] == "REQUEST"
    other = await registered(running, {"url": bureau.url, "response_type": "JSON"}, project=theirs, name=record["name"])
    assert (await asked(running, other, project_id=theirs)).json()["origin"] == "REQUEST"
    assert (await asked(running, record, project_id=ours)).json()["origin"] == "CACHE"


async def test_the_same_inline_spec_of_two_projects_has_two_keys(running: InProcess, bureau: Bureau) -> None:
    source = spec(bureau.url)
    answers = [await running.post(request(source, project_id=str(uuid.uuid4()))) for _ in range(2)]
    answers.append(await running.post(request(source)))
    assert len({answer.json()["key"] for answer in answers}) == 3
    assert {answer.json()["origin"] for answer in answers} == {"REQUEST"}


@pytest.mark.parametrize(
    "change",
    [
        {"caching": {"enabled": True, "ttl": 60}},
        {"description": "new"},
        {"metadata": {"team": "credit"}},
        {"source": {"timeout": 7}},
        {"source": {"retry": {"max_retries": 2}}},
    ],
)
async def test_a_changed_source_serves_no_old_entry(running: InProcess, bureau: Bureau, change: dict[str, Any]) -> None:
    record = await registered(running, {"url": bureau.url, "response_type": "JSON"})
    before = (await asked(running, record)).json()
    said = {**record, **change, "source": record["source"] | change.get("source", {})}
    changed = await running.put(f"/data-sources/{record['data_source_id']}", said)
    assert changed.status == 200, changed.body
    assert changed.json()["generation"] > record["generation"]
    after = (await asked(running, record)).json()
    assert (before["origin"], after["origin"]) == ("REQUEST", "REQUEST")
    assert before["key"] != after["key"]


async def test_a_draft_serves_by_name_and_publishing_it_is_a_change(running: InProcess, bureau: Bureau) -> None:
    body = {"name": "young", "source": {"url": bureau.url}, "caching": {"enabled": True}}
    draft = (await running.post(body, path="/data-sources")).json()
    answers = [await asked(running, draft) for _ in range(2)]
    assert (await running.post({}, {}, f"/data-sources/{draft['data_source_id']}/publish")).status == 200
    answers.append(await asked(running, draft))
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "CACHE", "REQUEST"]


async def test_a_draft_that_is_made_again_under_its_id_serves_nothing_of_the_old_one(running: InProcess, bureau: Bureau) -> None:
    body = {"name": "again", "source": {"url": bureau.url}, "caching": {"enabled": True}, "data_source_id": str(uuid.uuid4())}
    for _ in range(2):
        draft = (await running.post(body, path="/data-sources")).json()
        assert (await asked(running, draft)).json()["origin"] == "REQUEST"
        assert (await running.call("DELETE", f"/data-sources/{draft['data_source_id']}", b"", {})).status == 200
    assert len(bureau.calls) == 2


async def test_an_archived_source_serves_nothing_and_frees_its_name(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url, "response_type": "JSON"})
    assert (await asked(running, record)).status == 200
    assert (await running.call("DELETE", f"/data-sources/{record['data_source_id']}", b"", {})).status == 200
    answer = await asked(running, record)
    assert (answer.status, answer.json()["error"]["code"]) == (404, "DATA_SOURCE_NOT_FOUND")
    again = await registered(running, {"url": bureau.url, "response_type": "JSON"}, name=record["name"])
    assert (await asked(running, again)).json()["origin"] == "REQUEST"


async def test_variables_of_the_source_fill_its_templates_and_a_parameter_goes_first(running: InProcess, bureau: Bureau) -> None:
    headers = {"X-Key": "{{ env.api_key }}", "X-Region": "{{ region }}"}
    record = await registered(running, {"url": bureau.url, "response_type": "JSON", "headers": headers})
    await set_variables(running, record, api_key="k-1", region="south")
    assert (await asked(running, record)).status == 200
    assert (await asked(running, record, {"region": "north"})).status == 200
    assert [(call.get("x-key"), call.get("x-region")) for call in bureau.calls] == [("k-1", "south"), ("k-1", "north")]


async def test_a_reference_stands_for_a_secret_of_the_registry(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url, "headers": {"X-Key": "{{ env.token }}"}})
    await set_variables(running, record, token="t-1")
    inline = spec(bureau.url, headers={"Authorization": "Bearer {{ env.mine }}"})
    refs = {"mine": {"data_source_id": record["data_source_id"], "var_name": "token"}}
    answer = await running.post(request(inline, credential_refs=refs))
    assert answer.status == 200, answer.body
    assert bureau.calls[-1].get("authorization") == "Bearer t-1"
    assert b"t-1" not in answer.body


@pytest.mark.parametrize(
    ("ref", "env", "status", "code"),
    [
        ({"var_name": "other"}, {}, 400, "MISSING_VARIABLE"),
        ({"data_source_id": str(uuid.uuid4())}, {}, 404, "DATA_SOURCE_NOT_FOUND"),
        ({}, {"mine": "sent too"}, 400, "INVALID_REQUEST"),
    ],
)
async def test_a_reference_that_leads_nowhere_is_refused(
    running: InProcess, bureau: Bureau, ref: dict[str, Any], env: dict[str, Any], status: int, code: str
) -> None:
    record = await registered(running, {"url": bureau.url})
    await set_variables(running, record, token="t-1")
    refs = {"mine": {"data_source_id": record["data_source_id"], "var_name": "token", **ref}}
    inline = spec(bureau.url, headers={"X-Key": "{{ env.mine }}"})
    answer = await running.post(request(inline, credential_refs=refs, env_variables=env))
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert bureau.calls == []


async def set_credentials(edge: InProcess, record: Mapping[str, Any], **values: str | None) -> None:
    body = [{"credential_type": name, "value": value} for name, value in values.items()]
    answer = await edge.put(f"/data-sources/{record['data_source_id']}/credentials", body)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("name", "credential", "template"),
    [
        ("mine", "CLIENT_SECRET", "{{ env.mine }}"),
        ("mine", "API_KEY", "{{ mine }}"),
        ("USERNAME", "PASSWORD", "{{ id }}"),
        ("API_KEY", "API_KEY", "{{ env.API_KEY }}"),
        ("REFRESH_TOKEN", "REFRESH_TOKEN", "{{ REFRESH_TOKEN }}"),
    ],
)
async def test_a_reference_brings_no_credential_into_a_template(
    running: InProcess, bureau: Bureau, name: str, credential: str, template: str
) -> None:
    record = await registered(running, {"url": bureau.url})
    await set_credentials(running, record, **{credential: "canary-4711"})
    refs = {name: {"data_source_id": record["data_source_id"], "var_name": credential}}
    inline = spec(bureau.url, headers={"X-Key": template})
    answer = await running.post(request(inline, {"id": 1}, credential_refs=refs))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert f"credential_refs.{name}" in answer.json()["detail"]
    assert bureau.calls == []


async def test_references_to_credentials_prove_who_an_inline_spec_is(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url})
    await set_credentials(running, record, CLIENT_ID="me", API_KEY="k-1")
    await set_variables(running, record, password="s-1")
    one = {"data_source_id": record["data_source_id"]}
    refs = {"CLIENT_ID": {**one, "var_name": "CLIENT_ID"}, "CLIENT_SECRET": {**one, "var_name": "password"}}
    answer = await running.post(request(spec(bureau.url, auth={"method": "basic"}), credential_refs=refs))
    assert answer.status == 200, answer.body
    assert bureau.calls[-1].get("authorization") == f"Basic {b64encode(b'me:s-1').decode()}"
    keyed = spec(bureau.url, auth={"method": "api_key", "name": "X-Key"})
    answer = await running.post(request(keyed, credential_refs={"API_KEY": {**one, "var_name": "API_KEY"}}))
    assert answer.status == 200, answer.body
    assert bureau.calls[-1].get("x-key") == "k-1"


async def test_a_credential_that_is_taken_away_is_missing_at_once(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url, "auth": {"method": "api_key", "name": "X-Key"}}, caching={})
    await set_credentials(running, record, API_KEY="k-1", CLIENT_SECRET="k-2")
    assert (await asked(running, record)).status == 200
    await set_credentials(running, record, API_KEY=None)
    assert (await asked(running, record)).status == 200
    await set_credentials(running, record, CLIENT_SECRET=None)
    answer = await asked(running, record)
    assert (answer.status, answer.json()["error"]["code"]) == (400, "MISSING_VARIABLE")
    assert [call.get("x-key") for call in bureau.calls] == ["k-1", "k-2"]


async def test_a_request_has_no_more_references_than_it_may(running: InProcess, bureau: Bureau) -> None:
    record = await registered(running, {"url": bureau.url})
    await set_variables(running, record, token="t-1")
    one = {"data_source_id": record["data_source_id"], "var_name": "token"}
    refs = {f"v{number}": one for number in range(REFS_LIMIT)}
    inline = spec(bureau.url, headers={"X-Key": "{{ env.v0 }}"})
    assert (await running.post(request(inline, credential_refs=refs))).status == 200
    answer = await running.post(request(inline, credential_refs={**refs, "more": one}))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert f"credential_refs: names at most {REFS_LIMIT} secrets" in answer.json()["detail"]
    page = (await running.get("/openapi.json")).json()["components"]["schemas"]["FetchDataRequest"]["properties"]
    assert page["credential_refs"]["anyOf"][0]["maxProperties"] == REFS_LIMIT


async def test_a_reference_reaches_into_no_other_project(running: InProcess, bureau: Bureau) -> None:
    ours, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    record = await registered(running, {"url": bureau.url}, project=ours)
    path = f"/data-sources/{record['data_source_id']}/variables?project_id={ours}"
    assert (await running.put(path, [{"name": "token", "value": "t-1"}])).status == 200
    refs = {"mine": {"data_source_id": record["data_source_id"], "var_name": "token"}}
    inline = spec(bureau.url, headers={"X-Key": "{{ env.mine }}"})
    for project in (None, theirs):
        answer = await running.post(request(inline, credential_refs=refs, project_id=project))
        assert (answer.status, answer.json()["error"]["code"]) == (404, "DATA_SOURCE_NOT_FOUND")
    assert (await running.post(request(inline, credential_refs=refs, project_id=ours))).status == 200
    assert [call.get("x-key") for call in bureau.calls] == ["t-1"]


@contextlib.asynccontextmanager
async def two(tmp_path: Path, bureau: Bureau, redis: str, database: str) -> AsyncIterator[tuple[InProcess, InProcess]]:
    chosen = [settings(tmp_path / name, bureau.port, redis_url=redis, database_url=database) for name in ("a", "b")]
    key = "k1:" + "A" * 43 + "="
    chosen = [one.model_copy(update={"encryption_keys": _secret(key)}) for one in chosen]
    async with in_process(chosen[0]) as one, in_process(chosen[1]) as other:
        yield one, other


def _secret(value: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(value)


async def test_a_secret_that_is_rotated_in_the_middle_of_a_long_run_is_used_at_once_on_every_instance(
    tmp_path: Path, bureau: Bureau, request: pytest.FixtureRequest
) -> None:
    redis, postgres = request.getfixturevalue("redis_server"), request.getfixturevalue("postgres_server")
    async with two(tmp_path, bureau, redis.url, postgres.create(migrated=True)) as (one, other):
        record = await registered(one, {"url": f"{bureau.url}/{{{{ n }}}}", "headers": {"X-Key": "{{ env.token }}"}})
        await set_variables(one, record, token="old")
        await heard(other, record, version=1)
        for number in range(20):
            assert (await asked(other, record, {"n": number})).status == 200
        await set_variables(one, record, token="new")
        await heard(other, record, version=2)
        for number in range(20, 40):
            assert (await asked(other, record, {"n": number})).status == 200
    assert [call.get("x-key") for call in bureau.calls] == ["old"] * 20 + ["new"] * 20
    assert b"old" not in json.dumps([call.line for call in bureau.calls]).encode()


async def heard(edge: InProcess, record: Mapping[str, Any], version: int) -> None:
    """Return when this instance's snapshot knows that version of the source's secret."""
    registry, changed = edge.edge.registry, asyncio.Event()
    registry.listeners.append(lambda _: changed.set())
    async with asyncio.timeout(20):
        while known(edge, record) < version:
            changed.clear()
            await changed.wait()


def known(edge: InProcess, record: Mapping[str, Any]) -> int:
    try:
        return edge.edge.registry.ref(None, uuid.UUID(record["data_source_id"]), "token").version
    except CallerError:
        return 0
