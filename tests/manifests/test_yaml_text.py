"""Documents say what JSON can say: nothing that looks like text becomes anything else, on the way in or out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.manifests.yaml_text import Unreadable, dump_document, load_documents

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@given(VALUES)
def test_what_is_written_is_read_back_as_it_was(value: Any) -> None:
    assert load_documents(dump_document(value)) == [value]


@given(VALUES)
def test_other_readers_of_yaml_understand_it_the_same(value: Any) -> None:
    assert yaml.safe_load(dump_document(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "NO",
        "yes",
        "off",
        "0123",
        "012345670",
        "01234567890",
        "2026-01-01",
        "12:30",
        "1_000",
        "0x1F",
        ".5",
        "name",
        "nullable",
        "truest",
        "falsely",
        "~x",
        ".inf",
    ],
)
def test_what_json_has_no_word_for_is_text(text: str) -> None:
    assert load_documents(f"value: {text}") == [{"value": text}]


def test_what_json_has_is_what_json_makes_of_it() -> None:
    text = "[~, null, , true, false, 0, -7, 185265683303854323630891050626, 1.5, 1e3, -0.25E-1]".replace(", ,", ",")
    assert load_documents(text) == [[None, None, True, False, 0, -7, 185265683303854323630891050626, 1.5, 1000.0, -0.025]]


def test_a_stream_has_several_documents() -> None:
    assert load_documents("a: 1\n---\n- b\n---\n") == [{"a": 1}, ["b"], None]


def test_json_is_read_as_json() -> None:
    assert load_documents('{"a": "\\ud83d\\ude00", "b": [1.0, 1]}') == [{"a": "\U0001f600", "b": [1.0, 1]}]


def test_anchors_and_merges_share_what_sources_have_in_common() -> None:
    text = "- &one {a: 1, b: 2}\n- {<<: *one, b: 3}"
    assert load_documents(text) == [[{"a": 1, "b": 2}, {"a": 1, "b": 3}]]


def test_a_large_text_without_aliases_is_read() -> None:
    assert len(load_documents("- [1]\n" * 60_000)[0]) == 60_000


@pytest.mark.parametrize("merge", [False, True])
def test_few_lines_do_not_stand_for_more_than_can_be_handled(merge: bool) -> None:
    names = [", ".join([f"*n{n}"] * 10) for n in range(11)]
    lines = ["- &n0 {a: 1}", *(f"- &n{n} " + (f"{{<<: [{old}]}}" if merge else f"[{old}]") for n, old in enumerate(names, 1))]
    with pytest.raises(Unreadable, match="aliases stand for more than 100000 nodes"):
        load_documents("\n".join(lines))


def test_aliases_of_several_documents_are_counted_together() -> None:
    one = f"- &a [{', '.join(['1'] * 1000)}]\n- [{', '.join(['*a'] * 60)}]\n"
    assert len(load_documents(one)) == 1
    with pytest.raises(Unreadable, match="aliases stand for more than"):
        load_documents(f"{one}---\n{one}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 1: a stands there twice"),
        ("a: 1\nb: [", "line 2: "),
        ("a: 1\nb: *nobody", "line 2: "),
        ("a: !!python/object:os.system x", "line 1: "),
        ('{"a": NaN}', "NaN"),
        ("a: \x07", "neither YAML nor JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
    ],
    ids=["twice", "open", "alias", "tag", "nan", "control", "deep json", "deep yaml"],
)
def test_what_can_not_be_read_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        load_documents(text)
