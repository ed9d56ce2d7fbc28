"""Requests that can't be served: each gets its documented code, names the member, is written down, and calls nobody."""

from __future__ import annotations

import copy
import json
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from broker_edge.errors import CODES
from tests.edges import Answer, Bureau, InProcess, in_process, request, settings, spec

_LIMIT = 300_000  # bytes of a request that this edge takes: over the deepest of the bodies below
_DROP = object()
_SOURCE = "data_source_spec.source"
_DEEP = "[" * 100_000 + "]" * 100_000
_DIGITS = "9" * 400
_BEARER = {"method": "bearer", "grant_type": "client_credentials", "token_url": "https://bureau.test/token"}
_MEMBERS = {"data_object_id", "origin", "key", "value", "start_time", "end_time", "duration", "error"}
Change = Callable[[dict[str, Any]], "dict[str, Any] | bytes"]


@dataclass(frozen=True)
class Stand:
    """An edge and the upstream that no malformed request may reach; shared, as none of them changes anything."""

    edge: InProcess
    bureau: Bureau

    def whole(self) -> dict[str, Any]:
        source = spec(f"{self.bureau.url}/score/{{{{ id }}}}", method="POST", headers={"X-Key": "{{ env.key }}"}, body={"a": 1})
        return request(source, {"id": "7"}, env_variables={"key": "k"})


@pytest.fixture(scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with Bureau().running() as bureau:
        chosen = settings(tmp_path_factory.mktemp("edge"), bureau.port, max_request_bytes=_LIMIT)
        async with in_process(chosen) as edge:
            yield Stand(edge, bureau)


@dataclass(frozen=True)
class Case:
    name: str
    change: Change
    code: str
    named: str = ""


def raw(text: str) -> str:
    """Stands for JSON text that Python's encoder would not write."""
    return f"@@{text}@@"


def encoded(body: dict[str, Any]) -> bytes:
    return re.sub(rb'"@@(.*?)@@"', rb"\1", json.dumps(body).encode())


def put(path: str, value: Any) -> Change:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        *way, last = path.split(".")
        place = body
        for name in way:
            place = place[name]
        if value is _DROP:
            del place[last]
        else:
            place[last] = value
        return body

    return change


def text(data: bytes) -> Change:
    return lambda _: data


def spliced(old: bytes, new: bytes) -> Change:
    return lambda body: encoded(body).replace(old, new, 1)


def refused(path: str, value: Any, code: str = "INVALID_DATA_SOURCE", named: str | None = None) -> Case:
    shown = "absent" if value is _DROP else str(value)
    return Case(f"{path}={shown[:40]}", put(path, value), code, path if named is None else named)


def in_source(member: str, *values: Any, code: str = "INVALID_DATA_SOURCE", named: str | None = None) -> list[Case]:
    return [refused(f"{_SOURCE}.{member}", value, code, named) for value in values]


def in_spec(member: str, *values: Any) -> list[Case]:
    return [refused(f"data_source_spec.{member}", value) for value in values]


def in_request(member: str, *values: Any) -> list[Case]:
    return [refused(member, value, "INVALID_REQUEST") for value in values]


WHOLE = [
    Case("empty", text(b""), "INVALID_REQUEST"),
    Case("blank", text(b"  \n"), "INVALID_REQUEST"),
    Case("no JSON", text(b"hello"), "INVALID_REQUEST"),
    Case("XML", text(b"<a/>"), "INVALID_REQUEST"),
    Case("zero byte", text(b"\x00"), "INVALID_REQUEST"),
    Case("array", text(b"[]"), "INVALID_REQUEST"),
    Case("text", text(b'"a"'), "INVALID_REQUEST"),
    Case("number", text(b"1"), "INVALID_REQUEST"),
    Case("null", text(b"null"), "INVALID_REQUEST"),
    Case("no members", text(b"{}"), "INVALID_REQUEST", "data_source_spec"),
    Case("truncated", lambda body: encoded(body)[:-20], "INVALID_REQUEST"),
    Case("something behind it", lambda body: encoded(body) + b" x", "INVALID_REQUEST"),
    Case("two documents", lambda body: encoded(body) * 2, "INVALID_REQUEST"),
    Case("UTF-16", lambda body: encoded(body).decode().encode("utf-16"), "INVALID_REQUEST"),
    Case("comment", spliced(b"{", b"{/* a */"), "INVALID_REQUEST"),
    Case("single quotes", lambda body: encoded(body).replace(b'"', b"'"), "INVALID_REQUEST"),
    Case("no UTF-8 in env_variables", spliced(b'"k"', b'"\xff"'), "INVALID_REQUEST"),
    Case("no UTF-8 in the spec", spliced(b'"sample"', b'"\xff"'), "INVALID_DATA_SOURCE", "data_source_spec"),
    Case("deep body", text(_DEEP.encode()), "INVALID_REQUEST"),
    Case("deep unknown member", put("more", raw(_DEEP)), "INVALID_REQUEST"),
    Case("deep spec", put("data_source_spec", raw(_DEEP)), "INVALID_REQUEST"),
    Case("deep text body", put(f"{_SOURCE}.body", raw(f'{{"a":{_DEEP}}}')), "INVALID_REQUEST"),
    Case("half a surrogate pair", put("configured_params.id", "\ud800"), "INVALID_REQUEST"),
    Case("NaN", put("max_age", raw("NaN")), "INVALID_REQUEST"),
    Case("Infinity", put("max_stale", raw("-Infinity")), "INVALID_REQUEST"),
    Case("NaN in the spec", put(f"{_SOURCE}.timeout", raw("NaN")), "INVALID_REQUEST"),
    Case("hexadecimal", put("data_source_spec.caching.ttl", raw("0x10")), "INVALID_REQUEST"),
    Case("over the bound", put("more", "x" * _LIMIT), "PAYLOAD_TOO_LARGE", str(_LIMIT)),
]
REQUEST = [
    *in_request("run_id", _DROP, None, "", "7", 7, "660f9511-f39c-52e5-b827-55776655111", "z" * 36, {}, raw(_DIGITS)),
    *in_request("env_variables", [], "a", 1, True, raw(_DEEP)),
    refused("env_variables.key", raw("1e400"), "INVALID_REQUEST", "env_variables"),
    *in_request("configured_params", [], "a", 0, raw(_DEEP), {"a": {"b": raw("-1e999")}}),
    *in_request("mode", "LIVE", "", 1, [], "offline"),
    *in_request("max_age", -1, -0.001, "1", True, raw("1e400"), raw(_DIGITS), [1]),
    *in_request("max_stale", -1, "1", False, raw("-1e400"), raw(f"-{_DIGITS}"), {}),
    *in_request("credential_refs", [], "a", {"key": "a"}, {"key": {"var_name": "key"}}, {"key": {"data_source_id": "7"}}),
    *in_request("project_id", "", "7", 7, {}),
    *in_request("data_source_spec", _DROP),
]
SPEC = [
    *(refused("data_source_spec", value) for value in (None, [], "a", 1)),
    *in_spec("data_source_id", _DROP, None, "", "bureau", 1, "550e8400-e29b-41d4-a716-44665544000g"),
    *in_spec("name", _DROP, None, 1, [], "", "a\nb"),
    *in_spec("source", _DROP, None, [], "http://a.example"),
    *in_spec("caching", [], "on", 1),
    *in_spec("caching.enabled", 1, "true", "yes"),
    *in_spec("caching.ttl", -1, "60", True, [], raw("1e400"), raw(_DIGITS), 4e8, {"days": -1}, {"days": "1"}),
    *in_spec("caching.vary_env", "key", [1], {}),
]
SOURCE = [
    *in_source("url", _DROP, None, 1, [], "", "/score", "//a.example/x", "a.example/x", "ftp://a.example", "file:///etc/hosts"),
    *in_source("url", "http://", "http:///x", "http://user:pw@a.example/", "http://a.example:99999/", "http://a.example:0/"),
    *in_source("url", "http://a.example:x/", "http://a b.example/", "http://a.example/\r\nX: 1", "http://a.example/\u0000"),
    *in_source(
        "url", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://[::1/", "http://[zz]/", "http://a..example/"
    ),
    *in_source("url", "javascript:alert(1)", "http://" + "a" * 300 + ".example/", "http://a.example\\@b.example/", "x" * 70_000),
    *in_source("method", 1, [], "", "get", "TRACE", "CONNECT", "OPTIONS", "GET\r\nX: 1"),
    *in_source("response_type", 1, "", "json", "YAML", "HTML", ["JSON"]),
    *in_source("timeout", 0, -1, 300.1, "30", True, [], raw("1e400"), raw(_DIGITS)),
    *in_source("headers", [], "a", {"": "a"}, {"a b": "c"}, {"a\r\nb": "c"}, {"a:": "b"}, {"\u00e9": "b"}),
    *in_source("headers", {"a": "b\r\nc: d"}, {"a": "\u0000"}, {"a": "\u00e9"}, {"a": []}, {"a": "1", "A": "2"}),
    *in_source("headers", {"Host": "a"}, {"content-length": "1"}, {"Transfer-Encoding": "chunked"}, {"Connection": "close"}),
    *in_source("headers", {"Proxy-Authorization": "a"}, {"Upgrade": "h2c"}, {"Expect": "100-continue"}, {"TE": "trailers"}),
    *in_source("params", [], "a", {"a": {"b": 1}}, {"a": [[1]]}),
    *in_source("body", 1, True),
    refused(f"{_SOURCE}.body", json.loads("[" * 200 + "]" * 200)),
    *in_source("retry", [], 3, "no"),
    *(
        refused(_SOURCE + ".retry", {name: value}, named=f"{_SOURCE}.retry.{name}")
        for name, value in [
            *(("max_retries", value) for value in (-1, 11, 1.5, "3", raw(_DIGITS), raw("1e400"), [])),
            *(("backoff_factor", value) for value in (-0.1, 61, "1", raw("1e400"), True)),
            *(("status_forcelist", value) for value in ([99], [600], ["500"], 500, [500.5], [raw(_DIGITS)])),
            *(("attempt_timeout", value) for value in (0, -1, 301, "1")),
        ]
    ),
    *in_source("auth", {}, "basic", [], {"method": None}, {"method": "digest"}, {"method": "BASIC"}, {"method": 1}),
    *in_source("auth", {"method": "basic"}, _BEARER, code="MISSING_VARIABLE", named="auth"),
    *in_source("auth", *({**_BEARER, "grant_type": value} for value in (None, "", "implicit", "authorization_code", 1))),
    *in_source("auth", *({**_BEARER, "token_url": value} for value in (None, "", "/token", "ftp://a/b", 1, "https://{{ a }}/b"))),
    *in_source("auth", *({**_BEARER, "client_auth": value} for value in ("jwt", 1))),
    *in_source("auth", *({"method": "api_key", "name": value} for value in (None, "", "a b", "a\r\nb", 1))),
    *in_source("auth", {"method": "api_key", "name": "x", "in": "cookie"}, {"method": "mtls", "ca_bundle": "not PEM"}),
    *in_source("idempotency_key_header", "", "a b", "Host", "Content-Length", 1, "a\nb"),
]
MONEY = [
    *in_spec("cost_per_call", "", "much", -1, "-0.1", "0.1234567", 1e-7, raw("1e400"), "NaN", "Infinity", 1e12, True, [], {}),
    *in_spec("cost_per_call", "1e999999", "-1e999999", "1e-999999", "1e99999999999999999999", "sNaN", {"amount": "1e999999"}),
    *in_spec("cost_per_call", {"amount": "x"}, {"amount": 1, "currency": "euro"}, {"amount": 1, "currency": 1}, {"amount": None}),
    *in_spec("billable", "yes", 1, []),
    *in_spec(
        "budget", 5, {"amount": 5}, {}, {"calls": -1}, {"calls": 1.5}, {"calls": "9"}, {"calls": 1, "per": "week"}, [], True
    ),
    *in_spec("caching.stale_while_revalidate", -1, "1", True, raw("1e400"), raw(_DIGITS)),
    *in_spec("caching.stale_if_error", -1, "1", True, raw("1e400")),
    *in_spec(
        "caching.negative_ttl", [], 60, {"200": 60}, {"404": -1}, {"404": "60"}, {"4xx": 1}, {"": 1}, {"600": 1}, {"404": None}
    ),
]
_REJECTED = [
    "{% for a in b %}x{% endfor %}",
    "{% if a %}b{% endif %}",
    "{# a #}",
    "{{ a() }}",
    "{{ a + 1 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ a.b.c }}",
    "{{ a.__class__ }}",
    "{{ a['b'] }}",
    "{{ a | upper }}",
    "{{ a if b else c }}",
    "{{ [1] }}",
    "{{ 1 }}",
    "{{ a ",
    "{{ }}",
    "{{ a }} {% raw %}",
    "{{ CLIENT_SECRET }}",
    "{{ env.PASSWORD }}",
    "{{ " + "(" * 5_000 + "a" + ")" * 5_000 + " }}",
]
TEMPLATES = [
    *in_source("headers.X-Key", *_REJECTED, code="TEMPLATE_REJECTED"),
    *(
        refused(f"{_SOURCE}.{member}", value, "TEMPLATE_REJECTED")
        for member, value in [
            ("url", "http://a.example/{{ a.b.c }}"),
            ("url", "http://a.example/{% raw %}"),
            ("params", {"a": "{{ b() }}"}),
            ("params", {"{{ a }}": "b"}),
            ("body", {"a": {"b": "{{ c | d }}"}}),
            ("body", {"{{ a }}": 1}),
            ("body", "{{ a.b.c }}"),
            ("body", {"xml": "<a>{% b %}</a>"}),
            ("body", {"a": {"env": "CLIENT_ID"}}),
        ]
    ),
    Case("too many holes", put(f"{_SOURCE}.body", "{{ a }}" * 2_001), "INVALID_DATA_SOURCE", "data_source_spec"),
]
_PARAM = "configured_params.id"
VALUES = [
    refused("configured_params", {}, "MISSING_VARIABLE", "id"),
    refused("configured_params", None, "MISSING_VARIABLE", "id"),
    refused("env_variables", _DROP, "MISSING_VARIABLE", "env.key"),
    refused("env_variables", None, "MISSING_VARIABLE", f"{_SOURCE}.headers.X-Key"),
    Case("reserved variable", put(f"{_SOURCE}.headers.X-Key", "{{ env.USERNAME }}"), "TEMPLATE_REJECTED", "USERNAME"),
    *(
        refused(path, value, "INVALID_VALUE", named)
        for path, named, values in [
            ("env_variables.key", "headers.X-Key", ["a\r\nb: c", "\u0000", "\u00e9", {}, []]),
            (_PARAM, "source.url", [None, {}, [], "..", ".", "", "x" * 70_000, raw("9" * 4_200)]),
        ]
        for value in values
    ),
]
CASES = [*WHOLE, *REQUEST, *SPEC, *SOURCE, *MONEY, *TEMPLATES, *VALUES]


async def refusal(stand: Stand, body: bytes) -> tuple[Answer, list[Any]]:
    """The answer, and the audit rows that it got."""
    trace_id = secrets.token_hex(16)
    answer = await stand.edge.post(body, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-00"})
    return answer, [row for row in await stand.edge.rows() if row.trace_id == trace_id]


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{number}-{case.name[:60]!a}") for number, case in enumerate(CASES)])
async def test_a_malformed_request_gets_its_code_and_a_row_and_calls_nobody(stand: Stand, case: Case) -> None:
    changed = case.change(copy.deepcopy(stand.whole()))
    data = changed if isinstance(changed, bytes) else encoded(changed)
    calls = len(stand.bureau.calls)
    answer, rows = await refusal(stand, data)

    problem = answer.json()
    kind = CODES[case.code]
    assert (answer.status, problem["error"]["code"]) == (kind.status, case.code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem.keys() >= _MEMBERS | {"type", "title", "status", "detail"}
    assert problem["status"] == answer.status
    assert problem["detail"] == problem["error"]["message"]
    assert (problem["error"]["source"], problem["error"]["retryable"]) == ("caller", False)
    assert all(problem[name] is None for name in _MEMBERS - {"error"})
    assert case.named in problem["detail"]
    assert [(row.status_code, row.outcome, row.data_origin) for row in rows] == [(kind.status, case.code.lower(), None)]
    assert len(stand.bureau.calls) == calls


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("member", ["mode", "max_age", "env_variables"])
async def test_the_row_of_a_refused_member_names_the_run_all_the_same(stand: Stand, member: str) -> None:
    body = stand.whole()
    body[member] = "wrong"
    _, rows = await refusal(stand, encoded(body))
    assert [uuid.UUID(str(row.run_id)) for row in rows] == [uuid.UUID(body["run_id"])]


@pytest.mark.parametrize("path", ["", "data_source_spec", _SOURCE, f"{_SOURCE}.retry", "data_source_spec.caching"])
async def test_unknown_members_are_ignored_at_every_level(stand: Stand, path: str) -> None:
    body = stand.whole()
    put(f"{_SOURCE}.retry", {"max_retries": 1})(body)
    put(f"{path}.unheard_of".removeprefix("."), {"deep": [1, None]})(body)
    assert (await stand.edge.post(body)).status == 200


async def test_null_stands_for_the_default_of_every_optional_member(stand: Stand) -> None:
    body = stand.whole()
    source = body["data_source_spec"]["source"]
    source |= {"timeout": None, "retry": {"max_retries": 1, "backoff_factor": None, "status_forcelist": None}, "auth": None}
    source |= {"params": None, "body": None, "headers": None, "method": None}
    body["data_source_spec"]["caching"] = {"enabled": True, "ttl": None, "vary_env": None}
    body |= dict.fromkeys(("env_variables", "mode", "max_age", "max_stale", "credential_refs"))
    answer = await stand.edge.post(body)
    assert (answer.status, answer.json()["value"]) == (200, {"score": 700})
    assert stand.bureau.calls[-1].line == "GET /score/7 HTTP/1.1"


async def test_a_whole_record_of_an_existing_caller_is_taken(stand: Stand) -> None:
    body = stand.whole()
    body["data_source_spec"] |= {
        "project_id": str(uuid.uuid4()),
        "archived": False,
        "created_at": "2025-01-01T00:00:00Z",
        "last_updated_at": None,
        "variables": ["id"],
        "description": None,
        "metadata": {"owner": "risk"},
        "caching": {"enabled": True, "ttl": {"days": None, "hours": 1, "minutes": None, "seconds": 0}},
    }
    body["env_variables"] |= {"CLIENT_ID": "a", "CLIENT_SECRET": "b", "USERNAME": "c", "PASSWORD": "d"}
    assert (await stand.edge.post(body)).status == 200


@pytest.mark.parametrize("member", ["retry", "caching"])
async def test_an_optional_object_may_be_null(stand: Stand, member: str) -> None:
    body = stand.whole()
    place = body["data_source_spec"]
    (place["source"] if member == "retry" else place)[member] = None
    assert (await stand.edge.post(body)).status == 200


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/fetch-data/x", "/v2/fetch-data", "/favicon.ico"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_a_problem_too(stand: Stand, method: str, path: str) -> None:
    answer = await stand.edge.call(method, path, b"", None)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_on_the_fetch_path_is_told_which_one_is_allowed(stand: Stand, method: str) -> None:
    answer = await stand.edge.call(method, "/v1/fetch-data", b"", None)
    assert (answer.status, answer.headers["content-type"], answer.headers["allow"]) == (405, "application/problem+json", "POST")
    assert answer.json()["error"]["code"] == "METHOD_NOT_ALLOWED"
