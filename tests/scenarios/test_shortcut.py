"""Fetches that go round ASGI (broker_edge/protocol.py): the same answers, rows and order as by way of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from broker_edge.api.app import front
from broker_edge.api.asgi import Answer as Asgi
from broker_edge.core.trail import Trail
from broker_edge.flow import journal
from broker_edge.protocol import EdgeProtocol
from broker_edge.settings import Settings
from broker_edge.shortcut import Heads, Shortcut
from tests.edges import Answer, Bureau, EdgeProcess, InProcess, http_reply, in_process, request, settings, spec
from tests.scenarios.herds import PATIENCE, _Unsignalled, process, until


@dataclass
class Served:
    edge: InProcess
    port: int
    bureau: Bureau
    heads: Heads
    server: uvicorn.Server
    shortcuts: int = 0

    def counted(self, begin: Callable[..., None]) -> Callable[..., None]:
        def begun(*arguments: object) -> None:
            self.shortcuts += 1
            begin(*arguments)

        return begun

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
    class Own(EdgeProtocol):
        """Of one test."""

        heads = Heads()

    async with in_process(backends) as edge:
        app = front(edge.edge)
        config = uvicorn.Config(
            app,
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
                    served = Served(edge, sock.getsockname()[1], bureau, Own.heads, server)
                    app.begin = served.counted(app.begin)  # type: ignore[method-assign]
                    yield served
                finally:
                    server.should_exit = True


async def test_a_miss_and_a_hit_are_what_they_are_over_asgi(served: Served) -> None:
    async with served.connected() as connection:
        miss = await connection.ask(served.body())
        hit = await connection.ask(served.body())
    assert served.shortcuts == 2
    assert [answer.json()["origin"] for answer in (miss, hit)] == ["REQUEST", "CACHE"]
    over_asgi = await served.edge.post(served.body())
    assert hit.body == over_asgi.body
    assert hit.headers.keys() == over_asgi.headers.keys()
    assert miss.headers["cache-status"] == "broker-edge; fwd=uri-miss; fwd-status=200; stored"
    assert sorted(row.outcome for row in await served.edge.rows()) == ["fetched", "hit", "hit"]


async def test_a_body_may_come_byte_by_byte(served: Served) -> None:
    async with served.connected() as connection:
        for byte in post(served.body()):
            connection.writer.write(bytes([byte]))
            await connection.writer.drain()
            await asyncio.sleep(0)
        assert (await connection.answer()).status == 200
    assert served.shortcuts == 1


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
    assert served.shortcuts == 2
    assert sorted(row.outcome for row in await served.edge.rows()) == ["fetched", "invalid_request"]


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
    assert served.shortcuts == 0


async def test_a_caller_that_leaves_takes_nobody_along_and_leaves_its_row(served: Served) -> None:
    served.bureau.gate.clear()
    async with served.connected() as staying:
        async with served.connected() as leaving:
            leaving.writer.write(post(served.body()))
            await until(lambda: len(served.bureau.calls) == 1)
            staying.writer.write(post(served.body()))
            await until(lambda: served.shortcuts == 2)
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


async def test_a_head_that_comes_again_is_known_and_is_answered_the_same(served: Served) -> None:
    async with served.connected() as connection:
        bodies = [served.body(number) for number in (1, 2, 1, 2)]
        answers = [await connection.ask(body, "X-Any: thing") for body in bodies]
        assert served.heads.find(post(bodies[0], "X-Any: thing")) is not None
    assert [answer.json()["origin"] for answer in answers] == ["REQUEST", "REQUEST", "CACHE", "CACHE"]
    assert [answer.json()["key"] for answer in answers[:2]] == [answer.json()["key"] for answer in answers[2:]]


async def test_behind_a_known_head_may_come_anything(served: Served) -> None:
    known = post(served.body(1))
    async with served.connected() as connection:
        for _ in range(2):
            connection.writer.write(known)
            assert (await connection.answer()).status == 200
        half = len(known) - 5
        connection.writer.write(known[:half])
        await connection.writer.drain()
        connection.writer.write(known[half:] + known + known[:half])
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
        connection.writer.write(known[half:])
        assert (await connection.answer()).json()["origin"] == "CACHE"
        connection.writer.write(b"\r\n" + known)
        assert (await connection.answer()).json()["origin"] == "CACHE"
        connection.writer.write(known + b"no request\r\n\r\n")
        assert [(await connection.answer()).status for _ in range(2)] == [200, 400]
        assert await connection.reader.read() == b""


async def test_the_trace_of_a_caller_is_its_own_though_the_rest_of_its_head_is_known(served: Served) -> None:
    traces = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2)]
    async with served.connected() as connection:
        for trace in traces * 2:
            await connection.ask(served.body(), f"Traceparent: {trace}")
    rows = await served.edge.rows()
    assert sorted(row.trace_id for row in rows) == sorted([f"{number:032x}" for number in (1, 2)] * 2)


def test_known_heads_are_bounded_in_number_and_size() -> None:
    heads = Heads()
    for number in range(3 * heads.most):
        heads.keep(post(b"{}", f"X-Number: {number}"), 2, b"/v1/fetch-data", [])
        assert len(heads._known) <= heads.most
    large = post(b"{}", "X-Large: " + "x" * heads.most_bytes)
    heads.keep(large, 2, b"/v1/fetch-data", [])
    assert heads.find(large) is None


async def test_a_row_that_cannot_be_packed_takes_no_other_answer_along(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(served.connected()) for _ in range(4)]
        keys = [(await connection.ask(served.body(number))).json()["key"] for number, connection in enumerate(connections)]
        frame = journal.frame_of

        def broken(trail: Trail, row_id: bytes) -> bytes:
            if trail.key == keys[1]:
                raise TypeError
            return frame(trail, row_id)

        monkeypatch.setattr(journal, "frame_of", broken)
        for number, connection in enumerate(connections):
            connection.writer.write(post(served.body(number)))
        answers = [await connection.answer() for connection in connections]
    assert [answer.status for answer in answers] == [200, 500, 200, 200]
    assert answers[1].json()["error"]["code"] == "INTERNAL"
    assert sorted(row.outcome for row in await served.edge.rows()) == ["fetched"] * 4 + ["hit"] * 3


async def test_an_answer_that_cannot_be_sent_holds_up_no_other(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served.connected() as first, served.connected() as second:
        await first.ask(served.body(1))
        await second.ask(served.body(1))
        respond, failed = Shortcut.respond, asyncio.Event()

        def once(shortcut: Shortcut, answer: Asgi) -> None:
            if not failed.is_set():
                failed.set()
                raise RuntimeError
            respond(shortcut, answer)

        monkeypatch.setattr(Shortcut, "respond", once)
        first.writer.write(post(served.body(1)))
        second.writer.write(post(served.body(1)))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.answer()) for one in (first, second)]
            done, late = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            for task in late:
                task.cancel()
        assert [task.result().status for task in done] == [200]


async def test_an_idle_connection_keeps_nothing_of_its_last_request(served: Served) -> None:
    async with served.connected() as connection:
        for body in (served.body(), served.body()[:-1] + b" " * 100_000 + b"}"):
            assert (await connection.ask(body)).status == 200
        (protocol,) = served.server.server_state.connections
        assert isinstance(protocol, EdgeProtocol)
        assert protocol._whole == b""
        await connection.ask(served.body())
        assert isinstance(protocol.cycle, Shortcut)
        assert protocol.cycle.body == b""


async def test_a_body_that_is_half_here_when_the_service_stops_is_answered_and_written_down(tmp_path: Path) -> None:
    body = json.dumps(request(spec("http://127.0.0.1:9"))).encode()
    async with process(tmp_path, shutdown_timeout="2") as edge:
        edge.start()
        await edge.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(post(body)[:-20])
        await writer.drain()
        async with asyncio.timeout(PATIENCE):  # a later request is read behind it, so that it is under way
            other = await asyncio.open_connection("127.0.0.1", edge.port)
            other[1].write(post(b"{}"))
            await other[0].readuntil(b"\r\n\r\n")
        ended = asyncio.to_thread(edge.stop)
        code, answer = await asyncio.gather(ended, Connection(reader, writer).answer())
        assert (code, answer.status, answer.json()["error"]["code"]) == (0, 503, "OVERLOADED")
        for one in (writer, other[1]):
            one.close()
    async with in_process(settings(tmp_path)) as again:
        assert sorted(row.outcome for row in await again.rows()) == ["invalid_request", "overloaded"]


def start_into(edge: EdgeProcess, output: Path) -> None:
    line = edge._line("serve", "--host", "127.0.0.1", "--port", str(edge.port))
    with output.open("wb") as file:
        edge.process = subprocess.Popen(line, env=edge._env(), stdout=file, stderr=file)


async def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path: Path, bureau: Bureau) -> None:
    async with process(tmp_path) as edge:
        start_into(edge, Path("/dev/full"))
        edge.data_dir.joinpath("log").touch()
        await edge.ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        connection = Connection(reader, writer)
        answers = [await connection.ask(json.dumps(request(spec(bureau.url))).encode()) for _ in range(3)]
        answers += [await connection.ask(b"{}") for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3 + [400] * 3
        writer.close()
