"""Specs as callers send them: defaults, bounds, refusals by name, fingerprints."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge.core.source import MAX_TTL, CachePolicy, RetryPolicy, parse_source
from broker_edge.errors import CallerError
from tests.core.specs import SOURCE_ID, refused_spec, source_of, spec


def test_the_least_spec_has_the_documented_defaults() -> None:
    source = parse_source(json.dumps({"data_source_id": SOURCE_ID, "name": "n", "source": {"url": "http://a.example"}}).encode())
    assert source.data_source_id == UUID(SOURCE_ID)
    assert (source.request.method, source.request.response_type, source.timeout) == ("GET", "PLAIN_TEXT", 30.0)
    assert source.retry == RetryPolicy(0, 0.5, frozenset({500, 502, 503, 504}), None)
    assert source.caching == CachePolicy(enabled=False, ttl=None, vary_env=())


def test_null_means_the_default_at_every_level_and_unknown_members_are_ignored() -> None:
    record = spec(
        method=None,
        headers=None,
        params=None,
        body=None,
        timeout=None,
        retry={"max_retries": 1, "backoff_factor": None, "status_forcelist": None, "x": 1},
        response_type=None,
        auth=None,
        x={"deep": [1]},
        caching={"enabled": None, "ttl": None, "vary_env": None, "x": 1},
    )
    source = parse_source(json.dumps(record | {"archived": False, "created_at": None}).encode())
    assert source.retry == RetryPolicy(max_retries=1)
    assert source.timeout == 30.0
    assert source.request == source_of().request


def test_retry_given_in_full_is_kept() -> None:
    retry = {"max_retries": 3, "backoff_factor": 2, "status_forcelist": [429], "attempt_timeout": 1.5}
    assert source_of(retry=retry).retry == RetryPolicy(3, 2.0, frozenset({429}), 1.5)
    assert source_of(retry={"status_forcelist": []}).retry.status_forcelist == frozenset()


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (3600, 3600.0),
        (0.5, 0.5),
        (0, 0.0),
        (None, None),
        (MAX_TTL, MAX_TTL),
        ({"days": 1, "hours": 1, "minutes": None, "seconds": 0.5}, 90_000.5),
        ({"days": 3650}, 315_360_000.0),
        ({}, 0.0),
    ],
)
def test_a_ttl_is_seconds_or_a_duration_or_for_ever(ttl: Any, seconds: float | None) -> None:
    assert source_of(caching={"enabled": True, "ttl": ttl}).caching.ttl == seconds


@pytest.mark.parametrize(
    ("caching", "reusable"),
    [({"enabled": True}, True), ({"enabled": True, "ttl": 5}, True), ({"enabled": True, "ttl": 0}, False), ({"ttl": 5}, False)],
)
def test_an_answer_is_reusable_when_caching_is_on_and_the_ttl_is_not_zero(caching: dict[str, Any], reusable: bool) -> None:
    assert source_of(caching=caching).caching.reusable is reusable


def test_vary_env_is_a_sorted_set_of_names() -> None:
    assert source_of(caching={"vary_env": ["b", "a", "b"]}).caching.vary_env == ("a", "b")


S = "data_source_spec.source"
C = "data_source_spec.caching"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"timeout": 0}, f"{S}.timeout must be over 0 and at most 300"),
        ({"timeout": 300.5}, f"{S}.timeout must be over 0 and at most 300"),
        ({"timeout": True}, f"{S}.timeout must be a number or null"),
        ({"timeout": "5"}, f"{S}.timeout must be a number or null"),
        ({"retry": {"max_retries": 11}}, f"{S}.retry.max_retries must be from 0 to 10"),
        ({"retry": {"max_retries": -1}}, f"{S}.retry.max_retries must be from 0 to 10"),
        ({"retry": {"max_retries": 10**30}}, f"{S}.retry.max_retries must be from 0 to 10"),
        ({"retry": {"max_retries": 1.5}}, f"{S}.retry.max_retries must be an integer or null"),
        ({"retry": {"backoff_factor": 60.1}}, f"{S}.retry.backoff_factor must be from 0 to 60"),
        ({"retry": {"status_forcelist": [99]}}, f"{S}.retry.status_forcelist must be from 100 to 599"),
        ({"retry": {"status_forcelist": ["500"]}}, f"{S}.retry.status_forcelist[0] must be an integer"),
        ({"retry": {"attempt_timeout": 0}}, f"{S}.retry.attempt_timeout must be over 0 and at most 300"),
        ({"retry": []}, f"{S}.retry must be an object or null"),
        ({"caching": {"ttl": -1}}, f"{C}.ttl must be from 0 to 316224000"),
        ({"caching": {"ttl": MAX_TTL + 1}}, f"{C}.ttl must be from 0 to 316224000"),
        ({"caching": {"ttl": {"days": -1}}}, f"{C}.ttl.days must be from 0 to 3660"),
        ({"caching": {"ttl": {"days": 3660, "hours": 1}}}, f"{C}.ttl must be from 0 to 316224000"),
        ({"caching": {"ttl": "1h"}}, f"{C}.ttl must be a number or an object or null"),
        ({"caching": {"ttl": True}}, f"{C}.ttl must be a number or an object or null"),
        ({"caching": {"enabled": 1}}, f"{C}.enabled must be true or false or null"),
        ({"caching": {"vary_env": [1]}}, f"{C}.vary_env[0] must be text"),
        ({"method": "get"}, f"{S}.method must be one of GET, POST, PUT, PATCH, DELETE, HEAD"),
        ({"method": "TRACE"}, f"{S}.method must be one of GET, POST, PUT, PATCH, DELETE, HEAD"),
        ({"method": ""}, f"{S}.method must be one of GET, POST, PUT, PATCH, DELETE, HEAD"),
        ({"response_type": "YAML"}, f"{S}.response_type must be one of JSON, XML, CSV, PLAIN_TEXT"),
        ({"auth": {"type": "oauth"}}, f"{S}.auth.method is required"),
        ({"url": 5}, f"{S}.url must be text"),
        ({"url": None}, f"{S}.url must be text"),
        ({"headers": []}, f"{S}.headers must be an object or null"),
        ({"headers": {"A": ["x"]}}, f'{S}.headers.A must be text, a number, a boolean, {{"param": name}} or {{"env": name}}'),
        ({"params": {"q": {"a": 1}}}, f'{S}.params.q must be text, a number, a boolean, {{"param": name}} or {{"env": name}}'),
        ({"params": {"q": [["a"]]}}, f'{S}.params.q[0] must be text, a number, a boolean, {{"param": name}} or {{"env": name}}'),
        ({"body": 5}, f"{S}.body must be an object, an array, text or null"),
        ({"body": True}, f"{S}.body must be an object, an array, text or null"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(members: dict[str, Any], message: str) -> None:
    assert refused_spec(**members) == message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "data_source_spec.data_source_id is required"),
        ({"data_source_id": "s3cret"}, "data_source_spec.data_source_id must be a UUID"),
        ({"data_source_id": 5}, "data_source_spec.data_source_id must be"),
        ({"data_source_id": SOURCE_ID}, "data_source_spec.name is required"),
        ({"data_source_id": SOURCE_ID, "name": "n"}, "data_source_spec.source is required"),
        ({"data_source_id": SOURCE_ID, "name": "n", "source": {}}, "data_source_spec.source.url is required"),
        (spec() | {"name": ""}, "data_source_spec.name must not be empty"),
        (spec() | {"name": "a\x00b"}, "data_source_spec.name must not be empty or hold control characters"),
        ([], "data_source_spec must be an object"),
        (None, "data_source_spec must be an object"),
    ],
)
def test_missing_and_wrong_members_of_a_record_are_named(record: Any, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        parse_source(json.dumps(record).encode())
    assert caught.value.code == "INVALID_DATA_SOURCE"
    assert caught.value.message.startswith(message)
    assert "s3cret" not in caught.value.message


NUMBERED = json.dumps(spec(timeout=77)).replace("77", "%s")
NESTED = json.dumps(spec(body=77)).replace("77", "%s")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'"\\ud800"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        (NUMBERED % "1e400").encode(),
        (NUMBERED % ("9" * 400)).encode(),
        (NUMBERED % ("9" * 5000)).encode(),
        (NUMBERED % "NaN").encode(),
        (NUMBERED % "-Infinity").encode(),
        (NESTED % ("9" * 5000)).encode(),
        (NESTED % ("[" * 102 + "]" * 102)).encode(),
        (NESTED % ('{"a":' * 600 + "1" + "}" * 600)).encode(),
        (NESTED % ("[" * 100_000 + "]" * 100_000)).encode(),
    ],
    ids=lambda raw: repr(raw[-20:]),
)
def test_bytes_that_are_no_spec_are_refused_as_such(raw: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        parse_source(raw)
    assert caught.value.code == "INVALID_DATA_SOURCE"


def test_a_deep_body_within_the_bound_is_kept() -> None:
    assert parse_source((NESTED % ("[" * 100 + "]" * 100)).encode()).request.body is not None


def test_very_many_holes_are_refused() -> None:
    assert "at most 2000 template variables" in refused_spec(body="{{ a }}" * 2001)
    escaped = (NESTED % ('"' + "\\u007B\\u007b a }}" * 1001 + '"')).encode()
    with pytest.raises(CallerError, match="at most 2000"):
        parse_source(escaped)


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "content-length",
        "TRANSFER-ENCODING",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Any",
    ],
)
def test_headers_of_the_transport_are_refused_by_name(name: str) -> None:
    assert f"headers.{name} is set by the edge" in refused_spec(headers={name: "x"})


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é", "{{ x }}"])
def test_a_header_name_is_a_token(name: str) -> None:
    assert "no HTTP header name" in refused_spec(headers={name: "x"})


def test_header_names_are_unique_whatever_their_case() -> None:
    assert "headers.x-a stands there twice" in refused_spec(headers={"X-A": "1", "x-a": "2"})


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\x00", "\x7f", "é", "x {{ y }}\n"])
def test_literal_header_values_are_visible_ascii(value: str) -> None:
    assert refused_spec(headers={"A": value}) == f"{S}.headers.A must hold nothing but visible ASCII, spaces and tabs"


def test_names_of_params_and_body_members_hold_no_templates() -> None:
    assert f"{S}.params has a member" in refused_spec("TEMPLATE_REJECTED", params={"{{ x }}": 1})
    assert f"{S}.body.a has a member" in refused_spec("TEMPLATE_REJECTED", body={"a": {"{{ x }}": 1}})


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"url": "http://a.example/{{ x() }}"}, "url"),
        ({"headers": {"A": "{{ x() }}"}}, "headers.A"),
        ({"params": {"q": ["1", "{{ x() }}"]}}, "params.q[1]"),
        ({"body": {"a": [{"b": "{{ x() }}"}]}}, "body.a[0].b"),
        ({"body": "{{ x() }}"}, "body"),
        ({"body": {"xml": "{{ x() }}"}}, "body.xml"),
    ],
)
def test_a_refused_template_is_named_by_its_path(members: dict[str, Any], path: str) -> None:
    assert refused_spec("TEMPLATE_REJECTED", **members).startswith(f"{S}.{path} holds a call;")


def test_variables_are_listed() -> None:
    source = source_of(
        url="http://{{ env.host }}/{{ a }}#{{ dropped }}",
        headers={"A": {"env": "b"}, "B": None},
        params={"q": ["{{ c }}", {"param": "d"}]},
        body={"x": [{"y": "{{ e }}"}]},
    )
    assert source.request.names == {"a", "c", "d", "e"}
    assert source.request.env_names == {"host", "b"}


BASE: dict[str, Any] = {"headers": {"A": "1", "B": "2"}, "params": {"p": "1", "q": "2"}, "body": {"x": 1, "y": {"z": 2}}}


@pytest.mark.parametrize(
    "same",
    [
        BASE | {"method": "GET"},
        BASE | {"headers": {"b": "2", "a": "1", "C": None}},
        BASE | {"params": {"q": "2", "p": "1", "r": None}},
        BASE | {"body": {"y": {"z": 2}, "x": 1}},
        BASE | {"timeout": 5, "retry": {"max_retries": 2}, "caching": {"enabled": True, "ttl": 5, "vary_env": ["a"]}},
        BASE | {"response_type": "PLAIN_TEXT"},
    ],
)
def test_what_is_asked_alike_has_the_same_fingerprint(same: dict[str, Any]) -> None:
    assert source_of(**same).fingerprint == source_of(**BASE).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        BASE | {"method": "POST"},
        BASE | {"url": "https://api.example.com/score/2"},
        BASE | {"headers": {"A": "1", "B": "3"}},
        BASE | {"params": {"p": "1", "q": 2}},
        BASE | {"params": {"p": "1"}, "headers": {"A": "1", "B": "2", "q": "2"}},
        BASE | {"body": {"x": 1.0, "y": {"z": 2}}},
        BASE | {"body": '{"x": 1, "y": {"z": 2}}'},
        BASE | {"response_type": "JSON"},
    ],
)
def test_another_request_has_another_fingerprint(other: dict[str, Any]) -> None:
    assert source_of(**other).fingerprint != source_of(**BASE).fingerprint


def test_no_body_is_one_body_and_the_name_is_none_of_the_request() -> None:
    prints = {source_of(body=body).fingerprint for body in (None, {}, "", {"xml": ""})}
    renamed = parse_source(json.dumps(spec() | {"name": "other"}).encode())
    other_id = parse_source(json.dumps(spec() | {"data_source_id": SOURCE_ID.replace("5", "6")}).encode())
    assert prints == {renamed.fingerprint}
    assert other_id.fingerprint not in prints
    assert source_of(body=[]).fingerprint not in prints


def test_the_case_of_the_id_makes_no_difference() -> None:
    upper = parse_source(json.dumps(spec() | {"data_source_id": SOURCE_ID.upper()}).encode())
    assert upper.fingerprint == source_of().fingerprint


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["{{ x }}", "{{ x | y }}", "{{", {"param": "x"}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("xml"), inner, max_size=3),
    max_leaves=8,
)
members = ("url", "method", "headers", "params", "body", "timeout", "retry", "response_type", "auth")


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(members), json_values),
    st.dictionaries(st.sampled_from(["enabled", "ttl", "vary_env"]), json_values),
)
def test_random_specs_raise_nothing_but_caller_errors(source: dict[str, Any], caching: dict[str, Any]) -> None:
    try:
        source_of(caching=caching, **source)
    except CallerError as error:
        assert error.code in {"INVALID_DATA_SOURCE", "TEMPLATE_REJECTED"}  # noqa: PT017 (both outcomes are right)


@settings(deadline=None)
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_raise_nothing_but_caller_errors(raw: bytes) -> None:
    with pytest.raises(CallerError):
        parse_source(raw)
