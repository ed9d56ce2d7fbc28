"""No secret leaves the way that it has to go: planted everywhere, and everything that an edge leaves behind is searched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from redis.asyncio import Redis

from tests import servers
from tests.edges import Bureau, EdgeProcess, edge_process, http_reply, json_reply, request, spec
from tests.otlp import Receiver, receiver
from tests.upstreams import RawServer, Received, replying, server_context

_TABLES = ("data_object", "run_data_cache", "run_data_request", "alembic_version")


@dataclass
class Canaries:
    """Secrets by the place in which they are planted."""

    planted: dict[str, str] = field(default_factory=dict)

    def new(self, place: str) -> str:
        self.planted[place] = f"canary{secrets.token_hex(12)}"
        return self.planted[place]

    def found_in(self, data: bytes) -> list[str]:
        return [place for place, secret in self.planted.items() if secret.encode() in data]


@dataclass
class Stand:
    edge: EdgeProcess
    bureau: Bureau
    untrusted: str
    traces: Receiver
    canaries: Canaries
    redis: servers.Valkey | None
    database: str | None

    def asking(self, place: str, path: str = "/", **members: Any) -> dict[str, Any]:
        """A request whose secret stands in a header and in the URL's query, beside what `members` say."""
        secret = self.canaries.new(place)
        extra = {name: members.pop(name) for name in ("mode", "run_id") if name in members}
        url = members.pop("url", self.bureau.url)
        members = {"headers": {"Authorization": "Bearer {{ env.secret }}"}, "timeout": 10, **members}
        return request(spec(f"{url}{path}?key={{{{ env.secret }}}}", **members), env_variables={"secret": secret}, **extra)


@contextlib.contextmanager
def _servers(kind: str, request: pytest.FixtureRequest) -> Iterator[tuple[servers.Valkey | None, str | None]]:
    if kind == "embedded":
        yield None, None
        return
    database = request.getfixturevalue("postgres_server").create()
    with servers.valkey() as redis:
        yield redis, database


@pytest.fixture(params=["embedded", "servers"])
async def stand(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stand]:
    canaries = Canaries()
    variables = {"log_level": "DEBUG", "OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with receiver() as traces, _servers(request.param, request) as (redis, database):
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = traces.url
        variables["OTEL_EXPORTER_OTLP_HEADERS"] = f"x-key={canaries.new('exporter header')}"
        if redis is not None and database is not None:
            # Both servers take any password of these users.
            variables["redis_url"] = redis.url.replace("redis://", f"redis://default:{canaries.new('Redis password')}@")
            variables["database_url"] = database.replace("broker@", f"broker:{canaries.new('database password')}@")
        else:
            variables["db_password"] = canaries.new("database password")
        tls = RawServer(replying(), tls=server_context("127.0.0.1"))
        async with Bureau(_answer).running() as bureau, tls:
            variables["allowed_private_hosts"] = "127.0.0.1"
            with edge_process(tmp_path, bureau.port, **variables) as edge:
                await edge.ready()
                yield Stand(edge, bureau, f"https://127.0.0.1:{tls.port}", traces, canaries, redis, database)


def _answer(got: Received) -> bytes:
    """Echoes what it gets into everything but bodies of successes."""
    secret = (got.get("authorization") or "").removeprefix("Bearer ")
    path = got.line.split()[1].partition("?")[0]
    echo = json.dumps({"you": secret, "sent": got.body.decode()}).encode()
    match path:
        case "/error":
            return http_reply(echo, 500, f"X-Echo: {secret}")
        case "/moved":
            return http_reply(echo, 302, f"Location: http://10.0.0.1/{secret}?{secret}")
        case "/nowhere":
            return http_reply(echo, 302, f"Location: ftp://{secret}")
        case "/garbage":
            return http_reply(f"<{secret}".encode(), 200, "Content-Type: application/json")
        case "/charset":
            return http_reply(b"{}", 200, f"Content-Type: application/json; charset={secret}")
        case "/coding":
            return http_reply(b"{}", 200, f"Content-Encoding: {secret}")
        case "/short":
            return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n{secret}\r\n".encode()
    return json_reply({"score": 700}, 200, f"Set-Cookie: a={secret}", f"X-Echo: {secret}")


def _successes(stand: Stand) -> list[dict[str, Any]]:
    everywhere = {
        "method": "POST",
        "headers": {"X-Key": "{{ env.secret }}", "Cookie": "a={{ secret }}"},
        "params": {"key": {"env": "secret"}},
        "body": {"key": "{{ secret }}", "deep": [{"env": "secret"}]},
    }
    varied = {"caching": {"enabled": True, "ttl": 60, "vary_env": ["secret"]}}
    literal = stand.canaries.new("literal of the spec")
    reserved = stand.asking("success beside reserved names")
    reserved["env_variables"] |= {name: stand.canaries.new(name) for name in ("CLIENT_SECRET", "PASSWORD")}
    return [
        stand.asking("success"),
        stand.asking("body", "/score/{{ env.secret }}", **everywhere),
        stand.asking("text body", method="POST", body="<a>{{ secret }}</a>", headers={"Content-Type": "text/xml"}),
        stand.asking("varied", **varied),
        stand.asking("never reused", caching={"enabled": True, "ttl": 0}),
        stand.asking("beside a literal", headers={"X-Key": literal}),
        stand.asking("retried", retry={"max_retries": 1, "backoff_factor": 0}),
        reserved,
    ]


def _failures(stand: Stand) -> list[tuple[str, Any]]:
    """Requests that fail, with their codes."""
    refused = {"url": f"http://127.0.0.1:{servers.free_port()}"}
    crlf = stand.asking("line end in a header")
    crlf["env_variables"]["secret"] += "\r\nX-More: 1"
    long = stand.asking("too long a value")
    long["env_variables"]["secret"] += "x" * 70_000
    host = stand.asking("host", url="http://{{ env.secret }}")
    host["env_variables"]["secret"] += ".0x7f.1"
    missing = stand.asking("missing variable", headers={"X-Key": "{{ other }}"})
    typed = stand.asking("wrong type")
    typed["env_variables"] = typed["env_variables"]["secret"]
    in_mode = stand.asking("mode")
    in_mode["mode"] = stand.canaries.new("value of mode")
    in_run = stand.asking("run")
    in_run["run_id"] = stand.canaries.new("value of run_id")
    in_method = stand.asking("method", method=stand.canaries.new("value of method"))
    in_url = stand.asking("URL", url=f"ftp://{stand.canaries.new('value of url')}")
    in_template = stand.asking("template", headers={"X-Key": f"{{{{ {stand.canaries.new('name in a template')}() }}}}"})
    in_retry = stand.asking("retry", retry={"max_retries": stand.canaries.new("value of max_retries")})
    return [
        ("UPSTREAM_STATUS", stand.asking("echo in an error", "/error", retry={"max_retries": 1, "backoff_factor": 0})),
        ("TARGET_DENIED", stand.asking("echo in a redirect", "/moved")),
        ("UPSTREAM_STATUS", stand.asking("echo in a bad redirect", "/nowhere")),
        ("PARSE_ERROR", stand.asking("echo in garbage", "/garbage")),
        ("PARSE_ERROR", stand.asking("echo in a charset", "/charset")),
        ("PARSE_ERROR", stand.asking("echo in a coding", "/coding")),
        ("UPSTREAM_INCOMPLETE", stand.asking("echo cut short", "/short")),
        ("CONNECT_ERROR", stand.asking("refused connection", **refused)),
        ("TLS_ERROR", stand.asking("TLS", url=stand.untrusted)),
        ("NOT_CACHED", stand.asking("not cached", mode="cache_only")),
        ("INVALID_VALUE", crlf),
        ("INVALID_VALUE", long),
        ("INVALID_VALUE", host),
        ("MISSING_VARIABLE", missing),
        ("INVALID_REQUEST", typed),
        ("INVALID_REQUEST", in_mode),
        ("INVALID_REQUEST", in_run),
        ("INVALID_DATA_SOURCE", in_method),
        ("INVALID_DATA_SOURCE", in_url),
        ("TEMPLATE_REJECTED", in_template),
        ("INVALID_DATA_SOURCE", in_retry),
        ("INVALID_REQUEST", b"{" + stand.canaries.new("no JSON").encode()),
    ]


async def _traffic(stand: Stand) -> list[bytes]:
    """Everything that failing callers, and whoever looks at the metrics, have read."""
    seen: list[bytes] = []
    async with httpx.AsyncClient(trust_env=False, timeout=60, base_url=stand.edge.url) as client:

        async def post(body: Any) -> httpx.Response:
            return await client.post("/v1/fetch-data", content=body if isinstance(body, bytes) else json.dumps(body))

        successes = _successes(stand)
        for body in [*successes, *successes]:
            answer = await post(body)
            assert answer.status_code == 200, answer.text
            seen.append(_whole(answer))
        for code, body in _failures(stand):
            answer = await post(body)
            assert answer.json()["error"]["code"] == code, (code, answer.text)
            seen.append(_whole(answer))
        stand.bureau.gate.clear()
        answer = await post(stand.asking("time-out", timeout=0.3))
        assert answer.json()["error"]["code"] == "TIMEOUT"
        seen.append(_whole(answer))
        stand.bureau.gate.set()
        seen += [_whole(await client.get(path)) for path in ("/metrics", "/readyz", "/health", "/openapi.json", "/nothing")]
    return seen


def _whole(answer: httpx.Response) -> bytes:
    return json.dumps(dict(answer.headers)).encode() + answer.content


async def _redis_content(stand: Stand) -> list[bytes]:
    if stand.redis is None:
        return []
    async with Redis.from_url(stand.redis.url) as redis:
        keys = await redis.keys("*")
        values = [await redis.get(key) for key in keys if await redis.type(key) == b"string"]
    assert len(values) == len(keys) > 5
    return [*keys, *values]


def _database_content(stand: Stand) -> list[bytes]:
    if stand.database is None:
        return []  # SQLite's files are among those of the data directory
    content: list[bytes] = []
    with psycopg.connect(stand.database) as connection:
        found = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
        ).fetchall()
        for schema, name in found:
            rows = connection.execute(sql.SQL("SELECT * FROM {} t").format(sql.Identifier(schema, name))).fetchall()
            content += [bytes(cell) if isinstance(cell, bytes) else str(cell).encode() for row in rows for cell in row]
    assert {name for _, name in found} >= set(_TABLES)
    return content


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _revealing(data: bytes, own: Sequence[str]) -> list[str]:
    """What of this machine stands in `data`."""
    return [text for text in ("Traceback (most recent call last)", "site-packages", *own) if text.encode() in data]


async def test_no_secret_and_no_path_is_in_anything_that_an_edge_leaves_behind(stand: Stand, tmp_path: Path) -> None:
    seen = await _traffic(stand)
    kept = await _redis_content(stand)
    if stand.redis is not None:
        # A connection that breaks is the moment at which libraries like to quote URLs.
        stand.redis.kill()
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            answer = await client.post(f"{stand.edge.url}/v1/fetch-data", json=stand.asking("without Redis"))
        assert answer.status_code == 200
    running = _files(tmp_path)  # SQLite's write-ahead log and the spool go away when the process ends
    assert await asyncio.to_thread(stand.edge.stop) == 0
    files = {f"{name} while it ran": data for name, data in running.items()} | _files(tmp_path)
    spans = b"".join(stand.traces.raw)
    places = {"replies": b"\n".join(seen), "Redis": b"\n".join(kept), "spans": spans, **files}
    places["database"] = b"\n".join(_database_content(stand))

    assert len(stand.traces.spans) > 50
    assert stand.edge.log.count('"event":"answer"') > 30
    assert stand.edge.log.count('"event":"flight"') > 5
    leaks = {place: found for place, data in places.items() if (found := stand.canaries.found_in(data))}
    assert leaks == {}
    own = (str(tmp_path), sys.prefix, str(Path(__file__).parents[2]))
    revealed = {place: found for place, data in places.items() if (found := _revealing(data, own))}
    assert revealed == {}
    for line in stand.edge.log.splitlines():
        assert isinstance(json.loads(line), dict)
    # The search finds what is there: the upstream got every secret that was to go there.
    arrived = b"".join(call.head + call.body for call in stand.bureau.calls)
    assert {"success", "body", "text body", "varied", "retried", "echo in garbage"} <= set(stand.canaries.found_in(arrived))
