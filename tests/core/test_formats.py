"""Bodies to values: character sets, JSON kept as written, XML, CSV and text; whatever comes, only UpstreamError leaves."""

from __future__ import annotations

import csv
import json
import random
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from io import StringIO
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_edge.core.formats import shape
from broker_edge.errors import UpstreamError

TYPES = ["JSON", "XML", "CSV", "PLAIN_TEXT"]


def _error(body: bytes, response_type: str, content_type: str | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        shape(body, response_type, content_type)
    return caught.value


def _value(body: bytes | str, response_type: str, content_type: str | None = None) -> Any:
    return orjson.loads(shape(body.encode() if isinstance(body, str) else body, response_type, content_type))


def _exact(text: bytes | str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


# --- every type


@pytest.mark.parametrize(("response_type", "value"), [("JSON", b"null"), ("XML", b"null"), ("CSV", b"[]"), ("PLAIN_TEXT", b'""')])
@pytest.mark.parametrize("body", [b"", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_an_empty_body_has_its_value(body: bytes, response_type: str, value: bytes) -> None:
    assert shape(body, response_type, "text/plain") == value


CONTENT_TYPES = (
    st.none()
    | st.text(max_size=40)
    | st.sampled_from(
        [
            f"x/y; charset={name}"
            for name in ("utf-8", "utf-16", "utf-32", "ascii", "shift_jis", "iso2022_kr", "hz", "gb18030", "utf-7", "idna", "")
        ]
    )
)
FRAGMENTS = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(
        [b"<a>", b"</a>", b"<?xml encoding='x'?>", b"<!DOCTYPE a [", b"<!ENTITY e 'x'>", b"]>", b"&e;", b"<![CDATA[", b" b='1'"]
    )
    | st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"\\ud800", b"1e400", b"-", b"0", b",", b":", b"\n", b"\r", b"\0", b"\xff\xfe", b"NaN"]
    ),
    max_size=12,
).map(b"".join)


@pytest.mark.parametrize("response_type", TYPES)
@given(body=FRAGMENTS, content_type=CONTENT_TYPES)
def test_nothing_but_upstream_errors_leaves_and_values_are_json(
    response_type: str, body: bytes, content_type: str | None
) -> None:
    try:
        value = shape(body, response_type, content_type)
    except UpstreamError as error:
        assert error.code == "PARSE_ERROR"  # noqa: PT017 - some bodies are fine
    else:
        json.loads(value, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("body", "response_type"),
    [(b'{"k": hunter2}', "JSON"), (b"<hunter2>", "XML"), (b'a\n"hunter2"x', "CSV"), (b"hunter2\xff", "PLAIN_TEXT")],
)
def test_an_error_says_where_and_quotes_nothing(body: bytes, response_type: str) -> None:
    message = _error(body, response_type).message
    assert "hunter2" not in message
    assert any(word in message for word in ("line", "byte"))


def test_threads_do_not_disturb_each_other() -> None:
    body = b"<r>" + b"".join(b'<i n="%d">x</i>' % n for n in range(500)) + b"</r>"
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: shape(body, "XML", None), range(16)))
    assert set(values) == {shape(body, "XML", None)}


# --- character sets

CHARSETS = {
    "utf-8": "aä日\U0001f600",
    "utf-16": "aä日\U0001f600",
    "UTF-16BE": "aä日",
    "utf-32": "aä日",
    "us-ascii": "abc",
    "ISO-8859-1": "aäÿ",
    "iso-8859-15": "a€",
    "windows-1252": "a€ä",
    "windows-1251": "aЖ",
    "koi8-r": "aЖ",
    "Shift_JIS": "a日本",
    "windows-31j": "a日①",
    "euc-jp": "a日本",
    "iso-2022-jp": "a日本",
    "gb2312": "a中",
    "gb18030": "a中\U0001f600",
    "big5": "a中",
    "euc-kr": "a한",
    "cp037": "abc",
    "macintosh": "aä",
}
PYTHON_NAMES = {"windows-31j": "cp932"}


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.parametrize(
    "form", ["charset={}", 'charset="{}"', "a=b; Charset = {}", 'x="; charset=rot13"; charset={}', "charset={}; q=1"]
)
def test_the_content_type_names_the_character_set(charset: str, form: str) -> None:
    body = CHARSETS[charset].encode(PYTHON_NAMES.get(charset, charset))
    assert _value(body, "PLAIN_TEXT", "text/plain; " + form.format(charset)) == CHARSETS[charset]


@pytest.mark.parametrize("charset", CHARSETS)
def test_the_xml_declaration_names_the_character_set(charset: str) -> None:
    document = f'<?xml version="1.0" encoding="{charset}"?><a>{CHARSETS[charset]}</a>'
    if charset != "utf-32":
        assert _value(document.encode(PYTHON_NAMES.get(charset, charset)), "XML") == CHARSETS[charset]
    assert _value(document.encode("utf-8-sig"), "XML", "text/xml; charset=ascii") == CHARSETS[charset]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("declaration", ["", '<?xml version="1.0" encoding="UTF-16"?>', '<?xml version="1.0"?>'])
def test_wide_xml_is_known_by_its_first_bytes(codec: str, declaration: str) -> None:
    assert _value(f"{declaration}<a>ä</a>".encode(codec), "XML") == "ä"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_that_is_not_marked_is_read_off_the_first_character(codec: str) -> None:
    assert _value('{"ä":1}'.encode(codec), "JSON", f"application/json; charset={codec[:6]}") == {"ä": 1}


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("response_type", "body", "value"), [("JSON", '"ä"', "ä"), ("XML", "<a>ä</a>", "ä"), ("CSV", "ä\n1", [{"ä": "1"}])]
)
def test_a_byte_order_mark_beats_every_name(codec: str, response_type: str, body: str, value: Any) -> None:
    assert _value(("\ufeff" + body).encode(codec), response_type, "text/plain; charset=iso-8859-1") == value


def test_the_content_type_beats_the_xml_declaration() -> None:
    body = '<?xml version="1.0" encoding="utf-8"?><a>ä</a>'.encode("latin-1")
    assert _value(body, "XML", "text/xml; charset=iso-8859-1") == "ä"
    assert "byte offset" in _error(body, "XML").message


def test_a_declaration_of_utf16_that_reads_as_bytes_means_utf8() -> None:
    assert _value('<?xml version="1.0" encoding="utf-16"?><a>ä</a>', "XML") == "ä"


@pytest.mark.parametrize(
    "name", ["rot13", "zlib", "base64", "idna", "punycode", "unicode_escape", "utf-7", "undefined", "nope", "../utf_8", "ä"]
)
@pytest.mark.parametrize("response_type", TYPES)
def test_what_is_no_character_set_is_refused(name: str, response_type: str) -> None:
    error = _error(b"1", response_type, f"text/plain; charset={name}")
    assert error.code == "PARSE_ERROR"
    assert name not in error.message


@pytest.mark.parametrize("response_type", TYPES)
def test_bytes_that_are_no_text_are_refused_with_their_place(response_type: str) -> None:
    body = b'{"a": "\xff"}'
    assert _error(body, response_type).message.endswith("byte offset 7")
    assert _error(b"\xef\xbb\xbf" + body, response_type).message.endswith("byte offset 10")


# No NUL: behind UTF-16's byte-order mark it makes the one of UTF-32.
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufeff\x00")),
    st.sampled_from(["utf-8", "utf-16", "utf-32", "gb18030"]),
)
def test_text_in_any_unicode_charset_comes_back(text: str, charset: str) -> None:
    assert _value(text.encode(charset), "PLAIN_TEXT", f"text/plain; charset={charset}") == text


@given(st.binary(max_size=40), st.sampled_from(["windows-1252", "shift_jis", "koi8-r", "iso-8859-15", "big5", "euc-kr"]))
def test_bytes_in_a_legacy_charset_are_its_text_or_an_error(body: bytes, charset: str) -> None:
    body = b"." + body  # which is no byte-order mark
    fault = None
    try:
        text = body.decode(charset)
    except UnicodeDecodeError as error:
        fault = error.start
    if fault is None:
        assert _value(body, "PLAIN_TEXT", f"text/plain; charset={charset}") == text
    else:
        assert _error(body, "PLAIN_TEXT", f"text/plain; charset={charset}").message.endswith(f"byte offset {fault}")


# --- JSON


@pytest.mark.parametrize(
    "text",
    [
        "123456789012345678901234567890",
        '{"n": 1e400, "m": -1E-999, "k": 1.10, "z": -0}',
        '["1.10", 0.1000, 1E5]',
        '"\\ud800"',
        '{"\\udfff": ["\\ud83d\\ude00", "\\\\ud800", "x\\"\\ud800\\"1e400"]}',
        '"\u2028\u2029\x7f"',
        " \t\r\n[1]\n",
        '{"a":1,"a":2}',
        pytest.param("1" * 5000, id="5000 digits"),
        pytest.param("[" * 1000 + "1e400" + "]" * 1000, id="1000 levels"),
    ],
)
def test_json_is_handed_on_as_it_was_written(text: str) -> None:
    body = text.encode()
    assert shape(body, "JSON", "application/json; charset=utf-8") is body
    assert shape(text.encode("utf-16"), "JSON", None) == body


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "[1] x",
        "[1,]",
        "{'a':1}",
        "01",
        "[1.]",
        ".5",
        "+1",
        "--1",
        "1e5e5",
        "1.5.5",
        "1-1",
        "true1",
        "[1 2]",
        '"\\uabc-1"',
        '"\\x"',
        '"\t"',
        '"a',
        '"a\\"',
        '"\\ud800',
        '["\\ud800" 1e400]',
        '[1e400, "\\u12"]',
        '{"a" "b"}',
        " ",
        "\ufeff\ufeff1",
        "\v1",
        '[1e400,"xxx',
        pytest.param("[" * 1025 + "]" * 1025, id="1025 levels"),
        pytest.param("[" * 200_000, id="arrays without end"),
        pytest.param('{"a":' * 200_000, id="objects without end"),
    ],
)
def test_what_is_no_json_is_refused(text: str) -> None:
    assert _error(text.encode(), "JSON").code == "PARSE_ERROR"


def test_a_json_fault_is_located_also_behind_what_one_parser_refuses() -> None:
    assert _error(b'{"a": "\\ud800",\n "b": 1e400,\n "c": 0x1}', "JSON").message.endswith("line 3, column 8")


NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?\Z")
STRINGS = st.text(st.characters(codec="utf-8"), max_size=8).map(json.dumps) | st.sampled_from(
    ['"\\ud800"', '"\\udc00\\ud800"', '"\\/\\u0031"']
)
DOCUMENTS = st.recursive(
    NUMBERS | STRINGS | st.sampled_from(["true", "false", "null"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{' , '.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=4).map(
            lambda items: "{" + ",".join(f"{key} : {value}" for key, value in items) + "}"
        )
    ),
    max_leaves=15,
)


@given(DOCUMENTS, st.sampled_from(["utf-8", "utf-16", "utf-32-be"]))
def test_json_means_the_same_to_the_last_digit(text: str, charset: str) -> None:
    value = shape(text.encode(charset), "JSON", f"application/json; charset={charset}")
    assert _exact(value) == _exact(text)


@given(DOCUMENTS, st.integers(0, 2**32), st.sampled_from(list('0123456789eE+-."\\{}[],: uabdtn\n')))
@example('"\\uabc1"', 5, "-")
def test_json_with_a_character_changed_is_accepted_only_if_it_is_json(text: str, at: int, character: str) -> None:
    at %= len(text)
    changed = text[:at] + character + text[at + 1 :]
    try:
        json.loads(changed, parse_constant=lambda _: 1 / 0)
        valid = True
    except (ValueError, ZeroDivisionError):
        valid = False
    try:
        shape(changed.encode(), "JSON", None)
    except UpstreamError:
        assert not valid
    else:
        assert valid


# --- XML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('<a x="1"><b>2</b></a>', {"x": "1", "b": "2"}),
        ("<a>5</a>", "5"),
        ("<a>\n  five  \n</a>", "five"),
        ("<a/>", ""),
        ("<a> </a>", ""),
        ('<a x="1">5</a>', {"x": "1", "text": "5"}),
        ('<a x="1"> </a>', {"x": "1"}),
        ("<a><b/><b>2</b><c>3</c></a>", {"b": ["", "2"], "c": "3"}),
        ("<a><b/><b/><b/></a>", {"b": ["", "", ""]}),
        ("<a>one<b/> two <c/>\nthree</a>", {"b": "", "c": "", "text": "one two three"}),
        ("<a>on<!-- no -->e<![CDATA[ <two> ]]>&amp;&#65;</a>", "one <two> &A"),
        ('<a b="1"><b>2</b><b>3</b></a>', {"b": ["1", "2", "3"]}),
        ('<a text="1"><text>2</text>3</a>', {"text": ["1", "2", "3"]}),
        ('<n:a xmlns:n="urn:x" n:k="1" k="2"><n:b/><b/></n:a>', {"{urn:x}k": "1", "k": "2", "{urn:x}b": "", "b": ""}),
        (
            '<a xmlns="urn:x"><b xml:lang="de">1</b></a>',
            {"{urn:x}b": {"{http://www.w3.org/XML/1998/namespace}lang": "de", "text": "1"}},
        ),
        ("<a>\u00a01</a>", "\u00a01"),
        ("<!DOCTYPE a [<!ELEMENT a ANY>]><a>1</a>", "1"),
    ],
)
def test_xml_becomes_members(text: str, value: Any) -> None:
    assert _value(text, "XML", "text/xml") == value


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 9))


@pytest.mark.parametrize(
    "text",
    [
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><a>&l8;</a>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY % e SYSTEM "http://127.0.0.1/"> %e;]><a/>',
        '<!DOCTYPE a [<!NOTATION n SYSTEM "n"><!ENTITY e SYSTEM "x" NDATA n>]><a/>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>',
        '<!DOCTYPE a PUBLIC "p" "http://127.0.0.1/a.dtd"><a/>',
        '<!DOCTYPE a [<!ATTLIST a b CDATA "default">]><a/>',
        "<a>&nbsp;</a>",
        "<a>&#xD800;</a>",
        "<a>&#0;</a>",
        "<a>\x00</a>",
        "<a><b></a>",
        "<a>",
        "<a/><a/>",
        "text",
        " ",
        '<a x="1" x="2"/>',
        "<n:a/>",
        '\n<?xml version="1.0"?><a/>',
    ],
)
def test_hostile_or_broken_xml_is_refused(text: str) -> None:
    assert _error(text.encode(), "XML").code == "PARSE_ERROR"


@pytest.mark.parametrize("close", [True, False])
def test_two_hundred_thousand_levels_of_xml_are_refused(close: bool) -> None:
    assert "levels" in _error(b"<a>" * 200_000 + b"</a>" * 200_000 * close, "XML").message


def test_five_hundred_levels_of_xml_with_siblings_are_fine() -> None:
    value = shape(b"<a><a/>" * 499 + b"<z>1</z>" + b"</a>" * 499, "XML", None)
    assert value.count(b'{"a":["",') == 498
    assert orjson.loads(value)["a"][0] == ""


def test_a_long_namespace_on_many_elements_is_out_of_proportion() -> None:
    body = b'<a xmlns="' + b"u" * 100_000 + b'">' + b"<b><c/></b>" * 10_000 + b"</a>"
    assert _error(body, "XML").code == "UPSTREAM_TOO_LARGE"


# --- CSV


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a,b\n1,2\n3,4\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        ("a,b", []),
        ('a,b\r\n"x\r\ny, z","say ""hi"""\r\n', [{"a": "x\r\ny, z", "b": 'say "hi"'}]),
        ("\n\na,b\n\n1,2\n\n", [{"a": "1", "b": "2"}]),
        ("a,b,c\n1\n", [{"a": "1", "b": None, "c": None}]),
        ("a\n01234567890\n1e5\n", [{"a": "01234567890"}, {"a": "1e5"}]),
        ("a;b\n1;2", [{"a;b": "1;2"}]),
        ('a\n""\n', [{"a": ""}]),
        ("a\r1\r2\r", [{"a": "1"}, {"a": "2"}]),
    ],
)
def test_csv_becomes_a_list_of_objects(text: str, value: Any) -> None:
    assert _value(text, "CSV", "text/csv") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n1,2,3\n", "row 2"),
        ("a,b,a\n", "repeats a name"),
        ('a\n1\n"2', "line 3"),
        ('a\n"1"2\n', "line 2"),
        ("a\n\x00", "zero"),
    ],
)
def test_csv_that_would_lose_something_is_refused(text: str, said: str) -> None:
    error = _error(text.encode(), "CSV")
    assert error.code == "PARSE_ERROR"
    assert said in error.message


def test_a_csv_field_may_be_longer_than_the_modules_default() -> None:
    assert _value("a\n" + "x" * 200_000, "CSV") == [{"a": "x" * 200_000}]


@pytest.mark.parametrize("row", [b"\nx", b"\n" + b"," * 9_999])
def test_a_wide_header_over_many_rows_is_out_of_proportion(row: bytes) -> None:
    header = ",".join(f"{n:0100}" for n in range(10_000)).encode()
    assert _error(header + row * 1000, "CSV").code == "UPSTREAM_TOO_LARGE"


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=8)


@given(
    st.lists(FIELDS.filter(bool), min_size=2, max_size=5, unique=True).flatmap(
        lambda names: st.tuples(st.just(names), st.lists(st.lists(FIELDS, min_size=len(names), max_size=len(names)), max_size=5))
    )
)
def test_csv_written_by_a_writer_comes_back(table: tuple[list[str], list[list[str]]]) -> None:
    names, rows = table
    out = StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    assert _value(out.getvalue(), "CSV") == [dict(zip(names, row, strict=True)) for row in rows]


def test_shuffled_pieces_of_a_document_never_hang_or_raise_otherwise() -> None:
    source = random.Random(11)
    pieces = [b'{"a":', b"1e400", b"}", b'"\\ud800"', b",", b"[", b"]", b"<a>", b"</a>", b'"', b"\\"]
    for _ in range(300):
        body = b"".join(source.choices(pieces, k=9))
        for response_type in TYPES:
            try:
                shape(body, response_type, None)
            except UpstreamError as error:
                assert error.code == "PARSE_ERROR"  # noqa: PT017 - some are fine
