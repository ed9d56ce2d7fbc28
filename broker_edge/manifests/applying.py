"""Changes carried out over the interface, one document after the other: create or update, secrets, publish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from broker_edge.core.redaction import MASK
from broker_edge.errors import CallerError
from broker_edge.manifests.changes import Change, Outcome, Record
from broker_edge.manifests.reading import Scalar

SOURCES = "/data-sources"


class Edge(Protocol):
    """An edge's interface; see `backends.edge_client`."""

    async def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any: ...


async def records(edge: Edge, **query: Any) -> list[Record]:
    """The project's sources, without the archived ones unless asked for."""
    return list(await edge.call("GET", SOURCES, **query))


async def found(edge: Edge, name_or_id: str) -> Record:
    """The source of that name that isn't archived, or of that id; raises `CallerError` DATA_SOURCE_NOT_FOUND."""
    for record in await records(edge, include_archived="true"):
        named = record["name"] == name_or_id and record["status"] != "ARCHIVED"
        if named or record["data_source_id"] == name_or_id.lower():
            return record
    raise CallerError("DATA_SOURCE_NOT_FOUND", f"there is no data source of the name or id {name_or_id}")


async def carry_out(edge: Edge, change: Change) -> Outcome:
    """Make it so; what is as it should be is left alone. Secrets that did not change are not changed by the edge either."""
    document, record = change.document, change.record
    if record is None:
        body = document.spec if document.data_source_id is None else {**document.spec, "data_source_id": document.data_source_id}
        record = await edge.call("POST", SOURCES, body)
    elif change.action == "update":
        record = await edge.call("PUT", f"{SOURCES}/{record['data_source_id']}", document.spec)
    path = f"{SOURCES}/{record['data_source_id']}"
    variables = await _set_variables(edge, path, document.variables)
    credentials = await _set_credentials(edge, path, document.credentials)
    if change.publish:
        await edge.call("POST", f"{path}/publish")
    return _outcome(change, record["data_source_id"], variables, credentials)


def foretold(change: Change) -> Outcome:
    """What `carry_out` would do. Whether a secret's value is another one only the edge can say."""
    secrets = (dict.fromkeys(values or {}, "would be set") for values in (change.document.variables, change.document.credentials))
    return _outcome(change, change.record["data_source_id"] if change.record else None, *secrets)


def _outcome(change: Change, source_id: str | None, variables: Mapping[str, str], credentials: Mapping[str, str]) -> Outcome:
    return Outcome(change.document.name, source_id, change.action, change.publish, change.diff, variables, credentials)


async def _set_variables(edge: Edge, path: str, values: Mapping[str, Scalar] | None) -> Mapping[str, str]:
    """Set those that are named and keep the others: the interface takes the whole list."""
    if not values:
        return {}
    before = _metas(await edge.call("GET", f"{path}/variables"))
    # The mask, sent back, leaves a secret as it is.
    kept = [{"name": one["name"], "value": MASK} for one in before if one["name"] not in values and one["is_set"]]
    given = [{"name": name, "value": value} for name, value in values.items()]
    after = _metas(await edge.call("PUT", f"{path}/variables", [*given, *kept]))
    return _states(before, after, "name", values)


async def _set_credentials(edge: Edge, path: str, values: Mapping[str, Scalar] | None) -> Mapping[str, str]:
    if not values:
        return {}
    before = await edge.call("GET", f"{path}/credentials")
    given = [{"credential_type": name, "value": value} for name, value in values.items()]
    after = await edge.call("PUT", f"{path}/credentials", given)
    return _states(before, after, "credential_type", values)


def _metas(answer: Any) -> list[Record]:
    return list(answer["variables"] if isinstance(answer, dict) else answer)


def _states(before: list[Record], after: list[Record], name: str, values: Mapping[str, Scalar]) -> Mapping[str, str]:
    old, new = ({one[name]: (one.get("version"), one.get("is_set")) for one in metas} for metas in (before, after))
    return {one: "unchanged" if new.get(one) == old.get(one) else "set" for one in values}
