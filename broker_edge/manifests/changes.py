"""What documents ask to be changed, told before it is done: a source's action, its differences, its secrets by name. Pure.

What may change and what counts as a change are the registry's own rules (core/lifecycle.py): so a refusal comes before anything
is done, and a document that says the same in other words changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from uuid import UUID

from broker_edge.core.auth import CREDENTIALS, OutboundAuth
from broker_edge.core.lifecycle import compiled, new_record, revised
from broker_edge.core.record import TERMS, Draft, SourceRecord
from broker_edge.core.spec import ROOT
from broker_edge.errors import CallerError
from broker_edge.manifests.members import SPEC, bare
from broker_edge.manifests.reading import Document, Refusal
from broker_edge.manifests.yaml_text import dump_document

_NO_ID: Final = UUID(int=0)

Record = Mapping[str, Any]
Action = Literal["create", "update", "unchanged"]
UNSET: Final = "not set"
BESIDE: Final = "set, not in the document"


@dataclass(frozen=True, slots=True)
class Change:
    """One document beside what there is; `record` is None where the source is missing.

    `variables` are those that its templates can't do without, `auth` says which credentials it needs.
    """

    document: Document
    record: Record | None
    action: Action
    publish: bool
    diff: tuple[str, ...]
    variables: tuple[str, ...] = ()
    auth: OutboundAuth | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One document after its turn, or after a dry run. Secrets by name: `set` and `unchanged`, in a dry run what was given.

    Beside them `UNSET` ones, which the source needs or the document names, and set ones that the document does not name.
    """

    name: str
    data_source_id: str | None
    action: Action
    publish: bool
    diff: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        secrets = (*self.variables.values(), *self.credentials.values())
        return self.action != "unchanged" or self.publish or any(state not in ("unchanged", UNSET, BESIDE) for state in secrets)


def compare(documents: Sequence[Document], records: Iterable[Record], *, publish: bool) -> list[Change]:
    """Each document with the source of its name among `records`; raises `Refusal` for what can't be had."""
    there = {record["name"]: record for record in records if record["status"] != "ARCHIVED"}
    return [_compared(document, there.get(document.name), publish) for document in documents]


def _compared(document: Document, record: Record | None, publish: bool) -> Change:
    wanted = document.published or publish
    try:
        new = new_record(_draft(document), _NO_ID, None, 0.0)
        needs = (new.variables, compiled(new).auth)
        if record is None:
            return Change(document, None, "create", wanted, _diff({}, document.spec, document.name), *needs)
        before = _kept(record)
        changes = revised(before, _draft(document), 0.0) is not before
    except CallerError as error:
        raise Refusal(f"{document.place}: {error.message.removeprefix(f'{ROOT}.')}") from None
    diff = _diff(described(record), document.spec, document.name) if changes else ()
    return Change(document, record, "update" if changes else "unchanged", wanted and record["status"] == "DRAFT", diff, *needs)


def gaps(change: Change, variables: Collection[str], credentials: Collection[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What is to be told of the secrets whose names are set by then: those that are lacking, and those beside the document."""
    document = change.document
    named = {name: name in CREDENTIALS for name in document.named}
    lacking = change.auth.missing(credentials) if change.auth else ()
    return (
        _gaps([*(name for name in named if not named[name]), *change.variables], variables, document.variables, document.named),
        _gaps([*(name for name in named if named[name]), *lacking], credentials, document.credentials, document.named),
    )


def _gaps(
    wanted: Iterable[str], there: Collection[str], given: Mapping[str, Any] | None, named: Collection[str]
) -> dict[str, str]:
    unset = dict.fromkeys((name for name in wanted if name not in there), UNSET)
    return unset | dict.fromkeys((name for name in sorted(there) if name not in named and name not in (given or {})), BESIDE)


def _draft(document: Document) -> Draft:
    return Draft(**_parts(document.spec), data_source_id=UUID(document.data_source_id) if document.data_source_id else None)


def _kept(record: Record) -> SourceRecord:
    return SourceRecord(UUID(record["data_source_id"]), None, **_parts(described(record)), status=record["status"])


def _parts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a spec, as the registry sorts them."""
    return {
        **{name: spec.get(name) for name in ("name", "source", "description", "metadata")},
        "caching": spec.get("caching", {}),
        "terms": {name: spec[name] for name in TERMS if name in spec},
    }


def described(record: Record) -> dict[str, Any]:
    """A record's spec, as a document has it."""
    return bare({name: record[name] for name in SPEC if name in record})


def exported(record: Record, variables: Iterable[str] = (), credentials: Iterable[str] = ()) -> str:
    """A record as a document that `apply` takes back: without ids, so that it can go elsewhere, and without secrets' values.

    `variables` and `credentials` are the names of those that are set; names that templates need are told beside them.
    """
    document = described(record)
    if record["status"] == "PUBLISHED":
        document["status"] = "PUBLISHED"
    for kind, names in (("variables", [*(record.get("variables") or ()), *variables]), ("credentials", credentials)):
        if listed := list(dict.fromkeys(names)):
            document[kind] = listed
    return dump_document(document)


def _diff(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Unified, of both as YAML; the order of members makes no difference."""
    old, new = _lines(before), _lines(after)
    labels = (f"{name} (as it is)" if before else "(missing)", f"{name} (as the document has it)")
    return tuple(difflib.unified_diff(old, new, *labels, lineterm=""))


def _lines(spec: Mapping[str, Any]) -> list[str]:
    ordered = {name: _ordered(spec[name]) for name in SPEC if name in spec}
    return dump_document(ordered).splitlines() if ordered else []


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(item) for item in value] if isinstance(value, list) else value
