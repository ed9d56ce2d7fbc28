"""What a template may hold, and what a hole's value becomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_edge.core.holes import Hole, Scope, Template
from broker_edge.core.template import TEXT_LIMIT, hole_object, parse_scalar, parse_template
from broker_edge.errors import CallerError

MEMBER = "data_source_spec.source.url"


def filled(text: str, params: dict[str, Any] | None = None, env: dict[str, Any] | None = None) -> str:
    return parse_template(text, MEMBER).fill(Scope(params or {}, env or {}))


def refused(text: str, code: str = "TEMPLATE_REJECTED") -> str:
    with pytest.raises(CallerError) as caught:
        parse_template(text, MEMBER)
    assert caught.value.code == code
    assert caught.value.message.startswith(MEMBER)
    return caught.value.message


def test_a_name_takes_the_parameter_before_the_env_variable() -> None:
    assert filled("a {{ x }} b", {"x": 1}, {"x": 2}) == "a 1 b"
    assert filled("a {{ x }} b", {}, {"x": 2}) == "a 2 b"


def test_an_env_name_takes_only_the_env_variable() -> None:
    assert filled("{{ env.x }}!", {"x": "param"}, {"x": "env"}) == "env!"


def test_a_variable_may_be_called_env() -> None:
    assert filled("{{ env }}/{{ env.env }}", {"env": "p"}, {"env": "e"}) == "p/e"


def test_text_constants_stand_for_braces() -> None:
    assert parse_template('{{ "{{" }} x {{ "}" }}', MEMBER) == Template(("{{ x }",))


def test_literals_are_merged_around_constants() -> None:
    assert parse_template('a{{ "b" }}c{{ x }}', MEMBER).literals == ("abc",)


def test_line_ends_are_kept_as_they_are() -> None:
    assert filled("a\r\nb\rc\n{{ x }}\r\n\n", {"x": "v"}) == "a\r\nb\rc\nv\r\n\n"
    assert filled("a\r\n{{\r\nx\r\n}}\x1c", {"x": "v"}) == "a\r\nv\x1c"


def test_jinja_s_whitespace_control_works_on_literals() -> None:
    assert filled("a \r\n {{- x -}}  b", {"x": "v"}) == "avb"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{{ x | upper }}", "a filter"),
        ("{{ x is defined }}", "a test"),
        ("{{ range(9) }}", "a call"),
        ("{{ x.y }}", "an attribute walk"),
        ("{{ env.x.y }}", "an attribute walk"),
        ("{{ ''.__class__ }}", "an attribute walk"),
        ("{{ env['x'] }}", "an item access"),
        ("{{ x if y }}", "a condition"),
        ("{{ 1 }}", "a constant that is no text"),
        ("{{ none }}", "a constant that is no text"),
        ("{{ [x] }}", "a list, tuple or mapping"),
        ("{{ x, y }}", "a list, tuple or mapping"),
        ("{{ 'x' * 9 }}", "an operator"),
        ("{{ x ~ y }}", "an operator"),
        ("{{ a-b }}", "an operator"),
        ("{{ not x }}", "an operator"),
        ("{% for x in y %}{% endfor %}", "a block"),
        ("{% raw %}{{ x }}{% endraw %}", "a raw block"),
        ("{# remark #}", "a comment"),
    ],
)
def test_what_is_not_a_plain_hole_is_refused_by_its_name(text: str, what: str) -> None:
    assert f"holds {what};" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ x",
        "{{ }}",
        "{% nonsense %}",
        "{% raw %}",
        "{# open",
        "{{ x y }}",
        "{{" + "(" * 5000 + "x",
        "{{ " + "9" * 5000 + " }}",
        "{{ 1e999999999 }}",
        '{{ "\\ud800" }}',
        '{{ "\\N{no such}" }}',
        "{{ " + "a+" * 20_000 + "a }}",
    ],
    ids=lambda text: text[:20],
)
def test_what_can_t_be_read_is_refused(text: str) -> None:
    refused(text)


def test_the_message_quotes_nothing_of_the_template() -> None:
    assert "s3cret" not in refused("Bearer s3cret {{ x | upper }}")
    assert "s3cret" not in refused("Bearer s3cret {{ x ")


@pytest.mark.parametrize("name", ["CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD"])
def test_reserved_names_are_no_variables_in_any_form(name: str) -> None:
    assert name in refused("{{ " + name + " }}")
    assert name in refused("{{ env." + name + " }}")
    for raw in ({"param": name}, {"env": name}):
        with pytest.raises(CallerError, match=name) as caught:
            hole_object(raw, MEMBER)
        assert caught.value.code == "TEMPLATE_REJECTED"


def test_reserved_names_in_another_case_are_variables() -> None:
    assert filled("{{ username }}", {"username": "octocat"}) == "octocat"


def test_long_text_is_refused() -> None:
    refused("x" * (TEXT_LIMIT + 1), "INVALID_DATA_SOURCE")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("{{ y }}")
@example("{% raw %}")
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert filled("<{{ x }}>", {"x": value, "y": "no"}) == f"<{value}>"


@settings(deadline=None)
@given(st.text())
def test_text_without_openings_is_its_own_template(text: str) -> None:
    text = text.replace("{", "(")
    assert filled(text) == text


@settings(deadline=None)
@given(st.text(alphabet=list("{}%#-'\"\\ xe.nv|()\r\n")))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        parse_template(text, MEMBER)
    except CallerError as error:
        assert error.code == "TEMPLATE_REJECTED"  # noqa: PT017 (both outcomes are right)


def test_objects_are_holes_only_with_exactly_their_members() -> None:
    assert hole_object({"param": "x"}, MEMBER) == Hole("x", False, MEMBER)
    assert hole_object({"param": "x", "value_type": None}, MEMBER) == Hole("x", False, MEMBER)
    assert hole_object({"param": "x", "value_type": "int"}, MEMBER) == Hole("x", False, MEMBER, "int")
    assert hole_object({"env": "x"}, MEMBER) == Hole("x", True, MEMBER)
    for raw in ({"param": 5}, {"param": "x", "more": 1}, {"env": "x", "value_type": "int"}, {}, [], "x", None):
        assert hole_object(raw, MEMBER) is None


@pytest.mark.parametrize("value_type", ["date", 5, "", ["int"]])
def test_an_unknown_value_type_is_refused(value_type: Any) -> None:
    with pytest.raises(CallerError, match=r"\.value_type must be auto, str, int or float"):
        hole_object({"param": "x", "value_type": value_type}, MEMBER)


def converted(value_type: str, value: Any) -> Any:
    hole = hole_object({"param": "x", "value_type": value_type}, MEMBER)
    assert hole is not None
    return hole.value(Scope({"x": value}, {}))


@pytest.mark.parametrize(
    ("value_type", "value", "result"),
    [
        ("auto", "01234567890", "01234567890"),
        ("auto", "11234567890", "11234567890"),
        ("auto", 10**30, 10**30),
        ("auto", {"a": [1]}, {"a": [1]}),
        ("str", 12, "12"),
        ("str", 1.0, "1.0"),
        ("str", True, "true"),
        ("str", "x", "x"),
        ("int", "12", 12),
        ("int", "-007", -7),
        ("int", 12.0, 12),
        ("int", str(10**30), 10**30),
        ("float", "12.5", 12.5),
        ("float", "1e3", 1000.0),
        ("float", 12, 12.0),
        ("int", None, None),
        ("str", None, None),
    ],
)
def test_values_convert_exactly_and_null_stays(value_type: str, value: Any, result: Any) -> None:
    got = converted(value_type, value)
    assert (got, type(got)) == (result, type(result))


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        ("int", "12.5"),
        ("int", 12.5),
        ("int", " 12"),
        ("int", "1_000"),
        ("int", "٣"),
        ("int", ""),
        ("int", True),
        pytest.param("int", "9" * 4001, id="int-4001 digits"),
        ("float", "nan"),
        ("float", "inf"),
        ("float", "1e400"),
        ("float", False),
        ("float", 2**53 + 1),
        pytest.param("float", 10**400, id="float-400 digits"),
        ("float", []),
        ("str", {"a": 1}),
        ("auto", float("nan")),
        pytest.param("auto", 10**5000, id="auto-5000 digits"),
        ("auto", "\ud800"),
    ],
)
def test_what_does_not_convert_exactly_is_refused_with_the_variable_and_the_member(value_type: str, value: Any) -> None:
    with pytest.raises(CallerError) as caught:
        converted(value_type, value)
    assert caught.value.code == "INVALID_VALUE"
    assert caught.value.message.startswith(f"x can't stand in {MEMBER}: ")


@pytest.mark.parametrize(("raw", "text"), [(5, "5"), (2.5, "2.5"), (True, "true"), (False, "false"), ("a", "a"), ("", "")])
def test_scalars_of_a_spec_become_text(raw: Any, text: str) -> None:
    assert parse_scalar(raw, MEMBER).fill(Scope({}, {})) == text


@pytest.mark.parametrize("raw", [None, {}, {"a": 1}, ["x"]])
def test_what_is_no_scalar_is_refused(raw: Any) -> None:
    with pytest.raises(CallerError, match="must be text"):
        parse_scalar(raw, MEMBER)


def test_values_are_not_shown_by_repr() -> None:
    assert "s3cret" not in repr(Scope({"a": "s3cret"}, {"b": "s3cret"}))
