"""Changes go over the interface in order, and secrets that are not named stay as they are."""

from __future__ import annotations

from typing import Any

import pytest

from broker_edge.core.redaction import MASK
from broker_edge.errors import CallerError, UpstreamError
from broker_edge.manifests.applying import carry_out, foretold, found, names_set, records, secrets_of
from broker_edge.manifests.changes import BESIDE, UNSET, compare, exported
from tests.manifests.test_changes import ID, OTHER_ID, SOURCE, document, record


class Interface:
    """Answers as told, by method and path; notes what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answers = {"records": [record()], "variables": [], "credentials": [], **answers}

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        self.asked.append((method, path.replace(ID, "{id}"), body))
        kind = path.rpartition("/")[2]
        if kind in ("variables", "credentials"):
            if method == "PUT":
                label = "name" if kind == "variables" else "credential_type"
                told = [{label: one.get(label), "is_set": True, "version": self._version(one, label, kind)} for one in body]
                return {"variables": told} if kind == "variables" else told
            return self.answers[kind]
        return self.answers["records"] if method == "GET" else record()

    def _version(self, given: Any, label: str, kind: str) -> int:
        """A new version for a new value, the old one for the mask and for `same`."""
        before = next((one["version"] for one in self.answers[kind] if one[label] == given[label]), 0)
        return before if before and given["value"] in (MASK, "same") else before + 1


async def test_a_missing_source_is_created_then_filled_then_published() -> None:
    edge = Interface()
    wanted = document(data_source_id=OTHER_ID, variables={"token": "a"}, credentials={"PASSWORD": "b"}, published=True)
    outcome = await carry_out(edge, compare([wanted], [], publish=False)[0])
    assert [(method, path) for method, path, _ in edge.asked if method != "GET"] == [
        ("POST", "/data-sources"),
        ("PUT", "/data-sources/{id}/variables"),
        ("PUT", "/data-sources/{id}/credentials"),
        ("POST", "/data-sources/{id}/publish"),
    ]
    assert edge.asked[0][2]["data_source_id"] == OTHER_ID
    assert (outcome.action, outcome.publish, outcome.variables, outcome.credentials) == (
        "create",
        True,
        {"token": "set"},
        {"PASSWORD": "set"},
    )


def done(edge: Interface) -> list[tuple[str, str]]:
    return [(method, path) for method, path, _ in edge.asked if method != "GET"]


async def test_what_is_as_it_should_be_is_not_asked_for() -> None:
    edge = Interface()
    outcome = await carry_out(edge, compare([document()], [record()], publish=False)[0])
    assert (done(edge), outcome.changed) == ([], False)


async def test_a_difference_is_one_update() -> None:
    edge = Interface()
    await carry_out(edge, compare([document(description="new")], [record()], publish=False)[0])
    assert done(edge) == [("PUT", "/data-sources/{id}")]


async def test_variables_that_are_not_named_stay() -> None:
    there = [{"name": name, "version": 2, "is_set": name != "unset"} for name in ("token", "other", "unset")]
    edge = Interface(variables=there)
    outcome = await carry_out(edge, compare([document(variables={"token": "new"})], [record()], publish=False)[0])
    assert edge.asked[-1][2] == [{"name": "token", "value": "new"}, {"name": "other", "value": MASK}]
    assert outcome.variables == {"token": "set", "other": BESIDE}


async def test_a_secret_with_the_value_that_it_has_is_unchanged() -> None:
    edge = Interface(
        variables=[{"name": "token", "version": 2, "is_set": True}],
        credentials=[{"credential_type": "PASSWORD", "version": 5, "is_set": True}],
    )
    wanted = document(variables={"token": "same"}, credentials={"PASSWORD": "same"})
    outcome = await carry_out(edge, compare([wanted], [record()], publish=False)[0])
    assert (outcome.variables, outcome.credentials) == ({"token": "unchanged"}, {"PASSWORD": "unchanged"})
    assert not outcome.changed


@pytest.mark.parametrize("word", ["credit_score", ID, ID.upper()])
async def test_a_source_is_found_by_name_and_by_id(word: str) -> None:
    assert (await found(Interface(), word))["data_source_id"] == ID


async def test_an_archived_source_is_found_by_its_id_alone() -> None:
    edge = Interface(records=[record("ARCHIVED")])
    assert (await found(edge, ID))["status"] == "ARCHIVED"
    with pytest.raises(CallerError) as unknown:
        await found(edge, "credit_score")
    assert unknown.value.code == "DATA_SOURCE_NOT_FOUND"


async def test_the_latest_archived_source_is_found_by_name_where_it_is_asked_for_and_no_other_has_the_name() -> None:
    gone = [record("ARCHIVED", data_source_id=one, last_updated_at=at) for one, at in ((OTHER_ID, "2026-02"), (ID, "2026-01"))]
    assert (await found(Interface(records=gone), "credit_score", archived=True))["data_source_id"] == OTHER_ID
    there = [*gone, record(data_source_id="living")]
    assert (await found(Interface(records=there), "credit_score", archived=True))["data_source_id"] == "living"


SECRETS = {
    "variables": [{"name": "kept", "version": 1, "is_set": True}, {"name": "empty", "version": 1, "is_set": False}],
    "credentials": [{"credential_type": "PASSWORD", "version": 1, "is_set": True}],
}


@pytest.mark.parametrize("dry_run", [False, True])
async def test_secrets_beside_the_document_are_told_and_left_alone(dry_run: bool) -> None:
    edge = Interface(**SECRETS)
    change = compare([document()], [record()], publish=False)[0]
    outcome = foretold(change, await secrets_of(edge, record())) if dry_run else await carry_out(edge, change)
    assert (outcome.variables, outcome.credentials) == ({"kept": BESIDE}, {"PASSWORD": BESIDE})
    assert (done(edge), outcome.changed) == ([], False)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_secrets_that_are_named_or_needed_and_not_set_are_told(dry_run: bool) -> None:
    edge = Interface(**SECRETS)
    source = {**SOURCE, "headers": {"X": "{{ env.needed }}"}, "auth": {"method": "basic"}}
    wanted = document(source=source, named=("kept", "empty", "API_KEY", "PASSWORD"))
    change = compare([wanted], [record(source=source)], publish=False)[0]
    outcome = foretold(change, await secrets_of(edge, record())) if dry_run else await carry_out(edge, change)
    assert outcome.variables == {"empty": UNSET, "needed": UNSET}
    assert outcome.credentials == {"API_KEY": UNSET, "CLIENT_ID": UNSET, "CLIENT_SECRET": UNSET}
    assert not outcome.changed


async def test_an_export_names_the_secrets_that_are_set() -> None:
    secrets = await secrets_of(Interface(**SECRETS), record())
    text = exported(record(), *(names_set(secrets, kind) for kind in ("variables", "credentials")))
    assert text.endswith("variables:\n- kept\ncredentials:\n- PASSWORD\n")


@pytest.mark.parametrize(
    "answer", [{"a": 1}, ["text"], [{"name": "a"}], [{"name": 1, "data_source_id": "x", "status": "DRAFT"}], None]
)
async def test_what_no_edge_answers_is_refused(answer: Any) -> None:
    with pytest.raises(UpstreamError) as refused:
        await records(Interface(records=answer))
    assert refused.value.code == "PARSE_ERROR"
    assert "no edge" in refused.value.message
