"""A data source as the registry keeps it: its spec as it was given, its place in its life, and what is known of its secrets."""

from __future__ import annotations

import re
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from broker_edge.core.template import NAME_LIMIT, RESERVED
from broker_edge.errors import CallerError

Status = Literal["DRAFT", "PUBLISHED", "ARCHIVED"]
STATUSES: Final[tuple[Status, ...]] = ("DRAFT", "PUBLISHED", "ARCHIVED")
SecretKind = Literal["variable", "credential"]
TERMS: Final = ("cost_per_call", "billable", "budget")

VARIABLES_LIMIT: Final = 1_000  # of one data source: each is read, sealed and remembered with all the others

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class SecretMeta(msgspec.Struct, frozen=True):
    """What may be told of a secret. `version` grows with every change; `value_type` is JSON's, null where it is unset."""

    secret_id: UUID
    kind: SecretKind
    name: str
    version: int
    value_type: Literal["string", "number", "boolean", "null"]
    created_at: float
    last_updated_at: float

    @property
    def is_set(self) -> bool:
        return self.value_type != "null"


class SourceRecord(msgspec.Struct, frozen=True):
    """One data source; times in epoch seconds.

    `source` and `caching` are the JSON of the spec's members, `terms` its members about money (`cost_per_call`, `billable`,
    `budget`), those that were given. `generation` is part of every cache key and grows with every change of the source;
    `revision` grows with every change of the source or of its secrets. Both begin with the time of the creation.
    """

    data_source_id: UUID
    project_id: UUID | None
    name: str
    source: dict[str, Any]
    caching: dict[str, Any]
    terms: dict[str, Any]
    description: str | None = None
    metadata: dict[str, Any] | None = None
    status: Status = "DRAFT"
    runtime_params: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    generation: int = 1
    revision: int = 1
    created_at: float = 0.0
    last_updated_at: float = 0.0
    secrets: tuple[SecretMeta, ...] = ()

    def spec(self) -> bytes:
        """The `data_source_spec` that `core.source.parse_source` compiles."""
        members = {"data_source_id": self.data_source_id, "name": self.name, "source": self.source, "caching": self.caching}
        return msgspec.json.encode({**members, **self.terms})


class Draft(msgspec.Struct, frozen=True):
    """What somebody wants a data source to be, as parsed JSON; members as in `SourceRecord`, the id where it was chosen."""

    name: str
    source: dict[str, Any]
    caching: dict[str, Any] = {}
    terms: dict[str, Any] = {}
    description: str | None = None
    metadata: dict[str, Any] | None = None
    data_source_id: UUID | None = None


class SealedSecret(msgspec.Struct, frozen=True):
    """A secret as it is kept: `sealed` is guard.vault's envelope, None where the secret is known and unset."""

    secret_id: UUID
    data_source_id: UUID
    project_id: UUID | None
    kind: SecretKind
    name: str
    version: int
    sealed: str | None
    value_type: Literal["string", "number", "boolean", "null"]


class Reading(msgspec.Struct, frozen=True):
    """Who reads secrets, and what for: the row of the audit."""

    purpose: Literal["fetch", "test", "rotation", "change"]
    at: float
    run_id: UUID | None = None
    trace_id: str | None = None


def check_variable_name(name: str) -> None:
    """Raises `CallerError` INVALID_REQUEST where no variable of a data source may have that name."""
    if name in RESERVED:
        raise CallerError("INVALID_REQUEST", f"{name} is a credential and can't be a variable")
    if not name or len(name) > NAME_LIMIT or _CONTROL.search(name):
        raise CallerError("INVALID_REQUEST", f"a variable's name must be 1 to {NAME_LIMIT} characters, no control characters")
