"""The resources under /data-sources: what requests say, read by msgspec, and what is answered, shown on the OpenAPI page.

The answers' members are those of the predecessor's `vulkan_engine.schemas`, with some beside them. No model of an answer has a
place for a secret's value: where one is set, `value` is the mask, which says in a request that it stays as it is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from broker_edge.api.schemas import Amount, Budget, Caching, HttpSource
from broker_edge.core.record import TERMS, Draft, SecretMeta, SourceRecord
from broker_edge.core.redaction import MASK
from broker_edge.ports import ObjectNote

Scalar = str | int | float | bool | None
CREDENTIAL_TYPES = Literal[
    "CLIENT_ID", "CLIENT_SECRET", "USERNAME", "PASSWORD", "API_KEY", "REFRESH_TOKEN", "CLIENT_CERTIFICATE", "CLIENT_KEY"
]
_MASKED: Final = f"`{MASK}` where it is set, null where it is not"


class SourceIn(msgspec.Struct):
    """The body of a creation or a change; what `source` and the members about money hold is the core's to judge."""

    name: str
    source: dict[str, Any]
    caching: dict[str, Any] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    cost_per_call: Any = None
    billable: Any = None
    budget: Any = None
    data_source_id: UUID | None = None
    project_id: UUID | None = None

    def draft(self) -> Draft:
        terms = {name: value for name in TERMS if (value := getattr(self, name)) is not None}
        return Draft(self.name, self.source, self.caching or {}, terms, self.description, self.metadata, self.data_source_id)


class VariableIn(msgspec.Struct):
    name: str
    value: Scalar = None


class CredentialIn(msgspec.Struct):
    """Null takes the credential away; it has to be said."""

    credential_type: str
    value: str | None


class ProbeIn(msgspec.Struct):
    """A test's parameters and overriding variables, each under the predecessor's name or under that of a fetch."""

    params: dict[str, Any] | None = None
    configured_params: dict[str, Any] | None = None
    env_vars: dict[str, Any] | None = None
    env_variables: dict[str, Any] | None = None
    run_id: UUID | None = None


class DataSourceBody(BaseModel):
    name: str
    source: HttpSource
    caching: Caching | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    cost_per_call: Amount | float | str | None = None
    billable: bool | None = Field(None, description="a call is never repeated where it may have been charged")
    budget: Budget | float | str | None = None


class NewDataSource(DataSourceBody):
    data_source_id: UUID | None = Field(None, description="drawn where it is not given")
    project_id: UUID | None = Field(None, description="may stand in the query instead")


class DataSource(BaseModel):
    """A data source as it was given, and what follows from it."""

    data_source_id: UUID
    project_id: UUID | None
    name: str
    description: str | None
    source: dict[str, Any] = Field(description="as it was given; members that are null are left out")
    caching: dict[str, Any]
    metadata: dict[str, Any] | None
    cost_per_call: dict[str, Any] | float | str | None
    billable: bool
    budget: dict[str, Any] | float | str | None
    runtime_params: list[str] = Field(description="the templates' variables that a parameter or a variable may fill")
    variables: list[str] = Field(description="the templates' variables that only a variable may fill")
    status: Literal["DRAFT", "PUBLISHED", "ARCHIVED"]
    generation: int = Field(
        description="grows with every change, publishing included; what was cached under an earlier one is not served"
    )
    created_at: datetime
    last_updated_at: datetime

    @classmethod
    def of(cls, record: SourceRecord) -> DataSource:
        return cls(**members_of(record))


class DataSourceId(BaseModel):
    data_source_id: UUID


class Variable(BaseModel):
    name: str
    value: Scalar


class Credential(BaseModel):
    credential_type: CREDENTIAL_TYPES
    value: str | None = Field(min_length=1, description=f"null takes the credential away, `{MASK}` leaves it as it is")


class Secret(BaseModel):
    value: str | None = Field(description=_MASKED)
    is_set: bool
    value_type: Literal["string", "number", "boolean", "null"]
    version: int = Field(description="grows with every change of the value")
    created_at: datetime
    last_updated_at: datetime


class DataSourceEnvVar(Secret):
    name: str

    @classmethod
    def of(cls, meta: SecretMeta) -> DataSourceEnvVar:
        return cls(name=meta.name, **_told(meta))


class DataSourceVariables(BaseModel):
    data_source_id: UUID
    variables: list[DataSourceEnvVar]


class DataSourceCredential(Secret):
    credential_id: UUID
    data_source_id: UUID
    credential_type: str

    @classmethod
    def of(cls, record: SourceRecord, meta: SecretMeta) -> DataSourceCredential:
        return cls(credential_id=meta.secret_id, data_source_id=record.data_source_id, credential_type=meta.name, **_told(meta))


class DataObjectMetadata(BaseModel):
    data_object_id: UUID
    data_source_id: UUID
    key: str
    created_at: datetime

    @classmethod
    def of(cls, note: ObjectNote) -> DataObjectMetadata:
        return cls(
            data_object_id=note.object_id,
            data_source_id=note.data_source_id,
            key=note.key,
            created_at=time_of(note.created_at),
        )


class DataObject(DataObjectMetadata):
    value: Any


class DataSourceTestParams(BaseModel):
    params: dict[str, Any] | None = Field(None, description="configured parameters; `configured_params` is the same")
    env_vars: dict[str, Any] | None = Field(None, description="variables in place of stored ones; `env_variables` is the same")
    run_id: UUID | None = None


class DataSourceTestResponse(BaseModel):
    """What a test sent and got; secrets are masked wherever they appear."""

    test_id: UUID
    request_url: str | None
    request_headers: dict[str, str] | None
    status_code: int | None
    response_time_ms: float
    response_body: Any
    response_headers: dict[str, str] | None
    error: str | None
    error_code: str | None


# What routes read by themselves: FastAPI, which sees no parameter of such a type, doesn't know its schema.
BODIES: Final[dict[str, Any]] = models_json_schema(
    [(model, "validation") for model in (NewDataSource, DataSourceBody, Variable, Credential, DataSourceTestParams)],
    ref_template="#/components/schemas/{model}",
)[1]["$defs"]


def members_of(record: SourceRecord) -> dict[str, Any]:
    """A `DataSource` member by member, fit for msgspec too, which writes thousands in the time that models take for hundreds."""
    return {
        "data_source_id": record.data_source_id,
        "project_id": record.project_id,
        "name": record.name,
        "description": record.description,
        "source": _given(record.source),
        "caching": _given(record.caching),
        "metadata": record.metadata,
        "cost_per_call": record.terms.get("cost_per_call"),
        "billable": bool(record.terms.get("billable")),
        "budget": record.terms.get("budget"),
        "runtime_params": list(record.runtime_params),
        "variables": list(record.variables),
        "status": record.status,
        "generation": record.generation,
        "created_at": time_of(record.created_at),
        "last_updated_at": time_of(record.last_updated_at),
    }


def time_of(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)


def _told(meta: SecretMeta) -> dict[str, Any]:
    return {
        "value": MASK if meta.is_set else None,
        "is_set": meta.is_set,
        "value_type": meta.value_type,
        "version": meta.version,
        "created_at": time_of(meta.created_at),
        "last_updated_at": time_of(meta.last_updated_at),
    }


def _given(members: dict[str, Any]) -> dict[str, Any]:
    """Without nulls, which are the defaults of optional members: models of clients may have no place for them."""
    return {
        name: _given(value) if isinstance(value, dict) and name in ("retry", "auth") else value
        for name, value in members.items()
        if value is not None
    }
