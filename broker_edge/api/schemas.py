"""The models that the OpenAPI page shows. The front validates by itself (api/fetch.py): these only describe."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field


class Retry(BaseModel):
    max_retries: int = Field(0, ge=0, le=10)
    backoff_factor: float = Field(0.5, ge=0, le=60, description="seconds; exponential with full jitter")
    status_forcelist: list[int] = [500, 502, 503, 504]
    attempt_timeout: float | None = Field(None, gt=0, le=300, description="seconds for one attempt; unset: the whole timeout")


class HttpSource(BaseModel):
    url: str = Field(examples=["https://api.example.com/users/{{ username }}"])
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"] = "GET"
    headers: dict[str, Any] = {}
    params: dict[str, Any] = {}
    body: dict[str, Any] | list[Any] | str | None = None
    timeout: float = Field(30, gt=0, le=300, description="seconds for the whole fetch, retries included")
    retry: Retry | None = None
    response_type: Literal["JSON", "XML", "CSV", "PLAIN_TEXT"] = "PLAIN_TEXT"


class Caching(BaseModel):
    enabled: bool = False
    ttl: float | dict[str, float] | None = Field(None, description="seconds, or days/hours/minutes/seconds; null never expires")
    vary_env: list[str] = Field([], description="secrets that tell entries apart")


class DataSourceSpec(BaseModel):
    data_source_id: UUID
    name: str
    source: HttpSource
    caching: Caching | None = None


class FetchDataRequest(BaseModel):
    data_source_spec: DataSourceSpec
    env_variables: dict[str, Any] | None = None
    configured_params: dict[str, Any] | None = None
    run_id: UUID
    mode: Literal["live", "refresh", "cache_only"] | None = None
    max_age: float | None = Field(None, ge=0, description="seconds")
    max_stale: float | None = Field(None, ge=0, description="seconds")


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
