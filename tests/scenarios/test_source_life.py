"""A data source from its creation to its archive, and a test of it: what is told of them holds no secret."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
import uuid
from base64 import b64encode
from typing import Any

import pytest

from broker_edge.settings import Settings
from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, json_reply, settings, table
from tests.upstreams import Received

SECRET = 'canary/+"&\\ é-7f31'
USER, PASSWORD = "canary-user-11", "canary-password-22"
MASK = "********"


async def send(edge: InProcess, method: str, path: str, value: Any = None) -> Answer:
    data = b"" if value is None else json.dumps(value).encode()
    answer = await edge.call(method, path, data, {"content-type": "application/json"})
    secretless(answer)
    return answer


def secretless(answer: Answer) -> None:
    text = answer.body.decode() + json.dumps(answer.headers)
    for secret in (SECRET, USER, PASSWORD):
        for form in (secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe=""), secret.encode().hex()):
            assert form not in text, text
        assert b64encode(secret.encode()).decode()[:-4] not in text


async def source(edge: InProcess, url: str, /, **members: Any) -> str:
    """A draft's path; `members` go into `source`, but those that stand beside it."""
    beside = {name: members.pop(name) for name in ("caching", "cost_per_call", "billable", "budget") if name in members}
    given = {"url": url, "response_type": "JSON", "timeout": 20, **members}
    caching = {"enabled": True, "ttl": 3600}
    made = await send(edge, "POST", "/data-sources", {"name": f"s-{uuid.uuid4()}", "source": given, "caching": caching, **beside})
    assert made.status == 201, made.body
    return f"/data-sources/{made.json()['data_source_id']}"


async def fetched(edge: InProcess, path: str, **params: Any) -> Answer:
    name = (await send(edge, "GET", path)).json()["name"]
    body = {"data_source_name": name, "configured_params": params, "run_id": str(uuid.uuid4())}
    return await send(edge, "POST", "/internal/data-broker", body)


async def test_a_source_lives_from_draft_to_archive(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply({"score": 123456789012345678901234567890})
    path = await source(edge, f"{bureau.url}/score/{{{{ tax_id }}}}", headers={"X-Key": "{{ env.key }}"})
    assert (await fetched(edge, path, tax_id="1")).json()["error"]["code"] == "MISSING_VARIABLE"
    assert (await send(edge, "PUT", f"{path}/variables", [{"name": "key", "value": PASSWORD}])).status == 200
    assert (await send(edge, "POST", f"{path}/publish")).json()["status"] == "PUBLISHED"
    answer = await fetched(edge, path, tax_id="1")
    assert (answer.status, answer.json()["origin"]) == (200, "REQUEST")
    assert (await fetched(edge, path, tax_id="1")).json()["origin"] == "CACHE"
    assert [call.get("x-key") for call in bureau.calls] == [PASSWORD]

    record = (await send(edge, "GET", path)).json()
    other = {**record, "source": {**record["source"], "url": bureau.url}}
    assert (await send(edge, "PUT", path, other)).json()["error"]["code"] == "INVALID_DATA_SOURCE"
    changed = await send(edge, "PUT", path, {**record, "caching": {"enabled": True, "ttl": 7200}})
    assert changed.json()["generation"] > record["generation"]
    assert (await fetched(edge, path, tax_id="1")).json()["origin"] == "REQUEST"

    assert (await send(edge, "DELETE", path)).status == 200
    assert (await fetched(edge, path, tax_id="1")).json()["error"]["code"] == "DATA_SOURCE_NOT_FOUND"
    objects = (await send(edge, "GET", f"{path}/objects")).json()
    assert len(objects) == 2
    assert answer.json()["data_object_id"] == objects[1]["data_object_id"]
    one = await send(edge, "GET", f"{path}/objects/{objects[1]['data_object_id']}")
    assert one.json() == {**objects[1], "value": {"score": 123456789012345678901234567890}}
    assert len(bureau.calls) == 2


async def test_objects_come_in_pages_that_lead_to_each_other(edge: InProcess, bureau: Bureau) -> None:
    path = await source(edge, f"{bureau.url}/{{{{ n }}}}")
    made = [(await fetched(edge, path, n=n)).json()["data_object_id"] for n in range(5)]
    seen: list[str] = []
    following: str | None = f"{path}/objects?limit=2"
    while following:
        answer = await send(edge, "GET", following)
        assert len(answer.json()) <= 2
        seen += [each["data_object_id"] for each in answer.json()]
        link = answer.headers.get("link")
        assert link is None or link.endswith('; rel="next"')
        following = link.partition(">")[0].removeprefix("<") if link else None
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("response_type", "content_type", "body", "value"),
    [
        ("JSON", "application/json", b'{"n": 1.50, "big": 123456789012345678901}', '{"n": 1.50, "big": 123456789012345678901}'),
        ("CSV", "text/csv", b"a,b\n1,2\n", '[{"a":"1","b":"2"}]'),
        ("XML", "application/xml", b"<r><a>1</a></r>", '{"a":"1"}'),
        ("PLAIN_TEXT", "text/plain; charset=latin-1", "caf\u00e9".encode("latin-1"), '"caf\u00e9"'),
    ],
)
async def test_an_object_s_value_is_what_its_fetch_gave(
    edge: InProcess, bureau: Bureau, response_type: str, content_type: str, body: bytes, value: str
) -> None:
    bureau._answer = lambda _: http_reply(body, 200, f"Content-Type: {content_type}")
    path = await source(edge, bureau.url, response_type=response_type)
    fetch = await fetched(edge, path)
    one = await send(edge, "GET", f"{path}/objects/{fetch.json()['data_object_id']}")
    assert f'"value":{value}' in one.body.decode()
    assert f'"value":{value}' in fetch.body.decode()


def target(got: Received) -> str:
    return got.line.split(" ")[1]


def untraced(got: Received) -> list[tuple[str, str]]:
    return sorted(header for header in got.headers if header[0].lower() != "traceparent")


def code(row: Any) -> str | None:
    """The error of an audit row; SQLite gives JSON as text."""
    error = json.loads(row.error) if isinstance(row.error, str) else row.error
    return error and str(error["code"])


def echo(got: Received) -> bytes:
    """Everything that it was sent, in several disguises: in headers and in the body."""
    headers = [f"X-Echo-{name}: {value}" for name, value in got.headers if value.isascii() and name != "content-length"]
    told = {
        "target": target(got),
        "decoded": urllib.parse.unquote(target(got)),
        "headers": dict(got.headers),
        "body": got.body.decode(),
        "base64": b64encode(b"x" + got.body).decode(),
        "hex": got.body.hex(),
        urllib.parse.unquote(target(got)): 1,
    }
    return json_reply(told, 200, *headers)


async def test_a_test_tells_the_whole_call_without_its_secrets(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = echo
    path = await source(
        edge,
        f"{bureau.url}/v1/{{{{ tax_id }}}}/{{{{ key }}}}",
        method="POST",
        params={"q": "{{ env.key }}", "n": "{{ env.number }}"},
        headers={"X-Key": "Key {{ env.ascii }}"},
        body={"a": "{{ env.key }}", "b": [{"env": "number"}]},
        auth={"method": "basic"},
    )
    variables = {"key": SECRET, "number": 98765432, "ascii": "canary-ascii-33"}
    await send(edge, "PUT", f"{path}/variables", [{"name": name, "value": value} for name, value in variables.items()])
    credentials = [{"credential_type": "USERNAME", "value": USER}, {"credential_type": "PASSWORD", "value": PASSWORD}]
    await send(edge, "PUT", f"{path}/credentials", credentials)
    run_id = str(uuid.uuid4())
    answer = await send(edge, "POST", f"{path}/test", {"params": {"tax_id": "01234567890"}, "run_id": run_id})
    assert answer.status == 200, answer.body
    report = answer.json()
    assert report.keys() == {
        *("test_id", "request_url", "request_headers", "status_code", "response_time_ms"),
        *("response_body", "response_headers", "error", "error_code"),
    }
    uuid.UUID(report["test_id"])
    assert (report["status_code"], report["error"], report["error_code"]) == (200, None, None)
    assert report["request_url"] == f"{bureau.url}/v1/01234567890/{MASK}?q={MASK}&n={MASK}"
    assert report["request_headers"]["X-Key"] == f"Key {MASK}"
    assert {name.lower(): value for name, value in report["request_headers"].items()}["authorization"] == f"Basic {MASK}"
    assert report["response_body"]["target"] == f"/v1/01234567890/{MASK}?q={MASK}&n={MASK}"
    assert report["response_headers"]["content-type"] == "application/json"
    assert report["response_time_ms"] > 0
    for secret in ("98765432", "canary-ascii-33", b64encode(f"{USER}:{PASSWORD}".encode()).decode()):
        assert secret not in answer.body.decode()
    # What was sent is what a fetch sends.
    bureau._answer = lambda _: json_reply(1)
    await fetched(edge, path, tax_id="01234567890")
    trial, live = bureau.calls
    assert (trial.line, trial.body) == (live.line, live.body)
    assert untraced(trial) == untraced(live)
    rows = [row for row in await edge.rows() if row.outcome == "test"]
    assert [(str(row.run_id), row.status_code, row.data_object_id, row.error) for row in rows] == [(run_id, 200, None, None)]


async def test_a_test_reads_no_cache_fills_none_and_keeps_no_object(edge: InProcess, bureau: Bureau) -> None:
    path = await source(edge, bureau.url)
    for _ in range(2):
        assert (await send(edge, "POST", f"{path}/test", {})).json()["response_body"] == {"score": 700}
    assert len(bureau.calls) == 2
    assert await table(edge.edge.engine, "data_object") == []
    assert (await fetched(edge, path)).json()["origin"] == "REQUEST"
    await send(edge, "POST", f"{path}/test", {})
    assert len(bureau.calls) == 4
    assert len(await table(edge.edge.engine, "data_object")) == 1


@pytest.mark.parametrize(("params", "env"), [("params", "env_vars"), ("configured_params", "env_variables")])
async def test_a_test_may_bring_variables_of_its_own(edge: InProcess, bureau: Bureau, params: str, env: str) -> None:
    bureau._answer = echo
    path = await source(edge, f"{bureau.url}/{{{{ a }}}}", headers={"X-Key": "{{ env.key }}", "X-Other": "{{ env.other }}"})
    await send(edge, "PUT", f"{path}/variables", [{"name": "key", "value": USER}, {"name": "other", "value": "stored-other"}])
    answer = await send(edge, "POST", f"{path}/test", {params: {"a": "b"}, env: {"key": PASSWORD}})
    assert answer.status == 200, answer.body
    sent = bureau.calls[0]
    assert (target(sent), sent.get("x-key"), sent.get("x-other")) == ("/b", PASSWORD, "stored-other")
    assert "stored-other" not in answer.body.decode()
    assert (await send(edge, "GET", f"{path}/variables")).json()[0]["version"] == 1


async def test_a_test_of_what_can_t_be_asked_is_refused(edge: InProcess, bureau: Bureau) -> None:
    path = await source(edge, f"{bureau.url}/{{{{ a }}}}", headers={"X-Key": "{{ env.key }}"})

    async def refusal(body: Any) -> tuple[int, str, str]:
        answer = await send(edge, "POST", f"{path}/test", body)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status, answer.json()["error"]["code"], answer.json()["detail"]

    status, code, detail = await refusal({})
    assert (status, code) == (400, "MISSING_VARIABLE")
    assert "a (in source.url)" in detail
    assert "env.key (in source.headers.X-Key)" in detail
    status, code, detail = await refusal({"params": {"a": ""}, "env_vars": {"key": "k"}})
    assert (status, code) == (400, "INVALID_VALUE")
    status, code, detail = await refusal({"params": {"a": "b"}, "env_vars": {"key": f"{PASSWORD}\n"}})
    assert (status, code) == (400, "INVALID_VALUE")
    for wrong, member in (
        ([], "object"),
        ({"params": []}, "params"),
        ({"env_vars": "x"}, "env_vars"),
        ({"run_id": "x"}, "run_id"),
        ({"params": {}, "configured_params": {}}, "configured_params"),
        ({"env_vars": {}, "env_variables": {}}, "env_variables"),
    ):
        status, code, detail = await refusal(wrong)
        assert (status, code) == (400, "INVALID_REQUEST")
        assert member in detail
    assert bureau.calls == []


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_a_failing_upstream_is_reported_with_its_body(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = lambda got: json_reply({"detail": f"no {got.get('x-key')}"}, status, "Retry-After: 3")
    path = await source(edge, bureau.url, headers={"X-Key": "{{ env.key }}"}, retry={"max_retries": 3, "backoff_factor": 0})
    await send(edge, "PUT", f"{path}/variables", [{"name": "key", "value": USER}])
    answer = await send(edge, "POST", f"{path}/test", {})
    report = answer.json()
    assert answer.status == 200
    assert (report["status_code"], report["error_code"]) == (status, "UPSTREAM_STATUS")
    assert str(status) in report["error"]
    assert report["response_body"] == {"detail": f"no {MASK}"}
    assert report["response_headers"]["retry-after"] == "3"
    assert len(bureau.calls) == 1
    assert [(row.outcome, code(row)) for row in await edge.rows()] == [("test", "UPSTREAM_STATUS")]


@pytest.mark.parametrize(
    ("body", "shown", "code"),
    [
        (b"no JSON", "no JSON", "PARSE_ERROR"),
        (b"\xff\xfe\x00\x01\x02", "<binary, 5 bytes>", "PARSE_ERROR"),
        (b"", None, None),
        (b"[1, 2.50]", [1, 2.5], None),
    ],
)
async def test_a_body_that_is_not_what_it_should_be_is_shown_as_it_is(
    edge: InProcess, bureau: Bureau, body: bytes, shown: Any, code: str | None
) -> None:
    bureau._answer = lambda _: http_reply(body, 200, "Content-Type: application/json; charset=utf-8")
    report = (await send(edge, "POST", f"{await source(edge, bureau.url)}/test", {})).json()
    assert (report["status_code"], report["response_body"], report["error_code"]) == (200, shown, code)


async def test_a_value_that_is_too_large_to_be_searched_is_not_shown(edge: InProcess, bureau: Bureau) -> None:
    body = json.dumps(["x" * 2**20]).encode()
    bureau._answer = lambda _: http_reply(body, 200, "Content-Type: application/json")
    report = (await send(edge, "POST", f"{await source(edge, bureau.url)}/test", {})).json()
    assert (report["status_code"], report["error"]) == (200, None)
    assert report["response_body"] == f"<{len(body)} bytes, {2**20} at most are shown>"


async def test_an_upstream_that_is_not_there_or_too_slow_is_reported(edge: InProcess, bureau: Bureau) -> None:
    bureau.gate.clear()
    path = await source(edge, f"{bureau.url}/{{{{ env.key }}}}", timeout=0.2)
    await send(edge, "PUT", f"{path}/variables", [{"name": "key", "value": USER}])
    report = (await send(edge, "POST", f"{path}/test", {})).json()
    assert (report["status_code"], report["error_code"], report["response_body"]) == (None, "TIMEOUT", None)
    assert report["request_url"] == f"{bureau.url}/{MASK}"


async def test_a_test_obeys_the_address_guard(backends: Settings, bureau: Bureau) -> None:
    async with in_process(settings(backends.data_dir)) as edge:
        answer = await send(edge, "POST", f"{await source(edge, bureau.url)}/test", {})
        assert (answer.status, answer.json()["error"]["code"]) == (403, "TARGET_DENIED")
        assert [row.outcome for row in await edge.rows()] == ["test"]
    assert bureau.calls == []


async def test_a_test_spends_of_the_budget_and_no_more(edge: InProcess, bureau: Bureau) -> None:
    path = await source(edge, bureau.url, cost_per_call={"amount": "1.50", "currency": "EUR"}, budget={"calls": 2})
    statuses = [(await send(edge, "POST", f"{path}/test", {})).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert len(bureau.calls) == 2
    rows = sorted(await edge.rows(), key=lambda row: row.created_at)
    assert [(row.outcome, row.calls or 0, row.cost_micros or 0) for row in rows] == [
        ("test", 1, 1_500_000),
        ("test", 1, 1_500_000),
        ("test", 0, 0),
    ]


async def test_a_test_that_is_cut_short_is_written_down(backends: Settings, bureau: Bureau) -> None:
    bureau.gate.clear()
    async with in_process(backends) as edge:
        path = await source(edge, bureau.url)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(edge.call("POST", f"{path}/test", b"{}", {}))
            await bureau.arrived.wait()
            running.cancel()
        assert [(row.outcome, code(row)) for row in await edge.rows()] == [("test", "OVERLOADED")]
