"""The rules of a data source's life: what is derived, what may change when, and what counts as a change."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker_edge.core.lifecycle import archived, compiled, new_record, published, revised
from broker_edge.core.record import Draft, SourceRecord, check_variable_name
from broker_edge.core.template import RESERVED
from broker_edge.errors import CallerError

ID = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")
PROJECT = uuid.UUID("660f9511-f39c-42e5-b827-557766551111")
URL = "https://api.example.com/score/{{ tax_id }}"
WHOLE: dict[str, Any] = {
    "url": URL,
    "method": "POST",
    "headers": {"Authorization": "Bearer {{ env.token }}", "X-Who": "{{ who }}"},
    "params": {"b": ["{{ tax_id }}", "2"], "a": {"env": "region"}},
    "body": {"id": {"param": "tax_id", "value_type": "str"}, "key": "{{ env.token }}"},
    "timeout": 10,
    "retry": {"max_retries": 2},
    "response_type": "JSON",
}


def draft(source: dict[str, Any] | None = None, /, **members: Any) -> Draft:
    """`members` go into the draft; those of `source` beside its URL."""
    return Draft(**{"name": "score", "source": {"url": URL} | (source or {}), **members})


def record(source: dict[str, Any] | None = None, /, **members: Any) -> SourceRecord:
    return new_record(draft(source, **members), ID, PROJECT, 1000.0)


def public(source: dict[str, Any] | None = None, /, **members: Any) -> SourceRecord:
    return published(record(source, **members), 1001.0)


def refused(code: str, call: Callable[[], object]) -> str:
    with pytest.raises(CallerError) as caught:
        call()
    assert caught.value.code == code
    return caught.value.message


def test_a_new_record_is_a_draft_with_what_follows_from_its_templates() -> None:
    made = record(WHOLE)
    assert (made.data_source_id, made.project_id, made.status) == (ID, PROJECT, "DRAFT")
    assert (made.created_at, made.last_updated_at) == (1000.0, 1000.0)
    assert made.runtime_params == ("tax_id", "who")
    assert made.variables == ("token", "region")
    assert compiled(made).request.method == "POST"


def test_a_draft_may_bring_its_id() -> None:
    own = uuid.uuid4()
    assert record(data_source_id=own).data_source_id == own


def test_a_source_that_is_made_again_under_its_id_has_another_revision_and_generation() -> None:
    one, other = new_record(draft(), ID, None, 1000.0), new_record(draft(), ID, None, 1000.001)
    assert one.revision != other.revision
    assert one.generation != other.generation


def test_money_terms_are_kept_and_nothing_that_only_looks_like_them() -> None:
    made = record(terms={"cost_per_call": "1.50", "billable": True, "budget": None, "name": "another"})
    assert made.terms == {"cost_per_call": "1.50", "billable": True}
    assert made.name == "score"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("INVALID_DATA_SOURCE", draft({"method": "TRACE"})),
        ("INVALID_DATA_SOURCE", draft(name="")),
        ("INVALID_DATA_SOURCE", draft({"timeout": 0})),
        ("INVALID_DATA_SOURCE", draft(caching={"ttl": -1})),
        ("INVALID_DATA_SOURCE", draft(terms={"cost_per_call": "free"})),
        ("INVALID_DATA_SOURCE", draft(description="a\x00b")),
        ("INVALID_DATA_SOURCE", draft(description="\ud800")),
        ("INVALID_DATA_SOURCE", draft(metadata={"a": float("nan")})),
        ("INVALID_DATA_SOURCE", draft(metadata={"a": "\ud800"})),
        ("INVALID_DATA_SOURCE", draft({"body": {"a": float("inf")}})),
        ("INVALID_DATA_SOURCE", draft(metadata={"a": 10**5000})),
        ("TEMPLATE_REJECTED", draft({"headers": {"X": "{{ f() }}"}})),
        *(("TEMPLATE_REJECTED", draft({"headers": {"X": f"{{{{ env.{name} }}}}"}})) for name in sorted(RESERVED)),
    ],
)
def test_what_can_not_be_kept_is_refused(code: str, wanted: Draft) -> None:
    refused(code, lambda: new_record(wanted, ID, None, 1.0))
    refused(code, lambda: revised(record(), wanted, 1.0))


def test_a_bottomless_document_is_refused() -> None:
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    message = refused("INVALID_DATA_SOURCE", lambda: record(metadata={"a": deep}))
    assert message == "data_source_spec.metadata is nested too deeply"


def test_no_template_may_name_what_the_authentication_uses() -> None:
    auth = {"method": "api_key", "name": "X-Key"}
    message = refused("TEMPLATE_REJECTED", lambda: record({"auth": auth, "params": {"leak": "{{ env.API_KEY }}"}}))
    assert "API_KEY" in message
    assert record({"params": {"key": "{{ env.API_KEY }}"}}).variables == ("API_KEY",)


def test_a_change_raises_generation_and_revision() -> None:
    old = record()
    new = revised(old, draft({"method": "POST"}), 1005.0)
    assert (new.generation, new.revision) == (old.generation + 1, old.revision + 1)
    assert (new.created_at, new.last_updated_at) == (1000.0, 1005.0)


def test_a_clock_that_goes_back_takes_no_change_back_in_time() -> None:
    assert revised(record(), draft({"method": "POST"}), 3.0).last_updated_at == 1000.0


@pytest.mark.parametrize("make", [record, public])
@pytest.mark.parametrize(
    "said",
    [
        draft(),
        draft({"method": None, "headers": None, "params": None, "body": None, "timeout": None, "retry": None, "auth": None}),
        draft({"method": "GET", "headers": {}, "params": {}, "timeout": 30, "response_type": "PLAIN_TEXT"}),
        draft({"retry": {"max_retries": None, "backoff_factor": 0.5, "status_forcelist": [504, 503, 502, 500]}}),
        draft(caching={"enabled": False, "ttl": None}, terms={"billable": False, "budget": None}),
        draft(data_source_id=ID),
    ],
)
def test_null_absent_and_default_are_no_change(make: Callable[[], SourceRecord], said: Draft) -> None:
    old = make()
    assert revised(old, said, 2000.0) is old


@pytest.mark.parametrize("make", [record, public])
def test_the_same_time_to_live_in_other_units_is_no_change(make: Callable[..., SourceRecord]) -> None:
    old = make(caching={"enabled": True, "ttl": 3600})
    assert revised(old, draft(caching={"enabled": True, "ttl": {"hours": 1}}), 2000.0) is old


@pytest.mark.parametrize("make", [record, public])
@pytest.mark.parametrize(
    "said",
    [
        draft(description="new"),
        draft(metadata={"team": "credit"}),
        draft(caching={"enabled": True, "ttl": 60}),
        draft(caching={"stale_if_error": 60}),
        draft({"timeout": 5}),
        draft({"retry": {"max_retries": 3}}),
    ],
)
def test_what_may_change_at_any_time(make: Callable[[], SourceRecord], said: Draft) -> None:
    old = make()
    new = revised(old, said, 2000.0)
    assert new.generation == old.generation + 1
    assert new.status == old.status
    assert (new.description, new.metadata, new.caching) == (said.description, said.metadata, said.caching)
    assert compiled(new).timeout == compiled(revised(record(), said, 2000.0)).timeout


FIXED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("name", {}, {"name": "another"}),
    ("source.url", {"url": "https://api.example.com/other"}, {}),
    ("source.method", {"method": "PUT"}, {}),
    ("source.headers", {"headers": {"X-Who": "me"}}, {}),
    ("source.headers", {"headers": None}, {}),
    ("source.params", {"params": {"b": ["2", "{{ tax_id }}"], "a": {"env": "region"}}}, {}),
    ("source.body", {"body": "text"}, {}),
    ("source.response_type", {"response_type": "XML"}, {}),
    ("source.auth", {"auth": {"method": "basic"}}, {}),
    ("source.idempotency_key_header", {"idempotency_key_header": "X-Once"}, {}),
    ("cost_per_call", {}, {"terms": {"cost_per_call": "2"}}),
    ("billable", {}, {"terms": {"cost_per_call": "1", "billable": True}}),
    ("budget", {}, {"terms": {"cost_per_call": "1", "budget": {"calls": 3}}}),
]


@pytest.mark.parametrize(("member", "source", "members"), FIXED)
def test_a_published_source_keeps_what_it_asks_and_what_it_costs(
    member: str, source: dict[str, Any], members: dict[str, Any]
) -> None:
    terms = {"terms": {"cost_per_call": "1"}}
    said = draft(WHOLE | source, **(terms | members))
    message = refused("INVALID_DATA_SOURCE", lambda: revised(public(WHOLE, **terms), said, 2000.0))
    assert message == f"data_source_spec.{member} can't change once the data source is published"
    old = record(WHOLE, **terms)
    assert revised(old, said, 2000.0).generation == old.generation + 1, "a draft may change in everything"


def test_a_published_source_takes_the_order_of_members_and_another_spelling_for_no_change() -> None:
    old = public(WHOLE)
    said = WHOLE | {
        "params": {"a": "{{ env.region }}", "b": ["{{tax_id}}", "2"]},
        "headers": {"X-Who": "{{who}}", "Authorization": "Bearer {{env.token}}"},
    }
    assert revised(old, draft(said), 2000.0) is old
    longer = revised(old, draft(said | {"timeout": 60}), 2000.0)
    assert longer.source == old.source | {"timeout": 60}, "the words that the key is made of stay"
    assert compiled(longer).fingerprint == compiled(old).fingerprint


def test_a_published_source_goes_back_to_the_default_where_nothing_is_said() -> None:
    new = revised(public({"timeout": 5, "retry": {"max_retries": 3}}), draft(), 2000.0)
    assert new.source == {"url": URL}


def test_members_that_the_edge_does_not_know_are_kept_and_are_a_change_of_a_draft() -> None:
    old = record({"source_type": "http"})
    assert revised(old, draft({"source_type": "http", "other": None}), 2000.0) is old
    assert revised(old, draft({"source_type": "file"}), 2000.0).source["source_type"] == "file"


def test_members_that_the_edge_does_not_know_keep_nobody_from_writing_a_published_source_back() -> None:
    old = public({"source_type": "http"})
    assert revised(old, draft({"path": "/somewhere"}), 2000.0) is old


ALIKE = [1, 1.0, True]  # for Python they are the same
TYPES = [(old, new) for old in ALIKE for new in ALIKE if old is not new]


@pytest.mark.parametrize("make", [record, public])
@pytest.mark.parametrize(("old", "new"), TYPES)
def test_a_number_of_another_type_is_a_change_of_what_describes_a_source(
    make: Callable[..., SourceRecord], old: Any, new: Any
) -> None:
    changed = revised(make(metadata={"a": [old]}), draft(metadata={"a": [new]}), 2000.0)
    assert changed.metadata is not None
    assert type(changed.metadata["a"][0]) is type(new)


@pytest.mark.parametrize(("old", "new"), TYPES)
def test_a_number_of_another_type_is_a_change_of_what_is_asked(old: Any, new: Any) -> None:
    for member in ("body", "unknown"):
        changed = revised(record({member: {"a": [old]}}), draft({member: {"a": [new]}}), 2000.0)
        assert type(changed.source[member]["a"][0]) is type(new)
    with_hole = {"method": "POST", "body": {"a": old, "b": "{{ tax_id }}"}}
    said = draft(with_hole | {"body": {"a": new, "b": "{{tax_id}}"}})
    assert "source.body" in refused("INVALID_DATA_SOURCE", lambda: revised(public(with_hole), said, 2000.0))
    assert revised(public(with_hole), draft(with_hole | {"body": {"b": "{{tax_id}}", "a": old}}), 2000.0).generation == (
        public().generation
    )


def test_a_name_has_no_more_characters_than_every_database_can_index() -> None:
    longest = "\U0001f600" * 255
    assert record(name=longest).name == longest
    message = refused("INVALID_DATA_SOURCE", lambda: record(name=longest + "a"))
    assert message == "data_source_spec.name must be at most 255 characters long"
    refused("INVALID_DATA_SOURCE", lambda: revised(record(), draft(name=longest + "a"), 2000.0))


def test_another_id_is_refused() -> None:
    refused("INVALID_DATA_SOURCE", lambda: revised(record(), draft(data_source_id=uuid.uuid4()), 2000.0))


def test_publishing_is_a_change_once() -> None:
    old = record()
    new = published(old, 1001.0)
    assert (new.status, new.generation, new.revision) == ("PUBLISHED", old.generation + 1, old.revision + 1)
    assert published(new, 1002.0) is new


def test_an_archived_source_can_not_be_changed() -> None:
    gone = archived(public(), 1002.0)
    assert gone.status == "ARCHIVED"
    refused("DATA_SOURCE_NOT_FOUND", lambda: revised(gone, draft(), 2000.0))
    refused("DATA_SOURCE_NOT_FOUND", lambda: published(gone, 2000.0))
    refused("DATA_SOURCE_NOT_FOUND", lambda: archived(gone, 2000.0))


def test_a_draft_that_this_version_can_not_read_can_be_put_right_and_not_published() -> None:
    strange = msgspec.structs.replace(record(), source={"url": URL, "method": "TRACE"})
    refused("INVALID_DATA_SOURCE", lambda: published(strange, 2000.0))
    assert revised(strange, draft(), 2000.0).source == {"url": URL}


@pytest.mark.parametrize("name", [*sorted(RESERVED), "", "a" * 256, "a\nb", "\ud800"])
def test_names_that_no_variable_may_have(name: str) -> None:
    refused("INVALID_REQUEST", lambda: check_variable_name(name))


def test_other_names_are_free() -> None:
    for name in ("token", "API_KEY", "client id", "caf\u00e9"):
        check_variable_name(name)
