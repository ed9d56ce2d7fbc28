"""Headers, query parameters and the whole of a rendered request."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_edge import __version__
from broker_edge.core.plan import make_plan
from broker_edge.core.render import render
from broker_edge.errors import CallerError
from tests.core.specs import refused_value, sent, source_of

DEFAULTS = {"accept-encoding": "gzip, deflate, br, zstd", "accept": "*/*", "user-agent": f"broker-edge/{__version__}"}


def headers(value: Any, params: dict[str, Any] | None = None) -> dict[str, str]:
    return dict(sent(params, headers={"X-A": value}).headers)


def query(params: dict[str, Any], values: dict[str, Any] | None = None) -> str:
    return sent(values, url="http://a.example/", params=params).url.partition("?")[2]


def test_the_decision_record_s_example_is_sent_as_written() -> None:
    outbound = sent(
        {"username": "octocat"},
        {"github_token": "ghp_1"},
        url="https://api.github.com/users/{{ username }}",
        headers={"Authorization": "Bearer {{ github_token }}", "Accept": "application/vnd.github.v3+json"},
        params={},
        body={},
    )
    assert (outbound.method, outbound.url, outbound.body) == ("GET", "https://api.github.com/users/octocat", None)
    own = {"Authorization": "Bearer ghp_1", "Accept": "application/vnd.github.v3+json"}
    assert dict(outbound.headers) == own | {name: value for name, value in DEFAULTS.items() if name != "accept"}


def test_default_headers_are_sent_where_the_spec_sets_none() -> None:
    assert dict(sent().headers) == DEFAULTS
    names = [name for name, _ in sent(headers={"ACCEPT": "a", "User-Agent": "b", "Accept-Encoding": "c"}).headers]
    assert names == ["ACCEPT", "User-Agent", "Accept-Encoding"]


@pytest.mark.parametrize(("value", "text"), [(5, "5"), (True, "true"), (1.5, "1.5"), ("a\tb", "a\tb"), (" a ", "a"), ("", "")])
def test_header_values_are_text_without_outer_spaces(value: Any, text: str) -> None:
    assert headers(value)["X-A"] == text
    assert headers("{{ x }}", {"x": value})["X-A"] == text


def test_headers_that_were_filled_in_are_for_this_origin_alone() -> None:
    filled = {"Accept": "{{ x }}", "User-Agent": "policy {{ env.y }}", "X-A": {"env": "y"}}
    outbound = sent({"x": "1"}, {"y": "2"}, headers={"Accept-Language": "de", **filled})
    assert outbound.bound_headers == {"accept", "user-agent", "x-a"}
    assert sent(headers={"Accept": "a"}).bound_headers == frozenset()


def test_a_null_header_is_left_out() -> None:
    assert headers(None) == headers("{{ x }}", {"x": None}) == headers({"param": "x"}, {"x": None}) == DEFAULTS


@pytest.mark.parametrize("value", ["a\r\nX-B: 1", "a\nb", "a\rb", "\x00", "\x7f", "é", "a\u2028b", [], {"a": 1}])
@pytest.mark.parametrize("template", ["{{ x }}", "Bearer {{ x }}"])
def test_a_value_can_t_add_a_header_or_a_line(value: Any, template: str) -> None:
    assert refused_value(value, headers={"X-A": template}).startswith("x can't stand in data_source_spec.source.headers.X-A: ")


def test_null_in_a_text_is_refused() -> None:
    refused_value(None, headers={"X-A": "Bearer {{ x }}"})


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_in_a_header_is_one_line_or_refused(value: str) -> None:
    plan = make_plan(source_of(headers={"X-A": "v {{ x }}"}), {"x": value}, {})
    try:
        line = dict(render(plan).headers)["X-A"]
    except CallerError as error:
        assert error.code == "INVALID_VALUE"  # noqa: PT017 (both outcomes are right)
        assert not re.fullmatch(r"[\t -~]*", value)
    else:
        assert line == f"v {value}".strip(" \t")
        assert re.fullmatch(r"[\t -~]*", line)


@pytest.mark.parametrize(
    ("params", "result"),
    [
        ({"a": 1, "b": True, "c": 1.5, "d": "x y"}, "a=1&b=true&c=1.5&d=x%20y"),
        ({"a": ["x", 2, None, "{{ v }}"]}, "a=x&a=2&a=v1"),
        ({"a": None, "b": ""}, "b="),
        ({"a": []}, ""),
        ({"a": "{{ null }}"}, ""),
        ({"a": ["{{ null }}", "{{ v }}"]}, "a=v1"),
        ({"a": {"param": "v"}, "b": {"env": "e"}}, "a=v1&b=e1"),
        ({"a": "{{ many }}"}, "a=1&a=b%26c"),
        ({"a b&": "="}, "a%20b%26=%3D"),
        ({"a": "{{ v }}-{{ env.e }}"}, "a=v1-e1"),
    ],
)
def test_params_become_pairs(params: dict[str, Any], result: str) -> None:
    values = {"v": "v1", "null": None, "many": [1, "b&c", None]}
    assert sent(values, {"e": "e1"}, url="http://a.example/", params=params).url.partition("?")[2] == result


@pytest.mark.parametrize("value", [{"a": 1}, [[1]], [{"a": 1}], [float("nan")]])
def test_values_without_text_are_refused_in_params(value: Any) -> None:
    assert "data_source_spec.source.params.q" in refused_value(value, params={"q": "{{ x }}"})


def test_a_value_type_converts() -> None:
    assert query({"q": {"param": "x", "value_type": "int"}}, {"x": "007"}) == "q=7"
    assert query({"q": {"param": "x", "value_type": "auto"}}, {"x": "007"}) == "q=007"
    assert "is not exactly an integer" in refused_value("7.5", params={"q": {"param": "x", "value_type": "int"}})


def test_a_parameter_wins_over_an_env_variable_of_its_name() -> None:
    plan = make_plan(source_of(params={"q": "{{ x }}", "e": "{{ env.x }}"}), {"x": "param"}, {"x": "env"})
    assert render(plan).url.endswith("?q=param&e=env")


def test_refusals_do_not_quote_the_value() -> None:
    for members in ({"headers": {"A": "{{ x }}"}}, {"url": "http://{{ x }}/"}, {"body": "a={{ x }}"}):
        assert "s3cret" not in refused_value("s3cret\n", **members)


def test_outbound_shows_no_values_by_repr() -> None:
    outbound = sent({"x": "s3cret"}, headers={"A": "{{ x }}"}, params={"q": "{{ x }}"}, body={"b": "{{ x }}"}, method="POST")
    assert "s3cret" not in repr(outbound)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_a_body_is_sent_with_any_method(method: str) -> None:
    outbound = sent(method=method, body={"a": 1})
    assert (outbound.method, outbound.body) == (method, b'{"a":1}')
