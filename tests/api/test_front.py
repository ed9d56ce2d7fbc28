"""The front over real sockets: framing, connections that live on, clients that leave half-way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.edges import Bureau, InProcess, in_process, request, settings, spec

_LIMIT = 64 * 1024


class _Quiet(uvicorn.Server):
    """Leaves the signals of the test process alone, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Served:
    edge: InProcess
    port: int
    bureau: Bureau

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/fetch-data"

    def body(self, **params: str) -> bytes:
        source = spec(f"{self.bureau.url}/score/{{{{ id }}}}")
        return json.dumps(request(source, {"id": "7", **params})).encode()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        return int(line.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))


def head(length: int | None, method: str = "POST", path: str = "/v1/fetch-data", *more: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: edge.test", framing, *more, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
async def served(tmp_path: Path, bureau: Bureau) -> AsyncIterator[Served]:
    async with in_process(settings(tmp_path, bureau.port, max_request_bytes=_LIMIT)) as edge, asyncio.TaskGroup() as group:
        config = uvicorn.Config(edge.app, host="127.0.0.1", port=0, lifespan="off", log_config=None, http="httptools", ws="none")
        server = _Quiet(config)
        task = group.create_task(server.serve())
        await server.listening.wait()
        try:
            yield Served(edge, server.servers[0].sockets[0].getsockname()[1], bureau)
        finally:
            server.should_exit = True
            await task


async def test_one_connection_carries_requests_one_after_the_other(served: Served) -> None:
    body = served.body()
    async with served.connected() as connection:
        for origin in ("REQUEST", "CACHE", "CACHE"):
            await connection.send(head(len(body)) + body)
            status, _, answer = await connection.reply()
            assert (status, json.loads(answer)["origin"]) == (200, origin)


async def test_a_refused_request_leaves_its_connection_usable(served: Served) -> None:
    body = served.body()
    async with served.connected() as connection:
        await connection.send(head(3) + b"{{{")
        assert (await connection.reply())[0] == 400
        await connection.send(head(len(body)) + body)
        assert (await connection.reply())[0] == 200


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    bodies = [served.body(id=str(number)) for number in range(3)]
    async with served.connected() as connection:
        await connection.send(b"".join(head(len(body)) + body for body in bodies))
        answers = [await connection.reply() for _ in bodies]
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert len({json.loads(body)["key"] for _, _, body in answers}) == 3


async def test_a_chunked_body_is_put_together(served: Served) -> None:
    body = served.body()
    async with served.connected() as connection:
        await connection.send(head(None) + chunk(body[:10]))
        await connection.send(chunk(body[10:11]))
        await connection.send(chunk(body[11:]) + b"0\r\n\r\n")
        assert (await connection.reply())[0] == 200


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_over_the_bound_is_refused_by_name_and_written_down(served: Served, framing: str) -> None:
    data = b"x" * (20 * 2**20)
    async with served.connected() as connection:
        if framing == "length":
            await connection.send(head(len(data)) + data)
        else:
            await connection.send(head(None))
            for start in range(0, len(data), 2**20):
                await connection.send(chunk(data[start : start + 2**20]))
            await connection.send(b"0\r\n\r\n")
        status, headers, answer = await connection.reply()
    assert (status, headers["content-type"]) == (413, "application/problem+json")
    assert json.loads(answer)["error"]["code"] == "PAYLOAD_TOO_LARGE"
    assert [row.outcome for row in await served.edge.rows()] == ["payload_too_large"]


async def test_a_body_of_exactly_the_bound_is_read(served: Served) -> None:
    body = served.body()
    body += b" " * (_LIMIT - len(body))
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(served.url, content=body)).status_code == 200
        assert (await client.post(served.url, content=body + b" ")).status_code == 413


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_leaves_within_its_body_is_no_request(
    served: Served, framing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = served.body()
    async with served.connected() as connection:
        await connection.send(head(len(body)) + body[:40] if framing == "length" else head(None) + chunk(body[:40]))
        # A second connection's answer shows that the edge has read the first one's beginning.
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.post(served.url, content=body)).status_code == 200
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(served.url, content=body)).status_code == 200
    assert [row.outcome for row in await served.edge.rows()] == ["fetched", "hit"]
    out, err = capfd.readouterr()
    assert "failure" not in out + err
    assert "xception" not in out + err


async def test_a_client_that_leaves_before_its_answer_has_its_row_and_its_entry_all_the_same(served: Served) -> None:
    body = served.body()
    served.bureau.gate.clear()
    async with served.connected() as connection:
        await connection.send(head(len(body)) + body)
        await served.bureau.arrived.wait()
    served.bureau.gate.set()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        await client.post(served.url, content=body)
    assert len(served.bureau.calls) == 1
    run_id = uuid.UUID(json.loads(body)["run_id"])
    rows: list[Any] = await served.edge.rows()
    assert [uuid.UUID(str(row.run_id)) for row in rows] == [run_id, run_id]
    assert {row.status_code for row in rows} == {200}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_the_fetch_path_takes_post_alone(served: Served, method: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.request(method, served.url)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert await served.edge.rows() == []


async def test_what_is_no_http_is_refused_and_the_edge_serves_on(served: Served) -> None:
    async with served.connected() as connection:
        await connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 nonsense\r\n\r\n")
        assert (await connection.reader.read(64)).startswith(b"HTTP/1.1 400") or connection.reader.at_eof()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(served.url, content=served.body())).status_code == 200


async def test_a_client_that_asks_first_is_told_to_continue(served: Served) -> None:
    body = served.body()
    async with served.connected() as connection:
        await connection.send(head(len(body), "POST", "/v1/fetch-data", "Expect: 100-continue"))
        assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await connection.send(body)
        assert (await connection.reply())[0] == 200


async def test_a_tracestate_in_several_lines_is_one_list(served: Served) -> None:
    body = served.body()
    trace = f"traceparent: 00-{'a' * 32}-{'b' * 16}-01"
    async with served.connected() as connection:
        await connection.send(head(len(body), "POST", "/v1/fetch-data", trace, "tracestate: one=1", "tracestate: two=2") + body)
        assert (await connection.reply())[0] == 200
    assert served.bureau.calls[0].get("tracestate") == "one=1,two=2"
