"""The routes under /data-sources: what they answer, and every refusal with its code."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from broker_edge.api import source_models
from broker_edge.core.auth import CREDENTIALS
from broker_edge.core.record import STATUSES
from broker_edge.errors import TierBroken
from tests.edges import Answer, InProcess, in_process, settings

_LIMIT = 20_000  # bytes of a request that this edge takes
_MASK = "********"
_MEMBERS = {"data_object_id", "origin", "key", "value", "start_time", "end_time", "duration", "error"}
CANARY = "canary-value-5c1e"
NOBODY = "00000000-0000-4000-8000-000000000000"


# The predecessor's models, member for member.
class CachingTTL(BaseModel):
    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: int = 0


class CachingOptions(BaseModel):
    enabled: bool = False
    ttl: CachingTTL | int | None = None


class RetryPolicy(BaseModel):
    max_retries: int
    backoff_factor: float | None = None
    status_forcelist: list[int] | None = None


class AuthConfig(BaseModel):
    method: Literal["basic", "bearer"]
    token_url: str | None = None
    grant_type: Literal["client_credentials", "password", "implicit"] | None = None
    scope: str | None = None


class HTTPSource(BaseModel):
    url: str
    method: Literal["GET", "POST", "PUT", "DELETE"] = "GET"
    headers: dict[str, Any] = {}
    params: dict[str, Any] = {}
    body: dict[str, Any] = {}
    timeout: int | None = None
    retry: RetryPolicy = RetryPolicy(max_retries=1)
    response_type: Literal["JSON", "XML", "CSV", "PLAIN_TEXT"] = "PLAIN_TEXT"
    auth: AuthConfig | None = None


class DataSource(BaseModel):
    name: str
    source: HTTPSource
    caching: CachingOptions = CachingOptions()
    description: str | None = None
    metadata: dict[str, Any] | None = None
    data_source_id: uuid.UUID
    created_at: datetime
    last_updated_at: datetime
    variables: list[str] | None = None
    runtime_params: list[str] | None = None
    status: Literal["DRAFT", "PUBLISHED", "ARCHIVED"] = "DRAFT"


class DataSourceEnvVar(BaseModel):
    name: str
    value: str | float | int | bool | None = None
    created_at: datetime | None = None
    last_updated_at: datetime | None = None


class DataSourceCredential(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    credential_type: Literal["CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD"]
    value: str
    credential_id: uuid.UUID
    data_source_id: uuid.UUID
    created_at: datetime
    last_updated_at: datetime


def body(name: Any = None, **members: Any) -> dict[str, Any]:
    """As the predecessor's clients send it: the whole record, nulls for what nobody set."""
    source = {
        "url": "https://bureau.test/score/{{ tax_id }}",
        "method": "GET",
        "headers": {"X-Key": "{{ env.api_key }}"},
        "params": {},
        "body": {},
        "timeout": None,
        "retry": {"max_retries": 1, "backoff_factor": None, "status_forcelist": None},
        "response_type": "JSON",
        "auth": None,
        "source_type": "http",
    }
    given = {"name": name or f"source-{uuid.uuid4()}", "source": source, "caching": {"enabled": True, "ttl": {"hours": 1}}}
    return {**given, "description": "Scores", "metadata": {"owner": "risk"}, "unheard_of": [1], **members}


@pytest.fixture(scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcess]:
    """One edge for the tests of this module, which tell themselves apart by names and ids."""
    async with in_process(settings(tmp_path_factory.mktemp("edge"), max_request_bytes=_LIMIT)) as running:
        yield running


async def send(edge: InProcess, method: str, path: str, value: Any = None) -> Answer:
    data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
    return await edge.call(method, f"/data-sources{path}", data, {"content-type": "application/json"})


async def made(edge: InProcess, query: str = "", /, **members: Any) -> dict[str, Any]:
    answer = await send(edge, "POST", query, body(**members))
    assert answer.status == 201, answer.body
    record: dict[str, Any] = answer.json()
    return record


def refused(answer: Answer, code: str, *words: str) -> None:
    """A problem by the book, which names what is wrong."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["error"]["code"] == code, problem
    assert problem["status"] == answer.status
    assert problem["type"] == f"urn:broker-edge:problem:{code.lower().replace('_', '-')}"
    assert problem.keys() >= _MEMBERS | {"title", "detail"}
    for word in words:
        assert word in problem["detail"], problem["detail"]


async def test_a_source_is_made_and_answered_whole(edge: InProcess) -> None:
    given = body()
    answer = await send(edge, "POST", "", given)
    record = answer.json()
    assert answer.status == 201
    assert answer.headers["location"] == f"/data-sources/{record['data_source_id']}"
    DataSource.model_validate(record)
    assert record.keys() == set(source_models.DataSource.model_fields)
    assert record.keys() == set(DataSource.model_fields) | {"project_id", "generation", "cost_per_call", "billable", "budget"}
    assert {name: record[name] for name in ("name", "description", "metadata")} == {
        name: given[name] for name in ("name", "description", "metadata")
    }
    assert (record["status"], record["project_id"], record["billable"]) == ("DRAFT", None, False)
    assert (record["runtime_params"], record["variables"]) == (["tax_id"], ["api_key"])
    assert datetime.fromisoformat(record["created_at"]).tzinfo is not None
    assert (await send(edge, "GET", answer.headers["location"].removeprefix("/data-sources"))).json() == record


async def test_terms_of_money_come_back_as_they_were_given(edge: InProcess) -> None:
    terms: dict[str, Any] = {"cost_per_call": {"amount": "0.35", "currency": "EUR"}, "billable": True, "budget": {"calls": 10}}
    record = await made(edge, **terms)
    assert {name: record[name] for name in terms} == terms


async def test_an_id_may_be_chosen_and_is_taken_once(edge: InProcess) -> None:
    chosen = str(uuid.uuid4())
    assert (await made(edge, data_source_id=chosen))["data_source_id"] == chosen
    refused(await send(edge, "POST", "", body(data_source_id=chosen)), "DATA_SOURCE_ALREADY_EXISTS")


async def test_a_name_is_taken_once_in_a_project(edge: InProcess) -> None:
    name, project = f"name-{uuid.uuid4()}", uuid.uuid4()
    await made(edge, name=name)
    refused(await send(edge, "POST", "", body(name)), "DATA_SOURCE_ALREADY_EXISTS")
    assert (await made(edge, f"?project_id={project}", name=name))["project_id"] == str(project)
    assert (await made(edge, name=f"other-{name}", project_id=str(project)))["project_id"] == str(project)
    other = await made(edge)
    path = f"/{other['data_source_id']}"
    refused(await send(edge, "PUT", path, body(name)), "DATA_SOURCE_ALREADY_EXISTS")


async def test_the_list_is_of_one_project_by_status_and_without_the_archived(edge: InProcess) -> None:
    project = f"project_id={uuid.uuid4()}"
    records = [await made(edge, f"?{project}") for _ in STATUSES]
    ids = [record["data_source_id"] for record in records]
    for one in ids[1:]:
        await send(edge, "POST", f"/{one}/publish?{project}")
    await send(edge, "DELETE", f"/{ids[2]}?{project}")

    async def listed(query: str) -> list[str]:
        answer = await send(edge, "GET", f"?{project}{query}")
        assert answer.status == 200
        return [record["data_source_id"] for record in answer.json()]

    assert await listed("") == ids[:2]
    assert await listed("&include_archived=true") == ids
    assert await listed("&status=DRAFT") == [ids[0]]
    assert await listed("&status=published") == [ids[1]]
    assert await listed("&status=ARCHIVED") == [ids[2]]
    assert not set(ids) & {record["data_source_id"] for record in (await send(edge, "GET", "")).json()}


async def test_another_project_s_source_does_not_exist(edge: InProcess) -> None:
    record = await made(edge, f"?project_id={uuid.uuid4()}")
    one = f"/{record['data_source_id']}"
    for query in ("", f"?project_id={uuid.uuid4()}"):
        for method, path, value in EVERY_ROUTE_OF_ONE:
            refused(await send(edge, method, f"{one}{path}{query}", value), "DATA_SOURCE_NOT_FOUND")


EVERY_ROUTE_OF_ONE: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("PUT", "", body("name")),
    ("DELETE", "", None),
    ("POST", "/publish", None),
    ("POST", "/test", {}),
    ("GET", "/variables", None),
    ("PUT", "/variables", []),
    ("GET", "/credentials", None),
    ("PUT", "/credentials", []),
    ("GET", "/objects", None),
    ("GET", f"/objects/{NOBODY}", None),
]


@pytest.mark.parametrize(("method", "path", "value"), EVERY_ROUTE_OF_ONE)
async def test_an_unknown_source_is_not_found_anywhere(edge: InProcess, method: str, path: str, value: Any) -> None:
    answer = await send(edge, method, f"/{uuid.uuid4()}{path}", value)
    assert answer.status == 404
    refused(answer, "DATA_SOURCE_NOT_FOUND")


@pytest.mark.parametrize(("method", "path", "value"), EVERY_ROUTE_OF_ONE)
async def test_an_id_that_is_none_is_refused_everywhere(edge: InProcess, method: str, path: str, value: Any) -> None:
    answer = await send(edge, method, f"/{CANARY}{path}", value)
    assert answer.status == 400
    refused(answer, "INVALID_REQUEST", "data_source_id must be a UUID")
    assert CANARY not in answer.body.decode()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?status=ASLEEP", "status"),
        ("?include_archived=perhaps", "include_archived must be true or false"),
        ("?project_id=nobody", "project_id must be a UUID"),
    ],
)
async def test_a_list_that_can_t_be_is_refused(edge: InProcess, query: str, words: str) -> None:
    refused(await send(edge, "GET", query), "INVALID_REQUEST", words)


SOURCE = body()["source"]
BAD_BODIES: list[tuple[Any, str, str]] = [
    (b"", "INVALID_REQUEST", "object"),
    (b"{", "INVALID_REQUEST", "JSON"),
    (b'{"name": "\xff"}', "INVALID_REQUEST", "UTF-8"),
    (b"[" * 9_000, "INVALID_REQUEST", ""),
    ([], "INVALID_REQUEST", "object"),
    ({"source": SOURCE}, "INVALID_REQUEST", "`name`"),
    ({"name": "x"}, "INVALID_REQUEST", "`source`"),
    (body(name=7), "INVALID_REQUEST", "name"),
    (body(source=CANARY), "INVALID_REQUEST", "source"),
    (body(caching=3), "INVALID_REQUEST", "caching"),
    (body(description=1), "INVALID_REQUEST", "description"),
    (body(metadata=[1]), "INVALID_REQUEST", "metadata"),
    (body(data_source_id=CANARY), "INVALID_REQUEST", "data_source_id"),
    (body(project_id=CANARY), "INVALID_REQUEST", "project_id"),
    (body(source={"method": "GET"}), "INVALID_DATA_SOURCE", "source.url is required"),
    (body(source={"url": f"ftp://{CANARY}"}), "INVALID_DATA_SOURCE", "source.url"),
    (body(source={"url": "https://bureau.test", "method": CANARY}), "INVALID_DATA_SOURCE", "source.method"),
    (body(source={"url": "https://bureau.test", "timeout": "soon"}), "INVALID_DATA_SOURCE", "source.timeout must be a number"),
    (body(source={"url": "https://bureau.test", "timeout": 301}), "INVALID_DATA_SOURCE", "source.timeout"),
    (
        body(source={"url": "https://bureau.test", "retry": {"max_retries": 11}}),
        "INVALID_DATA_SOURCE",
        "source.retry.max_retries",
    ),
    (body(source={"url": "https://bureau.test", "auth": {"method": CANARY}}), "INVALID_DATA_SOURCE", "source.auth.method"),
    (body(source={"path": "local.csv"}), "INVALID_DATA_SOURCE", "source.url is required"),
    (body(source={"url": "https://bureau.test/{{ a.b }}"}), "TEMPLATE_REJECTED", "source.url"),
    (body(source={"url": "https://bureau.test/{{ CLIENT_SECRET }}"}), "TEMPLATE_REJECTED", "CLIENT_SECRET"),
    (body(source={"url": "https://bureau.test", "headers": {"X": "{{ env.PASSWORD }}"}}), "TEMPLATE_REJECTED", "PASSWORD"),
    (body(caching={"ttl": -1}), "INVALID_DATA_SOURCE", "caching.ttl"),
    (body(caching={"negative_ttl": {"200": 1}}), "INVALID_DATA_SOURCE", "caching.negative_ttl"),
    (body(name=" \n"), "INVALID_DATA_SOURCE", "name"),
    (body(name="x" * 256), "INVALID_DATA_SOURCE", "name must be at most 255 characters long"),
    (body(cost_per_call="a lot"), "INVALID_DATA_SOURCE", "cost_per_call"),
    (body(cost_per_call="1e999999"), "INVALID_DATA_SOURCE", "cost_per_call"),
    (body(cost_per_call=1, budget={"amount": "1e999999"}), "INVALID_DATA_SOURCE", "budget.amount"),
    (body(billable="yes"), "INVALID_DATA_SOURCE", "billable"),
    (body(budget={"amount": 1}), "INVALID_DATA_SOURCE", "budget"),
    (body(budget={}), "INVALID_DATA_SOURCE", "budget"),
]


@pytest.mark.parametrize(("value", "code", "words"), BAD_BODIES)
async def test_a_body_that_can_t_be_is_refused_by_both_that_take_it(edge: InProcess, value: Any, code: str, words: str) -> None:
    record = await made(edge)
    before = (await send(edge, "GET", "")).json()
    for method, path in (("POST", ""), ("PUT", f"/{record['data_source_id']}")):
        answer = await send(edge, method, path, value)
        assert answer.status == 400
        refused(answer, code, words)
        assert CANARY not in answer.body.decode()
        assert "data_source_spec" not in answer.body.decode()
    assert (await send(edge, "GET", "")).json() == before


async def test_two_projects_at_once_are_refused(edge: InProcess) -> None:
    answer = await send(edge, "POST", f"?project_id={uuid.uuid4()}", body(project_id=str(uuid.uuid4())))
    refused(answer, "INVALID_REQUEST", "project_id")


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("PUT", "/{}"), ("PUT", "/{}/variables"), ("POST", "/{}/test")])
async def test_what_is_too_large_is_refused(edge: InProcess, method: str, path: str) -> None:
    record = await made(edge)
    answer = await send(edge, method, path.format(record["data_source_id"]), b" " * (_LIMIT + 1))
    assert answer.status == 413
    refused(answer, "PAYLOAD_TOO_LARGE", str(_LIMIT))


async def test_a_draft_may_change_altogether(edge: InProcess) -> None:
    record = await made(edge)
    wanted = body(source={"url": "https://other.test/{{ a }}/{{ env.b }}"}, caching=None, description=None, metadata=None)
    changed = (await send(edge, "PUT", f"/{record['data_source_id']}", wanted)).json()
    assert changed["name"] == wanted["name"]
    assert changed["source"] == wanted["source"]
    assert (changed["runtime_params"], changed["variables"]) == (["a"], ["b"])
    assert changed["generation"] == record["generation"] + 1
    assert (changed["description"], changed["metadata"], changed["caching"]) == (None, None, {})


async def test_a_record_that_is_sent_back_changes_nothing(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}"
    assert (await send(edge, "PUT", path, record)).json() == record
    published = (await send(edge, "POST", f"{path}/publish")).json()
    assert (await send(edge, "PUT", path, published)).json() == published
    assert (await send(edge, "POST", f"{path}/publish")).json() == published


async def test_a_published_source_lets_five_members_change_and_no_other(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}"
    published = (await send(edge, "POST", f"{path}/publish")).json()
    assert published["status"] == "PUBLISHED"
    source = {**published["source"], "timeout": 7, "retry": {"max_retries": 2}}
    wanted = {**published, "description": "new", "metadata": {"a": 1}, "caching": {"enabled": False}, "source": source}
    changed = await send(edge, "PUT", path, wanted)
    assert changed.status == 200, changed.body
    assert changed.json() == wanted | {name: changed.json()[name] for name in ("generation", "last_updated_at")}
    for member, other in (
        ("name", {"name": "another"}),
        ("source.url", {"source": {**source, "url": "https://bureau.test/other"}}),
        ("source.headers", {"source": {**source, "headers": {}}}),
        ("source.response_type", {"source": {**source, "response_type": "XML"}}),
        ("cost_per_call", {"cost_per_call": 1}),
        ("billable", {"billable": True}),
    ):
        refused(await send(edge, "PUT", path, {**wanted, **other}), "INVALID_DATA_SOURCE", member, "published")
    assert (await send(edge, "GET", path)).json() == changed.json()


async def test_a_draft_is_deleted_and_a_published_source_archived(edge: InProcess) -> None:
    draft, published = await made(edge), await made(edge)
    await send(edge, "POST", f"/{published['data_source_id']}/publish")
    for record in (draft, published):
        answer = await send(edge, "DELETE", f"/{record['data_source_id']}")
        assert (answer.status, answer.json()) == (200, {"data_source_id": record["data_source_id"]})
    refused(await send(edge, "GET", f"/{draft['data_source_id']}"), "DATA_SOURCE_NOT_FOUND")
    assert (await send(edge, "GET", f"/{published['data_source_id']}")).json()["status"] == "ARCHIVED"


async def test_an_archived_source_takes_and_tells_no_more_than_its_record_and_objects(edge: InProcess) -> None:
    record = await made(edge)
    one = f"/{record['data_source_id']}"
    await send(edge, "POST", f"{one}/publish")
    await send(edge, "DELETE", one)
    for method, path, value in EVERY_ROUTE_OF_ONE:
        answer = await send(edge, method, f"{one}{path}", value)
        if (method, path) in (("GET", ""), ("GET", "/objects")):
            assert answer.status == 200
        else:
            refused(answer, "DATA_OBJECT_NOT_FOUND" if "objects" in path else "DATA_SOURCE_NOT_FOUND")


async def test_variables_are_replaced_as_a_whole_and_told_without_their_values(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/variables"
    assert (await send(edge, "GET", path)).json() == []
    given = [("text", CANARY), ("number", 12345678), ("fraction", 1.5), ("flag", True), ("unset", None), ("empty", "")]
    answer = await send(edge, "PUT", path, [{"name": name, "value": value, "else": 1} for name, value in given])
    assert answer.status == 200, answer.body
    assert answer.json()["data_source_id"] == record["data_source_id"]
    told = answer.json()["variables"]
    types = ["string", "number", "number", "boolean", "null", "string"]
    assert [(each["name"], each["value_type"]) for each in told] == [
        (name, kind) for (name, _), kind in zip(given, types, strict=True)
    ]
    for each in told:
        DataSourceEnvVar.model_validate(each)
        assert each.keys() == set(source_models.DataSourceEnvVar.model_fields)
        assert each["is_set"] == (each["name"] != "unset")
        assert each["value"] == (_MASK if each["is_set"] else None)
        assert each["version"] == 1
    assert (await send(edge, "GET", path)).json() == sorted(told, key=lambda each: each["name"])
    fewer = await send(edge, "PUT", path, [{"name": "text", "value": "else"}, {"name": "new"}])
    assert [(each["name"], each["version"]) for each in fewer.json()["variables"]] == [("text", 2), ("new", 1)]
    assert [each["name"] for each in (await send(edge, "GET", path)).json()] == ["new", "text"]
    assert (await send(edge, "PUT", path, [])).json()["variables"] == []
    assert (await send(edge, "GET", path)).json() == []


async def test_what_is_read_and_written_back_destroys_nothing(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}"
    await send(edge, "PUT", f"{path}/variables", [{"name": "a", "value": CANARY}, {"name": "b", "value": 1}, {"name": "c"}])
    await send(edge, "PUT", f"{path}/credentials", [{"credential_type": "USERNAME", "value": CANARY}])
    variables = (await send(edge, "GET", f"{path}/variables")).json()
    credentials = (await send(edge, "GET", f"{path}/credentials")).json()
    assert (await send(edge, "PUT", f"{path}/variables", variables)).json()["variables"] == variables
    assert (await send(edge, "PUT", f"{path}/credentials", credentials)).json() == credentials
    variables[1]["value"] = 2
    after = (await send(edge, "PUT", f"{path}/variables", variables)).json()["variables"]
    assert [each["version"] for each in after] == [1, 2, 1]
    assert [each["is_set"] for each in after] == [True, True, False]


async def test_credentials_are_merged_and_told_without_their_values(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/credentials"
    given = [{"credential_type": name, "value": f"{CANARY}-{name}"} for name in ("USERNAME", "PASSWORD")]
    answer = await send(edge, "PUT", path, given)
    assert answer.status == 200, answer.body
    for each in answer.json():
        DataSourceCredential.model_validate(each)
        assert each.keys() == set(source_models.DataSourceCredential.model_fields)
        assert (each["value"], each["is_set"], each["version"]) == (_MASK, True, 1)
        assert each["data_source_id"] == record["data_source_id"]
    assert [each["credential_type"] for each in answer.json()] == ["USERNAME", "PASSWORD"]
    for name in CREDENTIALS:
        one = await send(edge, "PUT", path, [{"credential_type": name, "value": f"other-{name}"}])
        assert [each["credential_type"] for each in one.json()] == [name]
    assert {each["credential_type"]: each["version"] for each in (await send(edge, "GET", path)).json()} == {
        name: 2 if name in ("USERNAME", "PASSWORD") else 1 for name in CREDENTIALS
    }


@pytest.mark.parametrize("published", [False, True])
async def test_a_credential_of_null_is_taken_away_and_others_stay(edge: InProcess, published: bool) -> None:
    record = await made(edge)
    one = f"/{record['data_source_id']}"
    path = f"{one}/credentials"
    if published:
        await send(edge, "POST", f"{one}/publish")
    first = await send(edge, "PUT", path, [{"credential_type": name, "value": CANARY} for name in ("USERNAME", "PASSWORD")])
    gone = {"credential_type": "USERNAME", "value": None}
    answer = await send(edge, "PUT", path, [gone, {"credential_type": "API_KEY", "value": CANARY}])
    assert answer.status == 200, answer.body
    assert [each["credential_type"] for each in answer.json()] == ["API_KEY"]
    assert [each["credential_type"] for each in (await send(edge, "GET", path)).json()] == ["API_KEY", "PASSWORD"]
    assert set(edge.edge.registry._snapshot.refs[uuid.UUID(record["data_source_id"])]) == {"API_KEY", "PASSWORD"}
    again = await send(edge, "PUT", path, [gone])
    assert (again.status, again.json()) == (200, [])
    refused(await send(edge, "PUT", path, [{**gone, "value": _MASK}]), "INVALID_REQUEST", "USERNAME is not set")
    [back] = (await send(edge, "PUT", path, [{**gone, "value": CANARY}])).json()
    assert back["is_set"]
    assert back["credential_id"] not in {each["credential_id"] for each in first.json()}


async def test_a_list_with_more_variables_than_a_source_may_have_is_refused_whole(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/variables"
    most = [{"name": f"{number}"} for number in range(1000)]
    assert len(json.dumps([*most, {"name": "x"}])) < _LIMIT
    refused(await send(edge, "PUT", path, [*most, {"name": "x"}]), "INVALID_REQUEST", "at most 1000 variables")
    assert (await send(edge, "GET", path)).json() == []
    assert len((await send(edge, "PUT", path, most)).json()["variables"]) == 1000


async def test_changes_of_secrets_at_once_are_all_made(edge: InProcess) -> None:
    record = await made(edge)
    one = f"/{record['data_source_id']}"
    changes: list[tuple[str, Any]] = [
        *(("/variables", [{"name": name, "value": number} for name in "ab"]) for number in range(8)),
        *(("/variables", []) for _ in range(8)),
        *(("/credentials", [{"credential_type": "API_KEY", "value": value}]) for value in ("x", None, "y", None) * 2),
    ]
    answers = await asyncio.gather(*(send(edge, "PUT", one + path, value) for path, value in changes))
    assert [answer.status for answer in answers] == [200] * len(changes)


async def test_the_list_has_every_record_as_it_is_answered_alone(edge: InProcess) -> None:
    project = f"?project_id={uuid.uuid4()}"
    strange = {"big": 10**30, "float": 1.0, "tiny": 1e-9, "text": '\u00e9"\u2028', "none": None, "list": [True, {}]}
    terms = {"cost_per_call": {"amount": "0.35", "currency": "EUR"}, "billable": True, "budget": {"calls": 10}}
    records = [
        await made(edge, project, metadata=strange, **terms),
        *[await made(edge, project, metadata=None) for _ in range(3)],
    ]
    answer = await send(edge, "GET", project)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == records
    assert [type(value) for value in answer.json()[0]["metadata"].values()] == [type(value) for value in strange.values()]


async def test_a_long_list_lets_others_have_their_turn(edge: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_edge.api.sources._BREATH", 2)
    project = uuid.uuid4()
    records = [await made(edge, f"?project_id={project}") for _ in range(5)]
    kept = await edge.edge.registry.list(str(project))
    turns = 0

    async def listed(*_: object, **__: object) -> Any:
        asyncio.get_running_loop().call_soon(turn)
        return kept

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    def written(record: Any) -> dict[str, Any]:
        met.append(turns)
        return source_models.members_of(record)

    met: list[int] = []
    monkeypatch.setattr(edge.edge.registry, "list", listed)
    monkeypatch.setattr("broker_edge.api.sources.members_of", written)
    assert (await send(edge, "GET", f"?project_id={project}")).json() == records
    assert len(set(met)) == 3


BAD_VARIABLES: list[tuple[Any, str]] = [
    ({}, "array"),
    (b"", "array"),
    ([1], "[0]"),
    ([{"value": CANARY}], "`name`"),
    ([{"name": 1}], "[0].name"),
    ([{"name": "a", "value": [CANARY]}], "[0].value"),
    ([{"name": "a", "value": {}}], "[0].value"),
    ([{"name": "a"}, {"name": "b"}, {"name": "a"}], "[2].name: stands there twice"),
    ([{"name": ""}], "[0].name"),
    ([{"name": "a\nb"}], "[0].name"),
    ([{"name": "x" * 256}], "[0].name"),
    ([{"name": "never-set", "value": _MASK}], "never-set is not set"),
    *(([{"name": name, "value": CANARY}], "/credentials") for name in ("CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD")),
]


@pytest.mark.parametrize(("value", "words"), BAD_VARIABLES)
async def test_variables_that_can_t_be_are_refused_and_the_old_ones_stay(edge: InProcess, value: Any, words: str) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/variables"
    before = (await send(edge, "PUT", path, [{"name": "kept", "value": "x"}, {"name": "unset"}])).json()["variables"]
    answer = await send(edge, "PUT", path, value)
    refused(answer, "INVALID_REQUEST", words)
    assert CANARY not in answer.body.decode()
    assert (await send(edge, "GET", path)).json() == before


async def test_the_mask_stands_for_nothing_where_a_variable_is_unset(edge: InProcess) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/variables"
    await send(edge, "PUT", path, [{"name": "unset", "value": None}])
    refused(await send(edge, "PUT", path, [{"name": "unset", "value": _MASK}]), "INVALID_REQUEST", "unset is not set")


BAD_CREDENTIALS: list[tuple[Any, str]] = [
    ({}, "array"),
    ([{"credential_type": CANARY, "value": "x"}], "[0].credential_type: must be one of CLIENT_ID"),
    ([{"credential_type": "USERNAME"}], "`value`"),
    ([{"credential_type": "USERNAME", "value": 7}], "[0].value"),
    ([{"credential_type": "USERNAME", "value": ""}], "[0].value: must not be empty"),
    ([{"credential_type": "USERNAME", "value": "a"}] * 2, "[1].credential_type: stands there twice"),
    ([{"credential_type": "CLIENT_SECRET", "value": _MASK}], "CLIENT_SECRET is not set"),
]


@pytest.mark.parametrize(("value", "words"), BAD_CREDENTIALS)
async def test_credentials_that_can_t_be_are_refused_and_the_old_ones_stay(edge: InProcess, value: Any, words: str) -> None:
    record = await made(edge)
    path = f"/{record['data_source_id']}/credentials"
    before = (await send(edge, "PUT", path, [{"credential_type": "API_KEY", "value": "x"}])).json()
    answer = await send(edge, "PUT", path, value)
    refused(answer, "INVALID_REQUEST", words)
    assert CANARY not in answer.body.decode()
    assert (await send(edge, "GET", path)).json() == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("objects?limit=0", "limit must be at least 1"),
        ("objects?limit=1001", "limit must be at most 1000"),
        ("objects?limit=many", "limit must be an integer"),
        ("objects?after=7", "after must be a UUID"),
        ("objects/7", "object_id must be a UUID"),
    ],
)
async def test_a_page_of_objects_that_can_t_be_is_refused(edge: InProcess, path: str, words: str) -> None:
    record = await made(edge)
    refused(await send(edge, "GET", f"/{record['data_source_id']}/{path}"), "INVALID_REQUEST", words)


async def test_an_object_that_is_not_there_is_not_found(edge: InProcess) -> None:
    record = await made(edge)
    answer = await send(edge, "GET", f"/{record['data_source_id']}/objects/{uuid.uuid4()}")
    assert answer.status == 404
    refused(answer, "DATA_OBJECT_NOT_FOUND")


async def test_what_has_no_handler_for_a_method_says_which_it_has(edge: InProcess) -> None:
    answer = await send(edge, "DELETE", "")
    refused(answer, "METHOD_NOT_ALLOWED")
    assert answer.status == 405


async def test_while_the_database_is_away_everybody_is_told_to_come_back(
    edge: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await made(edge)

    async def broken(*_: object, **__: object) -> None:
        raise TierBroken("the database can't be reached")

    for method in ("read", "revisions", "create", "replace", "remove"):
        monkeypatch.setattr(edge.edge.registry._store, method, broken)
    one = f"/{record['data_source_id']}"
    for method, path, value in (
        *((method, f"{one}{path}", value) for method, path, value in EVERY_ROUTE_OF_ONE),
        ("POST", "", body()),
        ("GET", "", None),
    ):
        answer = await send(edge, method, path, value)
        assert answer.status == 503, (method, path)
        refused(answer, "STORAGE_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_sender_who_leaves_half_way_leaves_nothing_behind(edge: InProcess) -> None:
    before = (await send(edge, "GET", "")).json()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"name": "half', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def answer(message: dict[str, Any]) -> None:
        sent.append(message)

    address: dict[str, Any] = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http", "root_path": ""}
    line: dict[str, Any] = {"method": "POST", "path": "/data-sources", "raw_path": b"/data-sources", "query_string": b""}
    await edge.app(
        {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "headers": [], **address, **line}, receive, answer
    )
    assert sent[0]["status"] == 400
    assert (await send(edge, "GET", "")).json() == before


async def test_the_page_shows_every_route_with_its_models_and_problems(edge: InProcess) -> None:
    page = (await edge.get("/openapi.json")).json()
    schemas = page["components"]["schemas"]
    shown = {
        (method.upper(), path.partition("{data_source_id}")[2]): operation
        for path, operations in page["paths"].items()
        if path.startswith("/data-sources/{")
        for method, operation in operations.items()
    }
    expected = {(method, path.replace(NOBODY, "{object_id}")) for method, path, _ in EVERY_ROUTE_OF_ONE}
    assert expected <= shown.keys()
    operations = [shown[each] for each in expected] + list(page["paths"]["/data-sources"].values())
    for operation in operations:
        assert {"400", "500", "503"} <= operation["responses"].keys()
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            kind = "application/json" if status < "300" else "application/problem+json"
            assert list(response["content"]) == [kind]
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(page)):
        assert name in schemas
    bodies = {
        operation["requestBody"]["content"]["application/json"]["schema"].get("$ref")
        for operation in operations
        if "requestBody" in operation
    }
    assert bodies >= {f"#/components/schemas/{name}" for name in ("NewDataSource", "DataSourceBody", "DataSourceTestParams")}


def test_the_page_names_the_credentials_that_there_are() -> None:
    assert set(source_models.CREDENTIAL_TYPES.__args__) == set(CREDENTIALS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "struct"),
    [
        (source_models.NewDataSource, source_models.SourceIn),
        (source_models.Variable, source_models.VariableIn),
        (source_models.Credential, source_models.CredentialIn),
    ],
)
def test_the_page_names_the_members_that_are_read(model: type[BaseModel], struct: Any) -> None:
    assert set(model.model_fields) == set(struct.__struct_fields__)
