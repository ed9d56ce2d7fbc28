"""Requests as bytes on a real connection: what is ambiguous, too large or too slow is refused, and nothing is read twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from broker_edge.protocol import EdgeProtocol
from tests.edges import Bureau, request, spec
from tests.scenarios.herds import PATIENCE, _Unsignalled, process, servers_of, until
from tests.servers import Postgres, Valkey

_UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")
_LIMIT = EdgeProtocol.head_bytes


@dataclass
class Echo:
    """An application that answers with the body it read, once its gate is open; it remembers each request, and who left."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    left: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started.set()
        await self.gate.wait()
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        self.requests.append((scope["path"], body))
        self.headers.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *segments: bytes) -> None:
        """Each segment once the server has read the one before."""
        for segment in segments:
            expected = Hasty.received + len(segment)
            self.writer.write(segment)
            await until(lambda expected=expected: Hasty.received >= expected)  # type: ignore[misc]

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
            return int(line.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def refused(self, status: int) -> str:
        """The detail of a refusal after which the connection ends."""
        got, headers, body = await self.answer()
        problem = json.loads(body)
        assert (got, headers["content-type"], headers["connection"]) == (status, "application/problem+json", "close")
        assert (problem["status"], problem["error"]["code"], problem["value"]) == (status, "INVALID_REQUEST", None)
        assert problem["error"]["message"] == problem["detail"]
        assert {"type", "title"} <= problem.keys()
        await self.ended()
        return str(problem["detail"])

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE):
            assert await self.reader.read() == b""


class Hasty(EdgeProtocol):
    """Counts what reaches it."""

    received = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        Hasty.received += len(data)


@dataclass
class Served:
    app: Echo
    config: uvicorn.Config
    port: int
    protocol: type[Hasty]

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def outlived(self) -> None:
        """A head on a connection of its own begins now, and is given up."""
        async with self.connected() as other:
            await other.send(b"GET /late")
            await other.refused(408)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    class Own(Hasty):
        """Of one test, which may change its bounds."""

    app = Echo()
    app.gate.set()
    config = uvicorn.Config(
        app, http=Own, lifespan="off", log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
    )
    server = _Unsignalled(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([sock]))
            await until(lambda: server.started)
            try:
                yield Served(app, config, sock.getsockname()[1], Own)
            finally:
                server.should_exit = True


def head(path: str, *fields: str, method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", *fields, "", ""]).encode()


def post(path: str, body: bytes, *fields: str) -> bytes:
    return head(path, "Host: edge.test", f"Content-Length: {len(body)}", *fields) + body


_GET = head("/next", "Host: edge.test", method="GET")
_SMUGGLED = head("/smuggled", "Host: edge.test", method="GET")
_UPGRADING = post("/first", _SMUGGLED, *_UPGRADE)
_CUT = len(_UPGRADING) - len(_SMUGGLED)


@pytest.mark.parametrize(
    "segments",
    [
        [_UPGRADING],
        [_UPGRADING[:_CUT], _UPGRADING[_CUT:]],
        [_UPGRADING[: _CUT + 9], _UPGRADING[_CUT + 9 :]],
        [_UPGRADING[:20], _UPGRADING[20 : _CUT - 1], _UPGRADING[_CUT - 1 :]],
        [_UPGRADING[at : at + 1] for at in range(len(_UPGRADING))],
    ],
    ids=["one", "head and body", "within the body", "within the head", "bytes"],
)
async def test_an_upgrade_is_ignored_and_its_body_is_a_body(served: Served, segments: list[bytes]) -> None:
    async with served.connected() as connection:
        await connection.send(*segments)
        assert (await connection.answer())[::2] == (200, _SMUGGLED)
        await connection.send(_GET)
        assert (await connection.answer())[0] == 200
    assert served.app.requests == [("/first", _SMUGGLED), ("/next", b"")]


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2, HTTP/2.0"])
async def test_pipelined_requests_that_would_upgrade_are_answered_in_order(served: Served, upgrade: str) -> None:
    fields = ("Connection: Upgrade", f"Upgrade: {upgrade}")
    async with served.connected() as connection:
        await connection.send(b"".join(post(f"/{number}", b"%d" % number, *fields) for number in range(3)) + _GET)
        assert [(await connection.answer())[2] for _ in range(4)] == [b"0", b"1", b"2", b""]
    assert [path for path, _ in served.app.requests] == ["/0", "/1", "/2", "/next"]


async def test_an_upgrade_with_a_chunked_body_is_read_to_its_end(served: Served) -> None:
    start = head("/first", "Host: edge.test", "Transfer-Encoding: chunked", *_UPGRADE)
    async with served.connected() as connection:
        await connection.send(start, b"3\r\nabc\r\n2\r\nde\r\n", b"0\r\n\r\n" + _GET)
        assert [(await connection.answer())[2] for _ in range(2)] == [b"abcde", b""]


_AMBIGUOUS = {
    "no Host": head("/", "Content-Length: 0"),
    "two Hosts": head("/", "Host: edge.test", "Host: edge.test"),
    "two lengths": head("/", "Host: edge.test", "Content-Length: 0", "Content-Length: 50"),
    "a list of lengths": head("/", "Host: edge.test", "Content-Length: 0, 0"),
    "length and coding": head("/", "Host: edge.test", "Content-Length: 0", "Transfer-Encoding: chunked"),
    "coding and length": head("/", "Host: edge.test", "Transfer-Encoding: chunked", "Content-Length: 0"),
    "other coding": head("/", "Host: edge.test", "Transfer-Encoding: gzip"),
    "two codings": head("/", "Host: edge.test", "Transfer-Encoding: gzip, chunked"),
    "coding twice": head("/", "Host: edge.test", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "old coding": head("/", "Host: edge.test", "Transfer-Encoding: chunked", version="1.0"),
    "upgrade and two Hosts": head("/", "Host: edge.test", "Host: other.test", *_UPGRADE),
    "upgrade and other coding": head("/", "Host: edge.test", "Transfer-Encoding: gzip", *_UPGRADE),
    "tunnel": head("edge.test:443", "Host: edge.test", method="CONNECT"),
    "space before the colon": head("/", "Host : edge.test"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("start", _AMBIGUOUS.values(), ids=_AMBIGUOUS.keys())
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(served: Served, start: bytes) -> None:
    async with served.connected() as connection:
        await connection.send(start + _SMUGGLED, _SMUGGLED)
        detail = await connection.refused(400)
    assert "edge.test" not in detail
    assert served.app.requests == []


async def test_a_client_of_http_1_0_needs_no_host(served: Served) -> None:
    async with served.connected() as connection:
        await connection.send(head("/old", "Content-Length: 2", version="1.0") + b"hi")
        assert (await connection.answer())[::2] == (200, b"hi")
        await connection.ended()


async def test_a_refusal_waits_for_the_answers_before_it(served: Served) -> None:
    served.app.gate.clear()
    async with served.connected() as connection:
        await connection.send(post("/0", b"0") + post("/1", b"1") + head("/2") + _SMUGGLED)
        connection.writer.write(_SMUGGLED)
        served.app.gate.set()
        assert [(await connection.answer())[2] for _ in range(2)] == [b"0", b"1"]
        await connection.refused(400)
    assert [path for path, _ in served.app.requests] == ["/0", "/1"]


_CHUNKED = head("/chunked", "Host: edge.test", "Transfer-Encoding: chunked", "Expect: 100-continue")


async def test_a_body_whose_framing_breaks_is_refused_and_its_request_is_given_up(served: Served) -> None:
    served.app.gate.clear()
    async with served.connected() as connection:
        await connection.send(_CHUNKED + b"1\r\na\r\n", b"what\r\n")
        served.app.gate.set()
        await connection.refused(400)
    await until(lambda: served.app.left == 1)
    assert served.app.requests == []


async def test_a_queued_request_whose_framing_breaks_is_never_begun(served: Served) -> None:
    served.app.gate.clear()
    async with served.connected() as connection:
        await connection.send(post("/0", b"0") + post("/1", b"1") + _CHUNKED + b"what\r\n")
        served.app.gate.set()
        assert [(await connection.answer())[2] for _ in range(2)] == [b"0", b"1"]
        await connection.refused(400)
    assert ([path for path, _ in served.app.requests], served.app.left) == (["/0", "/1"], 0)


def _large(size: int, *fields: str) -> bytes:
    """A head of so many bytes, as they are counted: target, names, values, four bytes more for each field."""
    plain = ["Host: edge.test", *fields]
    used = len("/large") + sum(len(one.replace(": ", "")) + 4 for one in plain)
    return head("/large", *plain, "a: " + "a" * (size - used - 5))


_MANY = [f"a{number}: b" for number in range(EdgeProtocol.head_fields - 1)]


@pytest.mark.parametrize("start", [_large(_LIMIT), head("/large", "Host: edge.test", *_MANY)], ids=["bytes", "fields"])
async def test_a_head_may_reach_its_bound(served: Served, start: bytes) -> None:
    async with served.connected() as connection:
        await connection.send(start, _GET)
        assert [(await connection.answer())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    "start",
    [
        _large(_LIMIT + 1),
        _large(_LIMIT + 1, *_UPGRADE),
        head("/" + "a" * _LIMIT, "Host: edge.test"),
        head("/large", "Host: edge.test", *_MANY, "one: more"),
    ],
    ids=["field", "upgrade", "target", "fields"],
)
@pytest.mark.parametrize("before", [b"", post("/before", b"a" * 1000)], ids=["first", "second"])
async def test_a_head_over_its_bound_is_refused(served: Served, start: bytes, before: bytes) -> None:
    async with served.connected() as connection:
        await connection.send(before + start)
        if before:
            assert (await connection.answer())[0] == 200
        await connection.refused(431)
    assert [path for path, _ in served.app.requests] == (["/before"] if before else [])


_UNENDED = {
    "target": (b"GET /", b"a"),
    "name": (b"GET / HTTP/1.1\r\n", b"a"),
    "value": (b"GET / HTTP/1.1\r\na: ", b"a"),
    "fields": (b"GET / HTTP/1.1\r\n", b"a: " + b"a" * 1000 + b"\r\n"),
    "empty lines": (b"", b"\r\n"),
    "trailer": (_CHUNKED + b"1\r\na\r\n0\r\na: ", b"a"),
    "trailers": (_CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n"),
    "chunk extension": (_CHUNKED + b"1;a=", b"a"),
}


@pytest.mark.parametrize(("start", "more"), _UNENDED.values(), ids=_UNENDED.keys())
async def test_what_never_ends_is_refused_at_the_bound(served: Served, start: bytes, more: bytes) -> None:
    served.app.gate.clear()
    async with served.connected() as connection:
        await connection.send(start, *[more * (8192 // len(more))] * 8, more * 100)
        await connection.refused(431)
    served.app.gate.set()


async def test_the_bound_of_heads_is_none_of_bodies(served: Served) -> None:
    body = b"a" * (4 * _LIMIT)
    chunked = _CHUNKED.replace(b"Expect: 100-continue", b"A: b") + b"".join(b"1\r\na\r\n" for _ in range(_LIMIT)) + b"0\r\n\r\n"
    async with served.connected() as connection:
        connection.writer.write(post("/long", body) + chunked)
        assert [len((await connection.answer())[2]) for _ in range(2)] == [len(body), _LIMIT]


async def test_trailers_are_no_headers(served: Served) -> None:
    start = head("/", "Host: edge.test", "Transfer-Encoding: chunked")
    async with served.connected() as connection:
        await connection.send(start + b"1\r\na\r\n0\r\nTraceparent: x\r\n\r\n" + _GET)
        assert [(await connection.answer())[0] for _ in range(2)] == [200, 200]
    assert served.app.headers == [[(b"host", b"edge.test"), (b"transfer-encoding", b"chunked")], [(b"host", b"edge.test")]]


async def test_who_sends_on_and_on_still_reads_the_refusal(served: Served) -> None:
    async with served.connected() as connection:
        connection.writer.write(b"GET /" + b"a" * (64 * _LIMIT))
        await connection.writer.drain()
        await connection.refused(431)


async def test_a_head_that_is_not_complete_in_time_is_refused_though_its_bytes_go_on_coming(served: Served) -> None:
    served.protocol.head_seconds = 0.1
    async with served.connected() as connection, asyncio.TaskGroup() as group:
        refused = group.create_task(connection.refused(408))
        await connection.send(b"GET / HTTP/1.1\r\na: ")
        while not refused.done():
            connection.writer.write(b"a")
            await asyncio.wait([refused], timeout=0.01)
    assert served.app.requests == []


async def test_an_idle_connection_and_a_long_body_outlive_the_time_of_a_head(served: Served) -> None:
    served.protocol.head_seconds = 0.05
    async with served.connected() as connection:
        await connection.send(_GET[:9], _GET[9:])
        assert (await connection.answer())[0] == 200
        await served.outlived()
        await connection.send(post("/body", b"ab")[:-1])
        await served.outlived()
        await connection.send(b"b")
        assert (await connection.answer())[::2] == (200, b"ab")


async def test_the_time_a_head_waits_for_earlier_requests_is_not_its_senders(served: Served) -> None:
    served.protocol.head_seconds = 0.05
    served.app.gate.clear()
    async with served.connected() as connection:
        await connection.send(post("/0", b"0") + post("/1", b"1") + _GET[:9])
        await served.outlived()
        connection.writer.write(_GET[9:])
        served.app.gate.set()
        assert [(await connection.answer())[::2] for _ in range(3)] == [(200, b"0"), (200, b"1"), (200, b"")]


async def test_a_long_answer_to_a_head_that_came_in_parts_is_not_cut_by_the_idle_time(served: Served) -> None:
    served.config.timeout_keep_alive = 0.05  # type: ignore[assignment]
    async with served.connected() as connection:
        await connection.send(post("/0", b"0") + _GET[:9])
        assert (await connection.answer())[0] == 200
        served.app.gate.clear()
        await connection.send(_GET[9:])
        async with served.connected() as idle:
            await idle.ended()
        served.app.gate.set()
        assert (await connection.answer())[0] == 200


async def test_empty_lines_keep_no_connection_alive(served: Served) -> None:
    served.config.timeout_keep_alive = 0.1  # type: ignore[assignment]
    async with served.connected() as connection, asyncio.TaskGroup() as group:
        ended = group.create_task(connection.reader.read())
        while not ended.done():
            connection.writer.write(b"\r\n")
            await asyncio.wait([ended], timeout=0.01)
    assert ended.result() == b""


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_service_speaks_so(
    tmp_path: Path, bureau: Bureau, redis_server: Valkey, postgres_server: Postgres, workers: int
) -> None:
    body = json.dumps(request(spec(bureau.url))).encode()
    async with process(tmp_path, workers=workers, **servers_of(redis_server, postgres_server)) as edge:
        edge.start()
        await edge.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        connection = Connection(reader, writer)
        writer.write(post("/v1/fetch-data", body, *_UPGRADE))
        status, _, answer = await connection.answer()
        assert (status, json.loads(answer)["value"]) == (200, {"score": 700})
        writer.write(head("/healthz", method="GET"))
        await connection.refused(400)
        writer.close()
        await writer.wait_closed()
        assert await asyncio.to_thread(edge.stop) == 0
