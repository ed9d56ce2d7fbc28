"""The same service as most would write it: FastAPI, Pydantic models in and out, redis-py, a GET for each request."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any
from uuid import UUID

import redis.asyncio
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Source(BaseModel):
    url: str
    method: str = "GET"
    headers: dict[str, str] = {}
    params: dict[str, str] = {}
    timeout: float = 30
    retry: dict[str, Any] | None = None
    response_type: str = "PLAIN_TEXT"


class Caching(BaseModel):
    enabled: bool = True
    ttl: int | None = None


class DataSource(BaseModel):
    data_source_id: UUID
    name: str
    source: Source
    caching: Caching = Caching()


class FetchRequest(BaseModel):
    data_source_spec: DataSource
    env_variables: dict[str, Any] = {}
    configured_params: dict[str, Any] = {}
    run_id: UUID


class FetchReply(BaseModel):
    data_object_id: UUID
    origin: str
    key: str
    value: Any
    start_time: float | None = None
    end_time: float | None = None
    duration: float | None = None
    error: dict[str, Any] | None = None


def application(redis_port: int) -> FastAPI:
    app = FastAPI()
    client = redis.asyncio.Redis(port=redis_port, max_connections=2048)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/fetch-data")
    async def fetch_data(request: FetchRequest) -> FetchReply:
        params = "&".join(f"{name}={value}" for name, value in sorted(request.configured_params.items()))
        text = f"{request.data_source_spec.data_source_id}:{params}"
        key = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        entry: Any = await client.get(f"bench:{key}")
        if entry is None:
            raise HTTPException(404)
        object_id, value = entry[:36].decode(), json.loads(entry[36:])
        return FetchReply(data_object_id=UUID(object_id), origin="CACHE", key=key, value=value)

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        backlog=4096,
        log_level="warning",
    )
