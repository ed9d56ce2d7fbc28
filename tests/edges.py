"""Edges for tests: in this process over ASGI (`in_process`), or as real processes on real ports (`EdgeProcess`)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from broker_edge.api.app import Front, front
from broker_edge.backends.migrations import migrate
from broker_edge.settings import PREFIX, Settings, load
from broker_edge.telemetry.logs import configure
from broker_edge.wiring import Edge, build
from tests.servers import bring_up, free_port
from tests.upstreams import Peer, RawServer, Received


def spec(url: str, **members: Any) -> dict[str, Any]:
    """A data source with an id of its own; `members` go into `source`, but `caching` beside it."""
    caching = members.pop("caching", {"enabled": True, "ttl": 3600})
    source = {"url": url, "response_type": "JSON", "timeout": 20, **members}
    return {"data_source_id": str(uuid.uuid4()), "name": "sample", "source": source, "caching": caching}


def request(data_source: Mapping[str, Any], params: Mapping[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {
        "data_source_spec": copy.deepcopy(dict(data_source)),
        "configured_params": dict(params or {}),
        "run_id": str(uuid.uuid4()),
        **members,
    }


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class InProcess:
    """An edge in this event loop; `post` goes through its ASGI application without a socket."""

    edge: Edge
    app: Front

    async def post(self, body: Any, headers: Mapping[str, str] | None = None, path: str = "/v1/fetch-data") -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call("POST", path, data, headers)

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path, b"", None)

    async def put(self, path: str, body: Any) -> Answer:
        return await self.call("PUT", path, json.dumps(body).encode(), {"content-type": "application/json"})

    async def call(self, method: str, path: str, data: bytes, headers: Mapping[str, str] | None) -> Answer:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "scheme": "http",
            "root_path": "",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        answer = Answer(0, {}, b"")

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        await self.app(scope, receive, send)
        return answer

    async def rows(self) -> list[Any]:
        """The audit rows that the database has once the journal is shipped."""
        assert await self.edge.journal.flush(10)
        return await table(self.edge.engine, "run_data_request")


async def table(engine: AsyncEngine, name: str) -> list[Any]:
    schema = "data_broker." if engine.dialect.name == "postgresql" else ""
    async with engine.connect() as connection:
        return list(await connection.execute(sa.text(f"SELECT * FROM {schema}{name}")))


def settings(data_dir: Path, bureau_port: int | None = None, **values: Any) -> Settings:
    allowed = f"127.0.0.1:{bureau_port}" if bureau_port else ""
    return load({}, data_dir=data_dir, **{"allowed_private_hosts": allowed, "log_level": "ERROR", **values})


def _copy_template(path: Path) -> None:
    """An embedded database that is up to date: to migrate each anew would be half of what many a test takes."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_template())


@lru_cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory(prefix="broker-edge-") as directory:
        path = Path(directory) / "edge.sqlite3"
        asyncio.run(bring_up(f"sqlite+aiosqlite:///{path}"))
        return path.read_bytes()  # the last connection that closes leaves nothing in the log


@contextlib.asynccontextmanager
async def in_process(chosen: Settings, *, migrated: bool = True) -> AsyncIterator[InProcess]:
    chosen.data_dir.mkdir(parents=True, exist_ok=True)
    if migrated and chosen.embedded:
        await asyncio.to_thread(_copy_template, Path(chosen.database.partition("///")[2]))
    edge = build(chosen, configure(chosen.log_level))
    if migrated:
        await migrate(edge.engine)
    await edge.start()
    try:
        yield InProcess(edge, front(edge))
    finally:
        await edge.stop()


@dataclass
class EdgeProcess:
    """`broker-edge serve` as its users run it."""

    data_dir: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    workers: int = 1
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.data_dir / "log").read_text()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._line(*arguments), env=self._env(), capture_output=True, text=True, check=False, timeout=60)

    def start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        line = self._line("serve", "--host", "127.0.0.1", "--port", str(self.port), "--workers", str(self.workers))
        with (self.data_dir / "log").open("ab") as output:
            self.process = subprocess.Popen(line, env=self._env(), stdout=output, stderr=output)

    async def ready(self) -> None:
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
            while True:
                assert self.process is not None
                assert self.process.poll() is None, self.log
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/healthz")).status_code == 200:
                        return
                await asyncio.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "broker_edge", *arguments]

    def _env(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "OTEL_"))}  # noqa: TID251
        return {**own, f"{PREFIX}DATA_DIR": str(self.data_dir), **self.environment}


@contextlib.contextmanager
def edge_process(data_dir: Path, bureau_port: int, **values: str) -> Iterator[EdgeProcess]:
    """A migrated edge process, started; killed at the end if it still runs. `values` are settings in lower case."""
    workers = int(values.pop("workers", "1"))
    environment = {f"{PREFIX}ALLOWED_PRIVATE_HOSTS": f"127.0.0.1:{bureau_port}"}
    environment |= {name if name.startswith("OTEL_") else f"{PREFIX}{name.upper()}": value for name, value in values.items()}
    edge = EdgeProcess(data_dir, environment, workers=workers)
    migrated = edge.command("migrate")
    assert migrated.returncode == 0, migrated.stderr
    edge.start()
    try:
        yield edge
    finally:
        edge.kill()


def json_reply(value: Any, status: int = 200, *headers: str) -> bytes:
    body = json.dumps(value).encode()
    return http_reply(body, status, "Content-Type: application/json", *headers)


def http_reply(body: bytes, status: int = 200, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Bureau:
    """A scripted upstream: counts its calls; `gate` holds answers back until it is set."""

    def __init__(self, answer: Callable[[Received], bytes] | None = None) -> None:
        self._answer = answer or (lambda _: json_reply({"score": 700}))
        self.calls: list[Received] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Bureau]:
        async with RawServer(self._serve) as server:
            self.port = server.port
            try:
                yield self
            finally:
                self.gate.set()

    async def _serve(self, peer: Peer) -> None:
        while True:
            got = await peer.receive()
            self.calls.append(got)
            self.arrived.set()
            await self.gate.wait()
            await peer.send(self._answer(got))
