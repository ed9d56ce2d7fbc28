"""Changes carried out over the interface, one document after the other: create or update, secrets, publish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from broker_edge.core.redaction import MASK
from broker_edge.errors import CallerError, UpstreamError
from broker_edge.manifests.changes import Change, Outcome, Record, gaps
from broker_edge.manifests.reading import Scalar

SOURCES: Final = "/data-sources"
GIVEN: Final = "given (compared when applied)"
_LABELS: Final = {"variables": "name", "credentials": "credential_type"}

Secrets = Mapping[str, Sequence[Record]]  # what is told of a source's `variables` and `credentials`


class Edge(Protocol):
    """An edge's interface; see `backends.edge_client`."""

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any: ...


async def records(edge: Edge, **query: Any) -> list[Record]:
    """The project's sources, without the archived ones unless asked for."""
    return _shaped(await edge.call("GET", SOURCES, **query), "name", "data_source_id", "status")


async def found(edge: Edge, name_or_id: str, *, archived: bool = False) -> Record:
    """The source of that name, or of that id; raises `CallerError` DATA_SOURCE_NOT_FOUND.

    An archived one is found by its id; by its name, the latest of them, where `archived` says so and no other has the name.
    """
    there = await records(edge, include_archived="true")
    for record in there:
        named = record["name"] == name_or_id and record["status"] != "ARCHIVED"
        if named or record["data_source_id"] == name_or_id.lower():
            return record
    gone = [record for record in there if archived and record["name"] == name_or_id]
    if gone:
        return max(gone, key=lambda record: str(record.get("last_updated_at")))
    raise CallerError("DATA_SOURCE_NOT_FOUND", f"there is no data source of the name or id {name_or_id}")


async def secrets_of(edge: Edge, record: Record) -> Secrets:
    """What may be told of a source's secrets; nothing of an archived one's."""
    if record["status"] == "ARCHIVED":
        return {}
    path = f"{SOURCES}/{record['data_source_id']}"
    return {kind: _shaped(await edge.call("GET", f"{path}/{kind}"), label) for kind, label in _LABELS.items()}


def names_set(secrets: Secrets, kind: str) -> set[str]:
    return {one[_LABELS[kind]] for one in secrets.get(kind, ()) if one.get("is_set")}


async def carry_out(edge: Edge, change: Change) -> Outcome:
    """Make it so; what is as it should be is left alone. Secrets that did not change are not changed by the edge either."""
    document, record = change.document, change.record
    if record is None:
        body = document.spec if document.data_source_id is None else {**document.spec, "data_source_id": document.data_source_id}
        record = _one(await edge.call("POST", SOURCES, body))
    elif change.action == "update":
        record = _one(await edge.call("PUT", f"{SOURCES}/{record['data_source_id']}", document.spec))
    path = f"{SOURCES}/{record['data_source_id']}"
    before = await secrets_of(edge, record)
    variables = await _set_variables(edge, path, before["variables"], document.variables)
    credentials = await _set_credentials(edge, path, before["credentials"], document.credentials)
    if change.publish:
        await edge.call("POST", f"{path}/publish")
    return _outcome(change, record["data_source_id"], before, variables, credentials)


def foretold(change: Change, before: Secrets | None = None) -> Outcome:
    """What `carry_out` would do, where there is `before`. Whether a secret's value is another one only the edge can say."""
    given = (dict.fromkeys(values or {}, GIVEN) for values in (change.document.variables, change.document.credentials))
    return _outcome(change, change.record["data_source_id"] if change.record else None, before or {}, *given)


def _outcome(
    change: Change, source_id: str | None, before: Secrets, variables: Mapping[str, str], credentials: Mapping[str, str]
) -> Outcome:
    document = change.document
    kept = _by_then(before, "variables", document.variables), _by_then(before, "credentials", document.credentials)
    told = [{**beside, **states} for beside, states in zip(gaps(change, *kept), (variables, credentials), strict=True)]
    return Outcome(document.name, source_id, change.action, change.publish, change.diff, *told)


def _by_then(before: Secrets, kind: str, given: Mapping[str, Scalar] | None) -> set[str]:
    """The names that are set once those that are given are."""
    values = given or {}
    return {name for name in (*names_set(before, kind), *values) if values.get(name, "") is not None}


async def _set_variables(
    edge: Edge, path: str, before: Sequence[Record], values: Mapping[str, Scalar] | None
) -> Mapping[str, str]:
    """Set those that are named and keep the others: the interface takes the whole list."""
    if not values:
        return {}
    # The mask, sent back, leaves a secret as it is.
    kept = [{"name": one["name"], "value": MASK} for one in before if one["name"] not in values and one["is_set"]]
    given = [{"name": name, "value": value} for name, value in values.items()]
    answer = await edge.call("PUT", f"{path}/variables", [*given, *kept])
    after = _shaped(answer["variables"] if isinstance(answer, dict) and "variables" in answer else answer, "name")
    return _states(before, after, "name", values)


async def _set_credentials(
    edge: Edge, path: str, before: Sequence[Record], values: Mapping[str, Scalar] | None
) -> Mapping[str, str]:
    if not values:
        return {}
    given = [{"credential_type": name, "value": value} for name, value in values.items()]
    after = _shaped(await edge.call("PUT", f"{path}/credentials", given), "credential_type")
    return _states(before, after, "credential_type", values)


def _states(before: Iterable[Record], after: Iterable[Record], name: str, values: Mapping[str, Scalar]) -> Mapping[str, str]:
    old, new = ({one[name]: (one.get("version"), one.get("is_set")) for one in metas} for metas in (before, after))
    return {one: "unchanged" if new.get(one) == old.get(one) else "set" for one in values}


def _shaped(answer: Any, *members: str) -> list[Record]:
    """A list of objects with `members` that are text; raises UpstreamError PARSE_ERROR for what no edge answers."""
    if isinstance(answer, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(m), str) for m in members) for one in answer
    ):
        return answer
    raise UpstreamError("PARSE_ERROR", "what answers there is no edge: its answer is none of an edge's")


def _one(answer: Any) -> Record:
    return _shaped([answer], "data_source_id", "status")[0]
