"""Fetches that go round ASGI (broker_edge/protocol.py): the same answers, rows and order as by way of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import uvicorn

from broker_edge.api.app import front
from broker_edge.protocol import EdgeProtocol
from broker_edge.settings import Settings
from broker_edge.shortcut import Shortcut
from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, request, spec
from tests.scenarios.herds import PATIENCE, _Unsignalled, until


class Counting(EdgeProtocol):
    """Counts the fetches that take the shortcut."""

    shortcuts = 0

    def on_message_complete(self) -> None:
        type(self).shortcuts += isinstance(self.cycle, Shortcut)
        super().on_message_complete()


@dataclass
class Served:
    edge: InProcess
    port: int
    bureau: Bureau
    protocol: type[Counting]
    server: uvicorn.Server

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def body(self, number: object = 7, **members: object) -> bytes:
        return json.dumps(request(self.source, {"id": str(number)}, **members)).encode()

    @property
    def source(self) -> dict[str, object]:
        return SOURCE | {"source": {**SOURCE["source"], "url": f"{self.bureau.url}/score/{{{{ id }}}}"}}


SOURCE = spec("")


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
            return Answer(int(line.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])))

    async def ask(self, body: bytes, *fields: str) -> Answer:
        self.writer.write(post(body, *fields))
        return await self.answer()


def post(body: bytes, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"POST /v1/fetch-data HTTP/{version}", "Host: edge", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def served(backends: Settings, bureau: Bureau) -> AsyncIterator[Served]:
    class Own(Counting):
        """Of one test."""

    async with in_process(backends) as edge:
        config = uvicorn.Config(
            front(edge.edge),
            http=Own,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            proxy_headers=False,
            date_header=False,
        )
        server = _Unsignalled(config)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            async with asyncio.TaskGroup() as group:
                group.create_task(server.serve([sock]))
                await until(lambda: server.started)
                try:
                    yield Served(edge, sock.getsockname()[1], bureau, Own, server)
                finally:
                    server.should_exit = True


async def test_a_miss_and_a_hit_are_what_they_are_over_asgi(served: Served) -> None:
    async with served.connected() as connection:
        miss = await connection.ask(served.body())
        hit = await connection.ask(served.body())
    assert served.protocol.shortcuts == 2
    assert [answer.json()["origin"] for answer in (miss, hit)] == ["REQUEST", "CACHE"]
    over_asgi = await served.edge.post(served.body())
    assert hit.body == over_asgi.body
    assert hit.headers.keys() == over_asgi.headers.keys()
    assert miss.headers["cache-status"] == "broker-edge; fwd=uri-miss; fwd-status=200; stored"
    assert [row.outcome for row in await served.edge.rows()] == ["fetched", "hit", "hit"]


async def test_a_body_may_come_byte_by_byte(served: Served) -> None:
    async with served.connected() as connection:
        for byte in post(served.body()):
            connection.writer.write(bytes([byte]))
            await connection.writer.drain()
            await asyncio.sleep(0)
        assert (await connection.answer()).status == 200
    assert served.protocol.shortcuts == 1


async def test_requests_that_come_together_are_answered_in_their_order(served: Served) -> None:
    async with served.connected() as connection:
        await connection.ask(served.body(2))
        served.bureau.gate.clear()
        connection.writer.write(b"".join(post(served.body(number)) for number in (1, 2, 3)))
        await until(lambda: len(served.bureau.calls) == 2)
        served.bureau.gate.set()
        answers = [await connection.answer() for _ in range(3)]
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "CACHE", "REQUEST"]


async def test_hits_that_come_together_are_answered_in_their_order(served: Served) -> None:
    async with served.connected() as connection:
        keys = [(await connection.ask(served.body(number))).json()["key"] for number in range(20)]
        connection.writer.write(b"".join(post(served.body(number)) for number in range(20)))
        assert [(await connection.answer()).json()["key"] for _ in range(20)] == keys


@pytest.mark.parametrize(("fields", "version"), [(["Connection: close"], "1.1"), ([], "1.0")])
async def test_a_connection_that_is_not_kept_ends_behind_its_answer(served: Served, fields: list[str], version: str) -> None:
    async with served.connected() as connection:
        connection.writer.write(post(served.body(), *fields, version=version))
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await connection.reader.read() == b""


async def test_what_is_refused_has_its_code_and_its_row(served: Served) -> None:
    async with served.connected() as connection:
        answer = await connection.ask(b'{"data_source_spec": 1}')
        assert (answer.status, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST")
        assert (await connection.ask(served.body(), "Content-Type: text/plain")).status == 200
    assert served.protocol.shortcuts == 2
    assert [row.outcome for row in await served.edge.rows()] == ["invalid_request", "fetched"]


async def test_a_larger_body_a_chunked_one_and_one_that_waits_for_a_word_go_by_way_of_asgi(served: Served) -> None:
    body = served.body()
    async with served.connected() as connection:
        assert (await connection.ask(body[:-1] + b" " * 70_000 + b"}")).status == 200
        connection.writer.write(
            b"POST /v1/fetch-data HTTP/1.1\r\nHost: edge\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
            % (len(body), body)
        )
        assert (await connection.answer()).status == 200
        connection.writer.write(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: %d" % len(body)))
        assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.writer.write(body)
        assert (await connection.answer()).status == 200
    assert served.protocol.shortcuts == 0


async def test_a_caller_that_leaves_takes_nobody_along_and_leaves_its_row(served: Served) -> None:
    served.bureau.gate.clear()
    async with served.connected() as staying:
        async with served.connected() as leaving:
            leaving.writer.write(post(served.body()))
            await until(lambda: len(served.bureau.calls) == 1)
            staying.writer.write(post(served.body()))
            await until(lambda: served.protocol.shortcuts == 2)
        await until(lambda: len(served.server.server_state.connections) == 1)
        served.bureau.gate.set()
        assert (await staying.answer()).status == 200
    assert len(served.bureau.calls) == 1
    await until(lambda: not served.server.server_state.tasks)
    assert sorted(row.outcome for row in await served.edge.rows()) == ["collapsed", "fetched"]


async def test_a_peer_that_asks_without_reading_gets_everything_in_the_end(served: Served) -> None:
    value = json.dumps({"text": "x" * 2**20}).encode()
    served.bureau._answer = lambda _: http_reply(value, 200, "Content-Type: application/json")
    async with served.connected() as connection:
        await connection.ask(served.body())
        for _ in range(20):
            connection.writer.write(post(served.body()))
        answers = [await connection.answer() for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    assert all(answer.json()["value"] == json.loads(value) for answer in answers)


async def test_an_answer_whose_row_cannot_be_written_is_not_given(served: Served) -> None:
    async with served.connected() as connection:
        await connection.ask(served.body())
        served.edge.edge.spool._max_bytes = 0
        answers = [await connection.ask(served.body()) for _ in range(2)]
    assert [(answer.status, answer.json()["error"]["code"]) for answer in answers] == [(503, "STORAGE_UNAVAILABLE")] * 2
    assert all(answer.json()["value"] is None for answer in answers)


async def test_the_hits_of_one_moment_need_one_task_between_them(served: Served) -> None:
    spawned: list[str] = []
    spawn = served.edge.edge.background.spawn
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(served.connected()) for _ in range(8)]
        for number, connection in enumerate(connections):
            await connection.ask(served.body(number))
        served.edge.edge.background.spawn = lambda name, work: spawned.append(name) or spawn(name, work)  # type: ignore[method-assign, func-returns-value]
        for number, connection in enumerate(connections):
            connection.writer.write(post(served.body(number)))
        answers = [await connection.answer() for connection in connections]
    assert {answer.json()["origin"] for answer in answers} == {"CACHE"}
    assert set(spawned) <= {"look"}
    assert len(spawned) < 8
    assert not served.server.server_state.tasks
