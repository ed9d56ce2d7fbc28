"""What would happen is told before it happens: actions, differences without noise, refusals by the registry's own rules."""

from __future__ import annotations

from typing import Any

import pytest

from broker_edge.manifests.applying import GIVEN, foretold
from broker_edge.manifests.changes import compare, described, exported
from broker_edge.manifests.reading import Document, Refusal
from broker_edge.manifests.yaml_text import load_documents

ID = "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c01"
OTHER_ID = "0b5e7c1a-6f0d-4c55-9a3e-1d2f3a4b5c02"
SOURCE = {"url": "https://bureau.example/score/{{ tax_id }}", "response_type": "JSON"}
SPEC = {"name": "credit_score", "source": SOURCE, "caching": {"enabled": True, "ttl": 3600}}


def document(**members: Any) -> Document:
    beside = {
        name: members.pop(name)
        for name in ("published", "data_source_id", "variables", "credentials", "named")
        if name in members
    }
    return Document("sources.yaml (credit_score)", "credit_score", {**SPEC, **members}, **beside)


def record(status: str = "DRAFT", **members: Any) -> dict[str, Any]:
    """As the interface answers it: every member there, nulls where nothing was given."""
    nulls = dict.fromkeys(("description", "metadata", "cost_per_call", "budget"))
    derived = {"runtime_params": ["tax_id"], "variables": [], "generation": 4, "created_at": "2026-11-21T00:00:00Z"}
    return {"data_source_id": ID, "project_id": None, "billable": False, **SPEC, **nulls, **derived, "status": status, **members}


def test_a_missing_source_is_created_and_all_of_it_is_new() -> None:
    change = compare([document()], [], publish=False)[0]
    assert (change.action, change.publish) == ("create", False)
    body = [line for line in change.diff if not line.startswith(("---", "+++", "@@"))]
    assert body
    assert all(line.startswith("+") for line in body)


def test_a_source_that_is_as_it_should_be_is_unchanged() -> None:
    outcome = foretold(compare([document()], [record()], publish=False)[0])
    assert (outcome.action, outcome.publish, outcome.diff, outcome.changed) == ("unchanged", False, (), False)


def test_the_same_in_other_words_is_unchanged() -> None:
    same = document(
        caching={"ttl": {"hours": 1}, "enabled": True}, source={"response_type": "JSON", "url": SOURCE["url"], "method": "GET"}
    )
    change = compare([same], [record()], publish=False)[0]
    assert (change.action, change.diff) == ("unchanged", ())


def test_a_difference_is_shown_line_by_line() -> None:
    change = compare([document(caching={"enabled": True, "ttl": 60})], [record()], publish=False)[0]
    assert change.action == "update"
    assert [line for line in change.diff if line[0] in "+-" and line[:3] not in ("+++", "---")] == ["-  ttl: 3600", "+  ttl: 60"]


def test_a_member_that_is_left_out_goes_back_to_its_default() -> None:
    change = compare([document()], [record(description="of old")], publish=False)[0]
    assert change.action == "update"
    assert "-description: of old" in change.diff


@pytest.mark.parametrize(("member", "flag"), [(True, False), (False, True)])
@pytest.mark.parametrize(("there", "publish"), [("DRAFT", True), ("PUBLISHED", False)])
def test_publishing_is_asked_for_by_a_member_or_an_option(member: bool, flag: bool, there: str, publish: bool) -> None:
    assert compare([document(published=member)], [record(there)], publish=flag)[0].publish == publish


def test_a_published_source_takes_what_may_change() -> None:
    change = compare([document(description="new", source={**SOURCE, "timeout": 3})], [record("PUBLISHED")], publish=False)[0]
    assert change.action == "update"


@pytest.mark.parametrize(
    ("members", "member"),
    [
        ({"source": {**SOURCE, "url": "https://other.example/"}}, "source.url"),
        ({"cost_per_call": "0.50"}, "cost_per_call"),
        ({"data_source_id": OTHER_ID}, "data_source_id"),
    ],
)
def test_what_a_published_source_can_not_become_is_refused_beforehand(members: dict[str, Any], member: str) -> None:
    with pytest.raises(Refusal, match=rf"sources\.yaml \(credit_score\): {member} can't change"):
        compare([document(**members)], [record("PUBLISHED")], publish=False)


def test_a_template_that_names_what_its_auth_uses_is_refused_beforehand() -> None:
    source = {**SOURCE, "auth": {"method": "basic"}, "headers": {"X-Who": "{{ env.CLIENT_ID }}"}}
    with pytest.raises(Refusal, match="CLIENT_ID"):
        compare([document(source=source)], [], publish=False)


def test_an_archived_source_leaves_its_name_to_others() -> None:
    assert compare([document()], [record("ARCHIVED")], publish=False)[0].action == "create"


def test_secrets_are_foretold_by_name() -> None:
    outcome = foretold(compare([document(variables={"token": "s3cr3t"}, credentials={"PASSWORD": "p4ss"})], [], publish=False)[0])
    assert (outcome.variables, outcome.credentials) == ({"token": GIVEN}, {"PASSWORD": GIVEN})
    assert "s3cr3t" not in repr(outcome)


@pytest.mark.parametrize("status", ["DRAFT", "PUBLISHED"])
def test_what_is_exported_says_all_and_can_go_elsewhere(status: str) -> None:
    terms = {"cost_per_call": {"amount": "3.50", "currency": "EUR"}, "billable": True, "budget": {"calls": 10}}
    full = record(status, description="a score", metadata={"owner": "risk"}, variables=["token"], **terms)
    text = exported(full)
    read = load_documents(text)[0]
    assert {name: read[name] for name in described(full)} == described(full)
    assert read.get("status") == ("PUBLISHED" if status == "PUBLISHED" else None)
    assert read["variables"] == ["token"]
    assert not read.keys() & {"data_source_id", "project_id", "created_at", "generation"}
