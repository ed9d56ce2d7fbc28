"""Bodies: what is sent for each form, and that a value in a document is only ever a value."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_edge.core.bodies import BODY_LIMIT
from broker_edge.core.exchange import Outbound
from broker_edge.core.plan import Plan
from broker_edge.core.render import render
from broker_edge.errors import CallerError
from tests.core.specs import refused_spec, refused_value, sent, source_of

MEMBER = "data_source_spec.source.body"
XML_CHARS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")
texts = st.text(st.characters(exclude_categories=["Cs"]))
xml_texts = st.text(XML_CHARS | st.sampled_from(list("]>&<\"'\r\n\t")))


def posted(body: Any, x: Any = None, content_type: Any = None, **env: Any) -> Outbound:
    return sent({"x": x}, env, method="POST", body=body, headers={"Content-Type": content_type})


def content(body: Any, x: Any = None, content_type: Any = None) -> bytes:
    sent_body = posted(body, x, content_type).body
    assert sent_body is not None
    return sent_body


def content_type(outbound: Outbound) -> str | None:
    return next((value for name, value in outbound.headers if name.lower() == "content-type"), None)


@pytest.mark.parametrize("body", [None, {}, "", {"xml": ""}, "{{ x }}", {"param": "x"}])
def test_no_body_has_no_content_type(body: Any) -> None:
    outbound = posted(body)
    assert (outbound.body, content_type(outbound)) == (None, None)


@pytest.mark.parametrize(
    ("body", "sent_body"),
    [
        ({"a": "{{ x }}"}, b'{"a":"v"}'),
        ({"a": ["{{ x }}", {"b": {"param": "x"}}, None, 1.5, False]}, b'{"a":["v",{"b":"v"},null,1.5,false]}'),
        ([], b"[]"),
        ([{"param": "x"}], b'["v"]'),
        ({"a": "<{{ x }}>"}, b'{"a":"<v>"}'),
        ({"param": "x", "more": 1}, b'{"param":"x","more":1}'),
        ({"xml": 5}, b'{"xml":5}'),
        ({"xml": "a", "b": 1}, b'{"xml":"a","b":1}'),
        ({"big": 10**30}, b'{"big":1000000000000000000000000000000}'),
    ],
)
def test_objects_and_arrays_are_sent_as_json(body: Any, sent_body: bytes) -> None:
    outbound = posted(body, "v")
    assert (outbound.body, content_type(outbound)) == (sent_body, "application/json")


@pytest.mark.parametrize("value", [10**30, "01234567890", 1.5, True, None, {"a": [1]}, [], 'a"\\\r\nb', "{{ y }}"])
def test_one_hole_in_json_keeps_the_type_of_its_value(value: Any) -> None:
    assert json.loads(content({"a": "{{ x }}"}, value)) == {"a": value}


@pytest.mark.parametrize("value", [None, [], {"a": 1}])
def test_a_hole_inside_a_text_of_a_json_body_needs_a_scalar(value: Any) -> None:
    assert f"{MEMBER}.a.b[0]" in refused_value(value, body={"a": {"b": ["<{{ x }}>"]}})


def test_a_content_type_of_the_spec_is_kept() -> None:
    outbound = posted({"a": 1}, content_type="application/vnd.api+json")
    assert [value for name, value in outbound.headers if name.lower() == "content-type"] == ["application/vnd.api+json"]


def test_a_string_is_sent_as_it_is() -> None:
    outbound = posted("a\r\n  {b}\n")
    assert (outbound.body, content_type(outbound)) == (b"a\r\n  {b}\n", "text/plain; charset=utf-8")


def test_xml_has_its_content_type() -> None:
    outbound = posted({"xml": "<a>{{ x }}</a>"}, "b & <c>")
    assert (outbound.body, content_type(outbound)) == (b"<a>b &amp; &lt;c&gt;</a>", "text/xml; charset=utf-8")
    soap = posted({"xml": "<a/>"}, content_type="application/soap+xml")
    assert content_type(soap) == "application/soap+xml"


@settings(deadline=None)
@given(xml_texts)
@example("]]>")
@example("]")
@example(">")
@example("]]>&#38;<b/>\n]]")
def test_a_value_in_xml_is_itself_in_text_attributes_and_cdata(value: str) -> None:
    document = (
        "<r><!-- <![CDATA[ --><a>{{ x }}</a><b k='{{ x }}' l=\"{{ x }}\"/>"
        "<c>]<![CDATA[]]{{ x }}]>{{ x }}>]]></c><?p <![CDATA[ ?><d>{{ x }}</d></r>"
    )
    rendered = content({"xml": document}, value)
    root = ET.fromstring(rendered)
    found = (root[0].text or "", root[1].get("k"), root[1].get("l"), root[2].text, root[3].text or "")
    assert found == (value, value, value, f"]]]{value}]>{value}>", value)
    assert rendered.count(b"\n") == rendered.count(b"\r") == 0
    assert len(list(root.iter())) == 5


@pytest.mark.parametrize("value", ["\x00", "\x0b", "\x1b", "\ufffe"])
@pytest.mark.parametrize("document", ["<a>{{ x }}</a>", "<a><![CDATA[{{ x }}]]></a>"])
def test_characters_that_xml_can_t_carry_are_refused(value: str, document: str) -> None:
    assert f"{MEMBER}.xml" in refused_value(value, body={"xml": document})


@settings(deadline=None)
@given(texts)
@example('", "admin": true, "b": "')
@example("\\")
def test_a_value_in_json_text_is_itself_inside_and_outside_quotes(value: str) -> None:
    rendered = content('{"a\\"": "<{{ x }}>", "b": {{ x }}, "c\\\\": "{{ x }}"}', value, "application/json")
    assert json.loads(rendered) == {'a"': f"<{value}>", "b": value, "c\\": value}


@pytest.mark.parametrize("value", [5, 10**30, True, None, [1, {"a": None}], 1.5])
def test_json_values_stand_in_json_text_as_they_are(value: Any) -> None:
    assert json.loads(content('{"b": {{ x }}}', value, "application/json")) == {"b": value}


def test_numbers_inside_a_json_string_become_text_and_null_is_refused() -> None:
    assert content('{"b": "{{ x }}"}', 5, "application/json") == b'{"b": "5"}'
    refused_value(None, body='{"b": "{{ x }}"}', headers={"Content-Type": "application/json"})


def test_a_backslash_before_a_hole_is_refused_in_json_text() -> None:
    assert "backslash" in refused_spec(
        "TEMPLATE_REJECTED", body='{"b": "\\{{ x }}"}', headers={"Content-Type": "application/json"}
    )


@settings(deadline=None)
@given(texts)
def test_a_value_in_a_form_is_one_value(value: str) -> None:
    rendered = content("a=1&b={{ x }}&c=2", value, "application/x-www-form-urlencoded").decode()
    assert parse_qsl(rendered, keep_blank_values=True) == [("a", "1"), ("b", value), ("c", "2")]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x00b", None, [], {}])
@pytest.mark.parametrize("media_type", [None, "text/plain", "text/csv", "application/octet-stream"])
def test_a_value_can_t_add_a_line_to_other_text(value: Any, media_type: str | None) -> None:
    refused_value(value, body="a: {{ x }}\n", headers={"Content-Type": media_type})


def test_a_body_that_is_one_hole_is_its_value() -> None:
    assert content("{{ x }}", {"a": 10**30}) == b'{"a":1000000000000000000000000000000}'
    assert content_type(posted("{{ x }}", [1])) == "application/json"
    assert content({"param": "x"}, "<a>\n</a>", "text/xml") == b"<a>\n</a>"
    assert content({"xml": {"param": "x"}}, "<a/>") == b"<a/>"
    assert content("{{ x }}", 5) == b"5"
    assert content_type(posted("{{ x }}", "text")) == "text/plain; charset=utf-8"
    refused_value({"a": 1}, body={"xml": "{{ x }}"})


def test_the_charset_of_the_content_type_is_used() -> None:
    assert content("ü{{ x }}", "ß", 'text/plain; charset="ISO-8859-1"') == b"\xfc\xdf"
    assert content("ü", None, "text/plain; charset=windows-1252") == b"\xfc"
    assert "the charset of the Content-Type lacks" in refused_value(
        "€", body="a{{ x }}", headers={"Content-Type": "a/b; charset=latin1"}
    )
    assert "lacks" in refused_spec(body="€", headers={"Content-Type": "a/b; charset=us-ascii"})


@pytest.mark.parametrize("charset", ["idna", "utf-7", "rot13", "no-such", "unicode_escape", "utf-16"])
def test_another_charset_is_refused(charset: str) -> None:
    assert "charset" in refused_spec(body="a", headers={"Content-Type": f"text/plain; charset={charset}"})


def test_a_content_type_with_variables_can_t_stand_beside_a_text_with_variables() -> None:
    templated = {"Content-Type": "application/{{ y }}"}
    assert "Content-Type" in refused_spec(body="a{{ x }}", headers=templated)
    assert sent({"y": "xml"}, body="<a/>", headers=templated).body == b"<a/>"


@pytest.mark.parametrize("body", ["a{{ x }}", "{{ x }}", {"a": "{{ x }}"}])
def test_a_body_over_the_bound_is_refused(body: Any) -> None:
    assert f"is over {BODY_LIMIT} bytes once filled" in refused_value("x" * (BODY_LIMIT + 1), body=body)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_json_beyond_the_encoder_is_refused() -> None:
    # Built by hand: the key refuses such a value first.
    for body in ({"a": "{{ x }}"}, "{{ x }}"):
        with pytest.raises(CallerError, match="can't be written as JSON"):
            render(Plan("", source_of(body=body), {"x": nested(100_000)}, {}))
