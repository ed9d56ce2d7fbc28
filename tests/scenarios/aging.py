"""Answers that were got some time ago, and sources that say what becomes of them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from broker_edge.core.exchange import DataObject, Entry
from broker_edge.core.plan import make_plan
from broker_edge.core.source import parse_source
from tests.edges import Answer, Bureau, InProcess, http_reply, json_reply, request, spec

TTL = 60
OLD = {"score": 1}
NEW = {"score": 700}


def source(bureau: Bureau, *, members: Mapping[str, Any] | None = None, **caching: Any) -> dict[str, Any]:
    return spec(f"{bureau.url}/score/{{{{ id }}}}", caching={"enabled": True, "ttl": TTL, **caching}, **(members or {}))


def ask(data_source: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    return request(data_source, {"id": "7"}, **members)


def key_of(body: Mapping[str, Any]) -> str:
    compiled = parse_source(json.dumps(body["data_source_spec"]).encode())
    return make_plan(compiled, body["configured_params"], body.get("env_variables") or {}).key


async def kept(edge: InProcess, body: Mapping[str, Any], age: float, *, hot: bool = True, **members: Any) -> uuid.UUID:
    """An answer to `body` that an instance got `age` seconds ago; only the durable tier still holds it where it isn't `hot`."""
    key, got_at, object_id = key_of(body), time.time() - age, uuid.uuid4()
    known = uuid.UUID(body["data_source_spec"]["data_source_id"])
    text = json.dumps(OLD).encode()
    item = DataObject(object_id, known, key, text, got_at, "application/json", "JSON", 200, reusable=True, **members)
    await edge.edge.durable.store([item])
    if hot:
        await edge.edge.hot.put(key, Entry(object_id, got_at, text), None)
    return object_id


def fails(bureau: Bureau, status: int = 503, *headers: str) -> None:
    bureau._answer = lambda _: http_reply(b"{}", status, "Content-Type: application/json", *headers)


def recovers(bureau: Bureau) -> None:
    bureau._answer = lambda _: json_reply(NEW)


async def settled(edge: InProcess) -> None:
    """Wait for what goes on behind a reply."""
    assert await edge.edge.background.drain(30) == 0


def summary(answer: Answer) -> tuple[str, Any, str]:
    """Origin, value and Cache-Status."""
    reply = answer.json()
    return reply["origin"], reply["value"], answer.headers["cache-status"].removeprefix("broker-edge; ")


class Clock:
    """The time of an edge's pauses, and the dice that they are drawn with: the longest each time."""

    def __init__(self, *edges: InProcess) -> None:
        self.now = 1000.0
        for edge in edges:
            backoff: Any = edge.edge.broker._kitchen.backoff
            backoff._now = lambda: self.now
            backoff._random = lambda: 1.0
