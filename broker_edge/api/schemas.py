"""The models that the OpenAPI page shows. The front validates by itself (api/fetch.py): these only describe."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


class Retry(BaseModel):
    max_retries: int = Field(0, ge=0, le=10)
    backoff_factor: float = Field(0.5, ge=0, le=60, description="seconds; exponential with full jitter")
    status_forcelist: list[int] = [500, 502, 503, 504]
    attempt_timeout: float | None = Field(None, gt=0, le=300, description="seconds for one attempt; unset: the whole timeout")


class Auth(BaseModel):
    """How the edge proves who it is; the credentials come in `env_variables`, or are kept with a registered data source."""

    model_config = ConfigDict(populate_by_name=True)

    method: Literal["basic", "bearer", "api_key", "mtls"]
    token_url: str | None = Field(None, description="bearer: the token endpoint (OAuth 2)")
    grant_type: Literal["client_credentials", "password", "refresh_token"] | None = Field(None, description="bearer")
    scope: str | None = Field(None, description="bearer: scopes, separated by spaces")
    client_auth: Literal["basic", "post"] | None = Field(None, description="bearer: how the client authenticates; basic")
    location: Literal["header", "query"] | None = Field(None, alias="in", description="api_key: where it goes; header")
    name: str | None = Field(None, description="api_key: the name of the header or query parameter")
    client_certificate: bool | None = Field(
        None, description="present CLIENT_CERTIFICATE with CLIENT_KEY (PEM) beside the method"
    )
    ca_bundle: str | None = Field(None, description="PEM; trusted beside the public authorities")


class Amount(BaseModel):
    amount: float | str | None = Field(None, description="a decimal with six places at most; text keeps it exact")
    currency: str | None = Field(None, description="ISO 4217")


class Budget(BaseModel):
    amount: float | str | None = Field(None, description="what may be spent in a day (UTC), in the currency of cost_per_call")
    calls: int | None = Field(None, ge=0, description="how many calls may be made in a day (UTC)")
    per: Literal["day"] | None = None


class HttpSource(BaseModel):
    url: str = Field(examples=["https://api.example.com/users/{{ username }}"])
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"] = "GET"
    headers: dict[str, Any] = {}
    params: dict[str, Any] = {}
    body: dict[str, Any] | list[Any] | str | None = None
    timeout: float = Field(30, gt=0, le=300, description="seconds for the whole fetch, retries included")
    retry: Retry | None = None
    response_type: Literal["JSON", "XML", "CSV", "PLAIN_TEXT"] = "PLAIN_TEXT"
    auth: Auth | None = None
    idempotency_key_header: str | None = Field(None, description="the header by which the upstream knows a repeated call")


class Caching(BaseModel):
    enabled: bool = False
    ttl: float | dict[str, float] | None = Field(None, description="seconds, or days/hours/minutes/seconds; null never expires")
    vary_env: list[str] = Field([], description="secrets that tell entries apart")
    stale_while_revalidate: float | None = Field(None, ge=0, description="seconds past ttl: served while it is refilled")
    stale_if_error: float | None = Field(None, ge=0, description="seconds past ttl: served where the refill fails")
    negative_ttl: dict[str, float] | None = Field(None, description="status -> seconds for which the failure is remembered")


class DataSourceSpec(BaseModel):
    data_source_id: UUID
    name: str
    source: HttpSource
    caching: Caching | None = None
    cost_per_call: Amount | float | str | None = None
    billable: bool | None = Field(None, description="a call is never repeated where it may have been charged")
    budget: Budget | float | str | None = None


class Terms(BaseModel):
    run_id: UUID
    configured_params: dict[str, Any] | None = None
    project_id: UUID | None = None
    mode: Literal["live", "refresh", "cache_only"] | None = None
    max_age: float | None = Field(None, ge=0, description="seconds")
    max_stale: float | None = Field(None, ge=0, description="seconds")


class CredentialRef(BaseModel):
    data_source_id: UUID
    var_name: str


class FetchDataRequest(Terms):
    data_source_spec: DataSourceSpec
    env_variables: dict[str, Any] | None = None
    credential_refs: dict[str, CredentialRef] | None = Field(
        None,
        max_length=256,
        description="secrets that the registry keeps, by variable; a credential goes under its own name, for `source.auth` alone",
    )


class DataBrokerRequest(Terms):
    data_source_name: str


class FetchError(BaseModel):
    code: str
    message: str
    source: Literal["caller", "upstream", "edge"]
    retryable: bool
    upstream_status: int | None = None


class FetchDataReply(BaseModel):
    data_object_id: UUID | None
    origin: Literal["REQUEST", "CACHE"] | None
    key: str | None
    value: Any
    start_time: float | None
    end_time: float | None
    duration: float | None
    error: FetchError | None


class Problem(FetchDataReply):
    type: str
    title: str
    status: int
    detail: str
    upstream_status: int | None = None


class Health(BaseModel):
    service: str
    status: Literal["ok", "degraded", "down"]
    version: str
    timestamp: str


class Dependency(BaseModel):
    status: Literal["ok", "degraded", "down"]
    kind: str


class Readiness(BaseModel):
    status: Literal["ok", "degraded", "down"]
    dependencies: dict[str, Dependency]
