"""Documents are checked before anything is changed, and a refusal names file, document and member, never a value."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker_edge.manifests.changes import compare
from broker_edge.manifests.reading import Document, Refusal, read_documents

SOURCE = {"url": "https://bureau.example/score/{{ tax_id }}", "response_type": "JSON"}
CANARY = "s3cr3t-canary"
PROJECT = "9d1c2b3a-0000-4000-8000-00000000000f"


def read(
    tmp_path: Path, value: Any, environment: dict[str, str] | None = None, project: str | None = None, **options: bool
) -> list[Document]:
    file = tmp_path / "sources.yaml"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_documents([str(file)], (environment or {}).get, project, **options)


def one(**members: Any) -> dict[str, Any]:
    return {"name": "credit_score", "source": SOURCE, **members}


def test_one_document_a_list_and_several_documents_are_the_same(tmp_path: Path) -> None:
    first, second = one(), one(name="other")
    texts = [
        [first, second],
        f"{json.dumps(first)}\n---\n{json.dumps(second)}\n",
        f"--- {json.dumps([first])}\n--- {json.dumps(second)}",
    ]
    for text in texts:
        assert [document.name for document in read(tmp_path, text)] == ["credit_score", "other"]


def test_a_directory_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    for name, source in (("b.json", "b"), ("a.yaml", "a"), ("c.yml", "c"), ("notes.txt", "not this one")):
        (tmp_path / name).write_text(json.dumps(one(name=source)))
    assert [document.name for document in read_documents([str(tmp_path)], {}.get)] == ["a", "b", "c"]


def test_standard_input_is_a_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(one())))
    assert read_documents(["-"], {}.get)[0].name == "credit_score"


def test_a_null_stands_for_the_default(tmp_path: Path) -> None:
    source = {**SOURCE, "timeout": None, "retry": {"max_retries": 1, "backoff_factor": None}, "auth": None}
    spec = read(tmp_path, one(source=source, caching=None, budget=None, billable=False))[0].spec
    assert spec == {"name": "credit_score", "source": {**SOURCE, "retry": {"max_retries": 1}}}


def test_a_body_keeps_its_nulls(tmp_path: Path) -> None:
    spec = read(tmp_path, one(source={**SOURCE, "method": "POST", "body": {"a": None}}))[0].spec
    assert spec["source"]["body"] == {"a": None}


def test_statuses_may_be_written_as_numbers(tmp_path: Path) -> None:
    text = "name: a\nsource: {url: 'https://b.example/'}\ncaching: {enabled: true, negative_ttl: {404: 60}}\n"
    assert read(tmp_path, text)[0].spec["caching"]["negative_ttl"] == {"404": 60}


def test_a_record_of_the_registry_is_a_document(tmp_path: Path) -> None:
    record = one(
        status="PUBLISHED", variables=["token"], runtime_params=["tax_id"], created_at="2026-11-21T00:00:00Z", generation=3
    )
    document = read(tmp_path, record)[0]
    assert (document.published, document.variables, document.ignored) == (True, None, ())


def test_members_that_nobody_reads_are_named(tmp_path: Path) -> None:
    source = {**SOURCE, "timout": 3, "headers": {"X-Any": "1"}, "retry": {"max_retry": 1}}
    document = read(tmp_path, one(source=source, cashing={}, metadata={"any": 1}), allow_unknown=True)[0]
    assert sorted(document.ignored) == ["cashing", "source.retry.max_retry", "source.timout"]


def test_secrets_come_from_the_environment_from_files_or_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(f"line\n{CANARY}\n")
    variables = {"a": {"env": "TOKEN"}, "b": 7, "c": None, "d": True}
    credentials = {"CLIENT_KEY": {"file": "key.pem"}, "CLIENT_ID": "me"}
    document = read(tmp_path, one(variables=variables, credentials=credentials), {"TOKEN": CANARY})[0]
    assert document.variables == {"a": CANARY, "b": 7, "c": None, "d": True}
    assert document.credentials == {"CLIENT_KEY": f"line\n{CANARY}", "CLIENT_ID": "me"}


def test_secrets_may_be_named_without_values(tmp_path: Path) -> None:
    document = read(tmp_path, one(variables=["token"], credentials=["API_KEY"]))[0]
    assert (document.named, document.variables, document.credentials) == (("token", "API_KEY"), None, None)


NAMES = "abcdefghij"
BOMB = "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(NAMES))
REFUSED: dict[str, tuple[Any, str]] = {
    "text": ("just text", "must be a data source"),
    "yaml": ("a: [", "line 1"),
    "empty": ("", "no document"),
    "name missing": ({"source": SOURCE}, "name is required"),
    "source missing": ({"name": "a"}, "source is required"),
    "url": (one(source={"url": "ftp://x/"}), "source.url"),
    "ttl": (one(caching={"enabled": True, "ttl": -1}), "caching.ttl"),
    "template": (one(source={"url": "https://b.example/{{ a + 1 }}"}), "source.url"),
    "cost": (one(cost_per_call="much"), "cost_per_call"),
    "id": (one(data_source_id="7"), "data_source_id: must be a UUID"),
    "project": (one(project_id=PROJECT), "project_id: is not the project"),
    "status": (one(status="ARCHIVED"), "status: must be DRAFT or PUBLISHED"),
    "variables": (one(variables="token"), "variables: must be an object"),
    "variable list": (one(variables={"token": [CANARY]}), "variables.token: must be text"),
    "variable place": (one(variables={"token": {"env": "A", "file": CANARY}}), "variables.token: must name one place"),
    "variable other place": (one(variables={"token": {"vault": CANARY}}), "variables.token: must name one place"),
    "variable unset": (
        one(variables={"token": {"env": "NOBODY_SET_IT"}}),
        "variables.token: names a variable of the environment that is not set: NOBODY_SET_IT",
    ),
    "variable file": (one(variables={"token": {"file": "nowhere"}}), "variables.token: names a file that can't be read"),
    "budget member": (one(budget={"call": 3}), "sources.yaml: budget.call: is not known"),
    "retry member": (one(source={**SOURCE, "retrry": {}}), "source.retrry: is not known"),
    "ttl member": (one(caching={"tttl": 3}), "caching.tttl: is not known"),
    "unknown member": (one(cashing={}), "cashing: is not known"),
    "named variable": (one(variables=["PASSWORD"]), "variables.PASSWORD: is a credential"),
    "named credential": (one(credentials=["TOKEN"]), "credentials.TOKEN: must be one of"),
    "aliases": ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + BOMB, "its aliases stand for more than"),
    "reserved": (one(variables={"PASSWORD": CANARY}), "variables.PASSWORD: is a credential"),
    "credential": (one(credentials={"TOKEN": CANARY}), "credentials.TOKEN: must be one of CLIENT_ID"),
    "credential number": (one(credentials={"PASSWORD": 7}), "credentials.PASSWORD: must be text"),
    "credential empty": (one(credentials={"PASSWORD": ""}), "credentials.PASSWORD: must be text and not empty"),
    "bytes": ("name: a\nsource: {url: 'https://b.example/', body: {x: !!binary aGk=}}", "source.body.x: is no type"),
    "names": ("name: a\nsource: {url: 'https://b.example/', headers: {true: a}}", "source.headers: must have text"),
    "itself": ("&a [*a]", "nested too deeply"),
    "a list of lists": ([[one()]], "must be a data source"),
    "itself inside": ("name: a\nsource: &a {url: 'https://b.example/', body: *a}", "nested too deeply"),
}


@pytest.mark.parametrize(("value", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_file_and_the_member_and_no_value(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(tmp_path, value, {"A": CANARY})
    message = str(refused.value)
    assert words in message
    assert "sources.yaml" in message or words == "no document"
    assert CANARY not in message


def test_a_refusal_names_the_document_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"sources\.yaml, document 2: source is required"):
        read(tmp_path, [one(), {"name": "b"}])


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"document 2 \(credit_score\): name: is that of .*document 1"):
        read(tmp_path, [one(), one()])


@pytest.mark.parametrize("make", [lambda path: path / "none.yaml", lambda path: path], ids=["missing", "empty directory"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(Refusal, match=r"No such file|holds no \.yaml"):
        read_documents([str(make(tmp_path))], {}.get)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(Refusal, match="is not UTF-8"):
        read_documents([str(tmp_path)], {}.get)


def test_the_project_of_a_document_may_be_the_one_that_is_meant(tmp_path: Path) -> None:
    assert read(tmp_path, one(project_id=PROJECT.upper()), project=PROJECT)


def test_the_readme_s_example_can_be_applied(tmp_path: Path) -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    start = lines.index("    name: credit_score")
    text = "\n".join(line[4:] for line in lines[start : lines.index("", start)])
    (tmp_path / "api_key.txt").write_text(CANARY)
    document = read(tmp_path, text, {"BUREAU_TOKEN": "t"})[0]
    assert (document.published, document.variables, document.credentials) == (True, {"token": "t"}, {"API_KEY": CANARY})
    assert compare([document], [], publish=False)[0].action == "create"
