"""Which members a document has, which of them are its spec, and what a null among them means. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from broker_edge.core import spec as wire

# In the order in which people read them.
SPEC: Final = ("name", "description", "source", "caching", "cost_per_call", "billable", "budget", "metadata")
# What records have beside it: read here, or known and derived.
_BESIDE: Final = {
    *("data_source_id", "project_id", "status", "variables", "credentials"),
    *("runtime_params", "generation", "revision", "created_at", "last_updated_at"),
}
# Members that are objects with members of their own. What is not here (headers, params, body, metadata) belongs to the author.
_STRUCTS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "source": wire.Source,
    "source.retry": wire.Retry,
    "source.auth": wire.Auth,
    "caching": wire.Caching,
    "caching.ttl": wire.Duration,
    "cost_per_call": wire.Amount,
    "budget": wire.Budget,
}


def bare(spec: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """The spec without members that are null or empty by default: both mean the default."""
    kept: dict[str, Any] = {}
    for name, value in spec.items():
        path = f"{at}{name}"
        if path in _STRUCTS and isinstance(value, dict):
            value = bare(value, f"{path}.")
            if not value and path != "source":
                continue
        if value is not None:
            kept[name] = value
    if not at and kept.get("billable") is False:
        del kept["billable"]
    return kept


def unknown(document: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """The members that nobody reads, by their paths."""
    struct = _STRUCTS.get(at.rstrip("."))
    known = {*SPEC, *_BESIDE} if struct is None else {field.encode_name for field in msgspec.structs.fields(struct)}
    for name, value in document.items():
        path = f"{at}{name}"
        if name not in known:
            yield path
        elif path in _STRUCTS and isinstance(value, dict):
            yield from unknown(value, f"{path}.")
