"""The contract of `ports.Transport`, over both engines and real sockets."""

from __future__ import annotations

import asyncio
import gzip
import pathlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from broker_edge.backends.http_httpx import HttpxTransport
from broker_edge.backends.http_pyreqwest import PyreqwestTransport
from broker_edge.core.exchange import Outbound, Target, TlsOptions
from broker_edge.errors import CallerError, TargetDenied, UpstreamError
from broker_edge.ports import Transport
from tests.upstreams import (
    HOST,
    Http2Server,
    Peer,
    RawServer,
    Received,
    answering,
    ca_pem,
    identity_pem,
    replying,
    server_context,
)

Engine = type[HttpxTransport] | type[PyreqwestTransport]


@pytest.fixture(params=[HttpxTransport, PyreqwestTransport], ids=["httpx", "pyreqwest"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param


@pytest.fixture
async def transport(engine: Engine) -> AsyncIterator[Transport]:
    transport = engine(5.0, ca_pem())
    yield transport
    await transport.aclose()


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes
    version: str


def target(server: Any, *, host: str = HOST, tls: TlsOptions | None = None) -> Target:
    return Target(server.url.partition(":")[0], host, server.port, "127.0.0.1", tls or TlsOptions())


def outbound(server: Any, path: str = "/", method: str = "GET", headers: Any = (), body: bytes | None = None) -> Outbound:
    return Outbound(method, server.url + path, tuple(headers), body)


async def read(transport: Any, request: Outbound, where: Target, within: float = 20.0) -> Got:
    async with asyncio.timeout(20), transport.open(request, where, within=within) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
        return Got(reply.status, dict(reply.headers), body, reply.http_version)


async def fetch(transport: Transport, server: Any, path: str = "/", *, within: float = 20.0, **more: Any) -> Got:
    return await read(transport, outbound(server, path, **more), target(server), within)


async def failing(work: Awaitable[Any]) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await work
    message = caught.value.message
    assert HOST not in message
    assert "127.0.0.1" not in message
    return caught.value


async def settled(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the peers and the engines' threads have no event to give)
            await asyncio.sleep(0)


# Versions, pooling, pinning


async def test_http1_plain_reuses_its_connection(transport: Transport) -> None:
    async with RawServer(replying(b"hello", 201, [("X-A", "1"), ("x-a", "2"), ("Content-Type", "text/plain")])) as server:
        for _ in range(3):
            got = await fetch(transport, server)
        assert (got.status, got.body, got.version) == (201, b"hello", "1.1")
        assert got.headers == {"x-a": "1, 2", "content-type": "text/plain", "content-length": "5"}
        assert server.connections == 1


async def test_http1_over_tls_keeps_the_name_for_sni_and_host(transport: Transport) -> None:
    names: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with RawServer(replying(), tls=context) as server:
        assert (await fetch(transport, server)).version == "1.1"
        assert server.received[0].get("host") == f"{HOST}:{server.port}"
    assert names == [HOST]


async def test_http2_by_alpn_shares_one_connection(transport: Transport) -> None:
    async with Http2Server() as server:
        assert (await fetch(transport, server)).version == "2"
        server.answer = lambda request: (200, [("x-stream", str(request.stream))], request.pseudo[":path"].encode())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(transport, server, f"/{number}")) for number in range(20)]
        assert [task.result().body for task in tasks] == [f"/{number}".encode() for number in range(20)]
        assert server.connections == 1


async def test_http2_exchanges_are_open_at_the_same_time(transport: Transport) -> None:
    async with Http2Server() as server:
        await fetch(transport, server)
        server.answer = lambda request: None if len(server.requests) < 11 else (200, [], b"last")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(transport, server)) for _ in range(9)]
            await settled(lambda: len(server.requests) == 10)
            assert (await fetch(transport, server)).body == b"last"
            for task in tasks:
                task.cancel()
        assert server.connections == 1


async def test_http2_carries_large_bodies_both_ways(transport: Transport) -> None:
    sent = bytes(range(256)) * 2000
    async with Http2Server(lambda request: (200, [], bytes(request.body[:60_000]))) as server:
        for _ in range(3):
            got = await fetch(transport, server, method="POST", body=sent)
            assert got.body == sent[:60_000]
        assert bytes(server.requests[-1].body) == sent
        assert server.requests[-1].headers["content-length"] == str(len(sent))


async def test_http2_connection_outlives_many_answers_nobody_reads(transport: Transport) -> None:
    async with Http2Server(lambda _: (200, [], b"x" * 60_000)) as server:
        for _ in range(120):
            async with asyncio.timeout(10), transport.open(outbound(server), target(server)) as reply:
                assert reply.status == 200
        assert (await fetch(transport, server)).body == b"x" * 60_000
        assert server.connections == 1


async def test_a_name_that_resolves_elsewhere_is_not_looked_up(transport: Transport) -> None:
    async with RawServer(replying(b"pinned")) as server:
        where = Target("http", "localhost", server.port, "127.0.0.2")
        assert (await failing(read(transport, outbound(server), where))).code == "CONNECT_ERROR"
        where = Target("http", "localhost", server.port, "127.0.0.1")
        assert (await read(transport, outbound(server), where)).body == b"pinned"
        assert server.received[0].get("host") == f"localhost:{server.port}"


async def test_addresses_as_hosts_are_dialled_as_they_are(transport: Transport) -> None:
    async with RawServer(replying(b"literal")) as server:
        where = Target("http", "127.0.0.1", server.port, "127.0.0.1")
        assert (await read(transport, outbound(server), where)).body == b"literal"
        assert server.received[0].get("host") == f"127.0.0.1:{server.port}"


async def test_pyreqwest_refuses_a_host_that_is_another_address_than_the_classified_one() -> None:
    transport = PyreqwestTransport(5.0)
    async with RawServer(replying()) as server:
        for host in ("127.0.0.1", "2130706433", "0x7f.1"):
            with pytest.raises(TargetDenied):
                await read(transport, outbound(server), Target("http", host, server.port, "192.0.2.1"))
        assert server.connections == 0
    await transport.aclose()


async def test_origins_given_up_are_closed_and_come_back(engine: Engine) -> None:
    transport = engine(5.0, max_origins=2)
    async with RawServer(replying()) as one, RawServer(replying()) as two, RawServer(replying()) as three:
        for server in (one, two, three):
            await fetch(transport, server)
        await settled(lambda: one.open == 0)
        assert (two.open, three.open) == (1, 1)
        assert (await fetch(transport, one)).body == b"ok"
        assert one.connections == 2
        await transport.aclose()
        await settled(lambda: not (one.open or two.open or three.open))


# What is sent


REQUESTS: list[tuple[str, str, list[tuple[str, str]], bytes | None]] = [
    ("GET", "/", [], None),
    ("GET", "", [], None),
    ("GET", "?only=query", [], None),
    ("GET", "/a%20b/c?x=1&y=%2F&z", [("X-Token", "t1"), ("Accept", "application/json"), ("User-Agent", "mine")], None),
    ("HEAD", "/head", [], None),
    ("DELETE", "/gone", [], None),
    ("POST", "/empty", [("Content-Type", "text/plain")], None),
    ("POST", "/empty", [], b""),
    ("POST", "/body", [("Content-Type", "application/json"), ("Cookie", "a=b")], b'{"a": 1}'),
    ("PUT", "/body", [("Authorization", "Bearer x")], b"x" * 100_000),
    ("PATCH", "/none", [], None),
    ("GET", "/with/body", [], b"q"),
    ("GET", "/utf8", [("X-Name", "J\u00fcrgen"), ("X-Empty", ""), ("Accept-Encoding", "gzip, br")], None),
]


@pytest.mark.parametrize(("method", "path", "headers", "body"), REQUESTS)
async def test_both_engines_send_the_same_request(method: str, path: str, headers: Any, body: bytes | None) -> None:
    async with RawServer(replying(b"" if method == "HEAD" else b"ok")) as server:
        for engine in (HttpxTransport, PyreqwestTransport):
            transport = engine(5.0)
            await fetch(transport, server, path, method=method, headers=headers, body=body)
            await transport.aclose()
        seen = [(got.line, sorted((name.lower(), value) for name, value in got.headers), got.body) for got in server.received]
    assert seen[0] == seen[1]
    line, sent, received = seen[0]
    expected = path if path.startswith("/") else "/" + path
    assert (line, received) == (f"{method} {expected} HTTP/1.1", body or b"")
    given = {name.lower(): value.encode().decode("latin-1") for name, value in headers}
    length = {"content-length": str(len(body or b""))} if body is not None or method in ("POST", "PUT", "PATCH") else {}
    fixed = {"host": f"{HOST}:{server.port}", "accept": "*/*", "user-agent": "broker-edge"}
    assert dict(sent) == fixed | given | length
    assert len(sent) == len(dict(sent))


async def test_both_engines_send_the_same_request_over_http2() -> None:
    async with Http2Server() as server:
        for engine in (HttpxTransport, PyreqwestTransport):
            transport = engine(5.0, ca_pem())
            await fetch(transport, server, "/p?q=1", method="POST", headers=[("X-Token", "t")], body=b"abc")
            await fetch(transport, server, "/p", headers=[("User-Agent", "mine")])
            await transport.aclose()
    posts = [(got.pseudo, got.headers, bytes(got.body)) for got in server.requests]
    assert posts[:2] == posts[2:]
    assert posts[0][0] == {":method": "POST", ":scheme": "https", ":authority": f"{HOST}:{server.port}", ":path": "/p?q=1"}
    assert posts[0][1] == {"x-token": "t", "accept": "*/*", "user-agent": "broker-edge", "content-length": "3"}


async def test_a_header_that_could_split_the_request_is_refused_unsent(transport: Transport) -> None:
    async with RawServer(replying()) as server:
        for header in (("X-A", "a\r\nX-B: b"), ("X-A", "a\nb"), ("X-A", "a\0b"), ("X A", "b"), ("", "b"), ("X-A:", "b")):
            with pytest.raises(CallerError) as caught:
                await fetch(transport, server, headers=[header])
            assert caught.value.code == "INVALID_VALUE"
        assert server.connections == 0


async def test_pyreqwest_refuses_a_url_it_would_rewrite() -> None:
    transport = PyreqwestTransport(5.0)
    async with RawServer(replying()) as server:
        for path in ("/a/%2e%2e/b", "/a/../b", "/a b", "/q?a=it's", "/{x}", "/a\\b"):
            with pytest.raises(CallerError) as caught:
                await fetch(transport, server, path)
            assert caught.value.code == "INVALID_VALUE"
        assert server.connections == 0
    await transport.aclose()


# What comes back


async def test_a_body_stays_encoded_and_flows_before_it_is_whole(transport: Transport) -> None:
    packed = gzip.compress(b"text" * 1000)
    first_seen = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(
            f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed[:9]
        )
        await first_seen.wait()
        await peer.send(packed[9:])

    async with RawServer(handle) as server, asyncio.timeout(10), transport.open(outbound(server), target(server)) as reply:
        got = b""
        async for chunk in reply.chunks():
            got += chunk
            first_seen.set()
        assert got == packed
        assert reply.headers["content-encoding"] == "gzip"


async def test_redirects_and_cookies_are_only_reported(transport: Transport) -> None:
    async with RawServer(
        replying(b"", 302, [("Location", "/elsewhere"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    ) as server:
        got = await fetch(transport, server)
        await fetch(transport, server)
        assert (got.status, got.headers["location"], got.headers["set-cookie"]) == (302, "/elsewhere", "a=1, b=2")
        assert [one.get("cookie") for one in server.received] == [None, None]
        assert [one.get("referer") for one in server.received] == [None, None]


@pytest.mark.parametrize("location", ["http://[no.address/", "//", "http://bureau.test:port/", "x://y:99999/", "\tz"])
async def test_a_location_that_is_no_url_is_only_reported(transport: Transport, location: str) -> None:
    async with RawServer(replying(b"moved", 302, [("Location", location)])) as server:
        got = await fetch(transport, server)
        assert (got.status, got.headers["location"], got.body) == (302, location.strip(), b"moved")


async def test_neither_proxies_nor_credentials_are_read_from_the_environment(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    transport = engine(5.0, ca_pem())
    async with RawServer(replying()) as plain, RawServer(replying(), tls=server_context()) as secure:
        for server in (plain, secure):
            assert (await fetch(transport, server)).status == 200
            assert server.received[0].get("authorization") is None
    await transport.aclose()


async def test_a_name_before_the_host_becomes_no_credential(transport: Transport) -> None:
    async with RawServer(replying()) as server:
        await read(transport, Outbound("GET", f"http://user:word@{HOST}:{server.port}/p"), target(server))
        assert server.received[0].line == "GET /p HTTP/1.1"
        assert server.received[0].get("authorization") is None


async def test_a_header_value_outside_ascii_is_left_out(transport: Transport) -> None:
    async with RawServer(replying(b"ok", headers=[("X-Name", "caf\xe9"), ("X-Fine", "yes"), ("X-Name", "2")])) as server:
        assert (await fetch(transport, server)).headers == {"x-fine": "yes", "content-length": "2"}


async def test_a_body_without_a_length_ends_with_the_connection(transport: Transport) -> None:
    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nold")

    async with RawServer(handle) as server:
        got = await fetch(transport, server)
        assert (got.body, got.version) == (b"old", "1.0")


async def test_answers_without_a_body_keep_the_connection(transport: Transport) -> None:
    async with RawServer(
        answering(
            lambda got: b"HTTP/1.1 204 No\r\n\r\n" if got.line[0] == "D" else b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        )
    ) as server:
        for method, status in (("HEAD", 200), ("DELETE", 204), ("HEAD", 200)):
            got = await fetch(transport, server, method=method)
            assert (got.status, got.body) == (status, b"")
        assert server.connections == 1


async def test_an_interim_answer_is_passed_over(transport: Transport) -> None:
    async with RawServer(
        answering(lambda _: b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    ) as server:
        got = await fetch(transport, server)
        assert (got.status, got.body, "link" in got.headers) == (200, b"ok", False)


@pytest.mark.parametrize("size", [70_000, 600_000])
async def test_a_head_over_the_bound_is_too_large(transport: Transport, size: int) -> None:
    async with RawServer(replying(headers=[("X-Big", "a" * size)])) as server:
        assert (await failing(fetch(transport, server))).code == "UPSTREAM_TOO_LARGE"


# How it fails


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\nhello\r\n",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_cut_short_is_incomplete(transport: Transport, start: bytes, reset: bool) -> None:
    head_seen = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(start)
        await head_seen.wait()
        if reset:
            peer.reset()

    async with RawServer(handle) as server:
        async with transport.open(outbound(server), target(server)) as reply:
            head_seen.set()
            error = await failing(_drain(reply.chunks()))
        assert (error.code, error.sent) == ("UPSTREAM_INCOMPLETE", True)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


async def test_an_http2_body_shorter_than_its_length_is_incomplete(transport: Transport) -> None:
    async with Http2Server(lambda _: (200, [("content-length", "20")], b"hi")) as server:
        error = await failing(fetch(transport, server))
        assert (error.code, error.sent) == ("UPSTREAM_INCOMPLETE", True)


@pytest.mark.parametrize("reset", [False, True])
async def test_an_end_before_the_head_is_a_connect_error_after_sending(transport: Transport, reset: bool) -> None:
    async def handle(peer: Peer) -> None:
        await peer.receive()
        if reset:
            peer.reset()

    async with RawServer(handle) as server:
        error = await failing(fetch(transport, server, method="POST", body=b"once"))
        assert (error.code, error.sent) == ("CONNECT_ERROR", True)
        assert len(server.received) == 1


async def test_an_answer_that_is_not_http_is_a_connect_error(transport: Transport) -> None:
    async with RawServer(answering(lambda _: b"SSH-2.0-other\r\n\r\n")) as server:
        error = await failing(fetch(transport, server))
        assert (error.code, error.sent) == ("CONNECT_ERROR", True)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_refused_connection_is_a_connect_error_before_sending(transport: Transport, scheme: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        where = Target(scheme, HOST, sock.getsockname()[1], "127.0.0.1")
        error = await failing(read(transport, Outbound("GET", f"{scheme}://{HOST}/"), where))
    assert (error.code, error.sent) == ("CONNECT_ERROR", False)


async def test_a_connection_not_accepted_in_time_is_a_time_out_before_sending(engine: Engine) -> None:
    transport = engine(0.2)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fill = [socket.socket() for _ in range(3)]  # a full backlog: the kernel drops what comes next
        for one in fill:
            one.setblocking(False)
            one.connect_ex(sock.getsockname())
        where = Target("http", HOST, sock.getsockname()[1], "127.0.0.1")
        error = await failing(read(transport, Outbound("GET", f"http://{HOST}/"), where))
        for one in fill:
            one.close()
    assert (error.code, error.sent) == ("TIMEOUT", False)
    await transport.aclose()


async def test_a_mute_peer_in_the_handshake_is_a_time_out_before_sending(engine: Engine) -> None:
    transport = engine(0.2)
    async with RawServer(Peer.until_gone) as server:
        error = await failing(read(transport, outbound(server), Target("https", HOST, server.port, "127.0.0.1")))
        assert (error.code, error.sent) == ("TIMEOUT", False)
        await settled(lambda: server.open == 0)
    await transport.aclose()


async def test_a_connection_closed_while_idle_is_not_used_again(transport: Transport) -> None:
    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.reply(b"one")

    async with RawServer(handle) as server:
        for number in range(1, 6):
            assert (await fetch(transport, server, method="POST", body=b"x")).body == b"one"
            await settled(lambda: server.open == 0)
            await _ticks()
            assert server.connections == number


async def _ticks() -> None:
    """Long enough for an engine's own thread to hear of the end; the test only gets stricter without it."""
    for _ in range(200):
        await asyncio.to_thread(lambda: None)


# Bytes after the answer


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
LENGTH = f"Content-Length: {len(POISON)}\r\n\r\n".encode()


def echoed(got: Received) -> bytes:
    body = got.line.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def echoed_in_chunks(got: Received) -> bytes:
    body = got.line.encode()
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("answer", [echoed, echoed_in_chunks])
@pytest.mark.parametrize("extra", [POISON, POISON[:12], b"\r\n", b"x"], ids=["answer", "start", "newline", "byte"])
async def test_bytes_that_come_with_an_answer_reach_no_other_caller(
    transport: Transport, answer: Callable[[Received], bytes], extra: bytes
) -> None:
    async with RawServer(answering(lambda got: answer(got) + extra)) as server:
        for number in range(8):
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()
        assert server.connections == 8


@pytest.mark.parametrize("extra", [POISON, b"\r\n", b"x"], ids=["answer", "newline", "byte"])
async def test_bytes_that_come_while_a_connection_is_idle_reach_no_other_caller(transport: Transport, extra: bytes) -> None:
    peers: list[Peer] = []

    async def handle(peer: Peer) -> None:
        peers.append(peer)
        while True:
            await peer.send(echoed(await peer.receive()))

    async with RawServer(handle) as server:
        for number in range(4):
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()
            await peers[-1].send(extra)
            await _ticks()
        assert server.connections == 4


@pytest.mark.parametrize("tls", [False, True])
async def test_httpx_sees_bytes_that_its_loop_has_not_read_yet(tls: bool) -> None:
    transport = HttpxTransport(5.0, ca_pem())
    peers: list[Peer] = []

    async def handle(peer: Peer) -> None:
        peers.append(peer)
        while True:
            await peer.send(echoed(await peer.receive()))

    async with RawServer(handle, tls=server_context() if tls else None) as server:
        for number in range(4):
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()
            await peers[-1].send(POISON)  # in the kernel once this returns, and the loop doesn't turn before the next request
        assert server.connections == 4
    await transport.aclose()


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("DELETE", 204)])
async def test_a_body_where_none_may_be_reaches_no_other_caller(transport: Transport, method: str, status: int) -> None:
    def answer(got: Received) -> bytes:
        return f"HTTP/1.1 {status} X\r\n".encode() + LENGTH + POISON if "/none" in got.line else echoed(got)

    async with RawServer(answering(answer)) as server:
        for number in range(4):
            got = await fetch(transport, server, "/none", method=method)
            assert (got.status, got.body) == (status, b"")
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()


# Transfer codings


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity", "gzip", "chunked, gzip", "chunked, chunked", "", "chunked\xff"])
async def test_a_transfer_coding_other_than_chunked_is_refused(transport: Transport, coding: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n2\r\nok\r\n0\r\n\r\n".encode("latin-1")
    await _refused_coding(transport, answer)


async def test_a_transfer_coding_given_twice_is_refused(transport: Transport) -> None:
    lines = b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    await _refused_coding(transport, b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n2\r\nok\r\n0\r\n\r\n")


async def _refused_coding(transport: Transport, answer: bytes) -> None:
    async with RawServer(answering(lambda got: answer if "/coded" in got.line else echoed(got))) as server:
        for number in range(2):
            error = await failing(fetch(transport, server, "/coded"))
            assert (error.code, error.sent) == ("CONNECT_ERROR", True)
            assert error.message == "The upstream's answer has a transfer coding other than chunked"
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()


async def test_chunked_is_read_however_it_is_written(transport: Transport) -> None:
    async with RawServer(
        answering(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED \r\n\r\n2\r\nok\r\n0\r\n\r\n")
    ) as server:
        for _ in range(2):
            assert (await fetch(transport, server)).body == b"ok"
        assert server.connections == 1


# TLS


async def test_an_unknown_authority_is_a_tls_error(engine: Engine) -> None:
    transport = engine(5.0, ca_pem("other"))
    async with RawServer(replying(), tls=server_context()) as server:
        error = await failing(fetch(transport, server))
        assert (error.code, error.sent) == ("TLS_ERROR", False)
        assert not server.received
    await transport.aclose()


async def test_a_certificate_of_another_name_is_a_tls_error(transport: Transport) -> None:
    async with RawServer(replying(), tls=server_context("else.test")) as server:
        error = await failing(fetch(transport, server))
        assert (error.code, error.sent) == ("TLS_ERROR", False)


async def test_a_peer_that_speaks_no_tls_is_a_tls_error(transport: Transport) -> None:
    async def handle(peer: Peer) -> None:
        await peer.send(b"220 mail.test ESMTP\r\n")

    async with RawServer(handle) as server:
        error = await failing(read(transport, outbound(server), Target("https", HOST, server.port, "127.0.0.1")))
        assert (error.code, error.sent) == ("TLS_ERROR", False)


async def test_an_authority_of_the_source_is_trusted_for_it_alone(engine: Engine) -> None:
    transport = engine(5.0)
    async with RawServer(replying(), tls=server_context()) as server:
        trusting = target(server, tls=TlsOptions(ca=ca_pem("other") + ca_pem()))
        assert (await read(transport, outbound(server), trusting)).status == 200
        assert (await failing(fetch(transport, server))).code == "TLS_ERROR"
    await transport.aclose()


@pytest.mark.parametrize("http2", [False, True])
async def test_mutual_tls_shows_the_identity_of_the_source(transport: Transport, http2: bool) -> None:
    server: Any = Http2Server(want_client=True) if http2 else RawServer(replying(), tls=server_context(want_client=True))
    async with server:
        known = target(server, tls=TlsOptions(identity=identity_pem()))
        assert (await read(transport, outbound(server), known)).status == 200
        error = await failing(fetch(transport, server))
        assert error.code in {"TLS_ERROR", "CONNECT_ERROR"}  # TLS 1.3 tells after the handshake, if the reset leaves it time


@pytest.mark.parametrize("options", [TlsOptions(ca=b"junk"), TlsOptions(identity=b"junk"), TlsOptions(identity=ca_pem())])
async def test_material_that_is_no_pem_is_a_tls_error(transport: Transport, options: TlsOptions) -> None:
    async with RawServer(replying(), tls=server_context()) as server:
        error = await failing(read(transport, outbound(server), target(server, tls=options)))
        assert (error.code, error.sent) == ("TLS_ERROR", False)


# Giving up


@pytest.mark.parametrize("where", ["head", "body"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_deadline_ends_the_connection(transport: Transport, where: str, tls: bool) -> None:
    gone = asyncio.Event()
    begun = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.receive()
        if where == "body":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
        begun.set()
        await peer.until_gone()
        gone.set()

    async with RawServer(handle, tls=server_context() if tls else None) as server:
        with pytest.raises(TimeoutError):
            await _until(begun, transport, server)
        async with asyncio.timeout(10):
            await gone.wait()


async def _until(begun: asyncio.Event, transport: Any, server: RawServer) -> None:
    """A fetch whose deadline comes as soon as the peer has begun."""

    async def expire() -> None:
        await begun.wait()
        deadline.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
        group.create_task(expire())
        async with transport.open(outbound(server), target(server), within=1.0) as reply:
            await _drain(reply.chunks())


async def test_cancelled_requests_leave_no_connection_and_no_wrong_answer(transport: Transport) -> None:
    async def handle(peer: Peer) -> None:
        while True:
            got = await peer.receive()
            if "/held" in got.line:
                await peer.until_gone()
                return
            await peer.reply(got.line.encode())

    async with RawServer(handle) as server:
        tasks = [
            asyncio.get_running_loop().create_task(fetch(transport, server, f"/held/{number}", within=0.5))
            for number in range(20)
        ]
        await settled(lambda: len(server.received) == 20)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        for number in range(20):
            assert (await fetch(transport, server, f"/{number}")).body == f"GET /{number} HTTP/1.1".encode()
        await settled(lambda: server.open <= 1)


async def test_a_cancelled_http2_exchange_is_reset_and_the_connection_goes_on(transport: Transport) -> None:
    async with Http2Server() as server:
        await fetch(transport, server)
        server.answer = lambda _: None
        task = asyncio.get_running_loop().create_task(fetch(transport, server, within=0.2))
        await settled(lambda: len(server.requests) == 2)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(10):
            await server.reset_seen.wait()
        server.answer = lambda _: (200, [], b"on")
        assert (await fetch(transport, server)).body == b"on"
        assert server.connections == 1


# HTTP/2 peers that leave


@pytest.mark.parametrize(("every", "flying", "total"), [(50, 50, 600), (7, 5, 140), (200, 50, 800)])
async def test_goaway_fails_no_request_and_doubles_none(transport: Transport, every: int, flying: int, total: int) -> None:
    async with Http2Server(goaway_after=every) as server:
        numbers = iter(range(total))

        async def work() -> None:
            for number in numbers:
                headers = [("x-id", str(number))]
                got = await fetch(transport, server, method="POST", headers=headers, body=b"x" * (number % 3))
                assert (got.status, got.body) == (200, b"ok")

        async with asyncio.TaskGroup() as group:
            for _ in range(flying):
                group.create_task(work())
        assert server.processed == {str(number): 1 for number in range(total)}
        assert server.connections >= total // every


async def test_goaway_while_idle_costs_nothing(transport: Transport) -> None:
    async with Http2Server(goaway_after=1) as server:
        for number in range(10):
            assert (await fetch(transport, server, headers=[("x-id", str(number))])).status == 200
        assert server.processed == {str(number): 1 for number in range(10)}


async def test_a_refused_stream_is_sent_once_more(transport: Transport) -> None:
    async with Http2Server(refuse=1) as server:
        assert (await fetch(transport, server, headers=[("x-id", "a")])).status == 200
        assert server.processed == {"a": 1}


async def test_streams_refused_for_ever_are_given_up_unprocessed(transport: Transport) -> None:
    async with Http2Server(refuse=1_000) as server:
        error = await failing(fetch(transport, server))
        assert (error.code, error.sent) == ("CONNECT_ERROR", False)
        assert not server.requests


async def test_a_request_that_goaway_covers_is_not_sent_again(transport: Transport) -> None:
    async with Http2Server(cut=True) as server:
        error = await failing(fetch(transport, server, method="POST", headers=[("x-id", "a")], body=b"pay"))
        assert (error.code, error.sent) == ("CONNECT_ERROR", True)
        assert server.processed == {"a": 1}


async def test_httpx_opens_further_connections_to_a_peer_with_few_streams() -> None:
    transport = HttpxTransport(5.0, ca_pem())
    async with Http2Server(lambda _: None, streams=3) as server, asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(transport, server)) for _ in range(9)]
        await settled(lambda: len(server.requests) == 9)
        assert server.connections == 3
        for task in tasks:
            task.cancel()
    await transport.aclose()


# The body at once


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
async def test_a_body_of_known_length_within_the_bound_comes_whole(transport: Transport, http2: bool, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[: min(size, 60_000) if http2 else size]
    length = [("content-length", str(len(body)))]
    server: Any = Http2Server(lambda _: (200, length, body)) if http2 else RawServer(replying(body))
    async with server:
        for _ in range(2):
            async with asyncio.timeout(10), transport.open(outbound(server), target(server), within=10.0) as reply:
                assert await reply.whole(len(body)) == body
        assert server.connections == 1


async def test_a_body_over_the_bound_is_left_to_be_taken_in_chunks(transport: Transport) -> None:
    async with RawServer(replying(b"four")) as server, transport.open(outbound(server), target(server), within=10.0) as reply:
        assert await reply.whole(3) is None
        assert b"".join([chunk async for chunk in reply.chunks()]) == b"four"


@pytest.mark.parametrize("head", ["", "Content-Length: 2\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked"])
async def test_a_body_that_its_framing_does_not_bound_is_not_taken_whole(transport: Transport, head: str) -> None:
    body = b"2\r\nok\r\n0\r\n\r\n" if "chunked" in head else b"ok"

    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\nX-A: b\r\n" + (head.encode() + b"\r\n" if head else b"") + b"\r\n" + body)

    async with RawServer(handle) as server, transport.open(outbound(server), target(server), within=10.0) as reply:
        assert await reply.whole(1_000_000) is None
        assert b"".join([chunk async for chunk in reply.chunks()]) == b"ok"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_without_a_body_is_whole_and_empty(transport: Transport, method: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" if method == "HEAD" else b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n"
    async with RawServer(answering(lambda _: head)) as server:
        for _ in range(2):
            async with transport.open(outbound(server, method=method), target(server), within=10.0) as reply:
                assert await reply.whole(100) == b""
        assert server.connections == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_a_whole_body_cut_short_is_incomplete_and_its_status_known(transport: Transport, reset: bool) -> None:
    head_seen = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 503 X\r\nContent-Length: 20\r\nRetry-After: 7\r\n\r\nhi")
        await head_seen.wait()
        if reset:
            peer.reset()

    async with RawServer(handle) as server, asyncio.timeout(10):
        async with transport.open(outbound(server), target(server), within=10.0) as reply:
            assert (reply.status, reply.headers["retry-after"]) == (503, "7")
            head_seen.set()
            error = await failing(reply.whole(100))
        assert (error.code, error.sent) == ("UPSTREAM_INCOMPLETE", True)


async def test_a_cancelled_whole_body_ends_the_connection(transport: Transport) -> None:
    gone = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
        await peer.until_gone()
        gone.set()

    async with RawServer(handle) as server, asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            async with transport.open(outbound(server), target(server), within=1.0) as reply, asyncio.timeout(0):
                await reply.whole(100)
        await gone.wait()


# Connections that their peer ends


def counting(seen: Counter[bytes], each: int, *, announced: bool) -> Callable[[Peer], Awaitable[None]]:
    """A handler that ends its connection after `each` requests, with a word of it or without."""

    async def handle(peer: Peer) -> None:
        for number in range(each):
            got = await peer.receive()
            seen[got.body] += 1
            await peer.reply(b"ok", headers=[("Connection", "close")] if announced and number == each - 1 else ())

    return handle


async def _post_all(transport: Transport, server: RawServer, numbers: Iterator[int]) -> Counter[tuple[str, bool]]:
    """Every number once, twenty at a time; the failures by code and `sent`."""
    failures: Counter[tuple[str, bool]] = Counter()

    async def work() -> None:
        for number in numbers:
            try:
                assert (await fetch(transport, server, method="POST", body=b"%d" % number)).body == b"ok"
            except UpstreamError as error:
                failures[error.code, error.sent] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(work())
    return failures


@pytest.mark.parametrize("tls", [False, True])
async def test_connections_that_end_after_some_requests_fail_none_of_2000(transport: Transport, tls: bool) -> None:
    seen: Counter[bytes] = Counter()
    context = server_context() if tls else None
    async with RawServer(counting(seen, 7, announced=True), tls=context) as server:
        assert not await _post_all(transport, server, iter(range(2000)))
        assert seen == {b"%d" % number: 1 for number in range(2000)}
        assert server.connections >= 2000 // 7


async def test_connections_that_end_while_idle_fail_none_of_2000(transport: Transport) -> None:
    seen: Counter[bytes] = Counter()
    everybody_out = asyncio.Event()

    async def handle(peer: Peer) -> None:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(counting(seen, 2000, announced=False)(peer))
            await everybody_out.wait()
            serving.cancel()
        await peer.end()

    async with RawServer(handle) as server:
        for start in range(0, 2000, 100):
            assert not await _post_all(transport, server, iter(range(start, start + 100)))
            everybody_out.set()
            await settled(lambda: server.open == 0)
            everybody_out.clear()
        assert seen == {b"%d" % number: 1 for number in range(2000)}
        assert server.connections >= 20


@pytest.mark.parametrize(
    ("said", "kept"), [("timeout=0", False), ("max=3, Timeout = 0", False), ("timeout=3600", True), ("?", True)]
)
async def test_a_connection_is_kept_no_longer_than_its_peer_says(transport: Transport, said: str, kept: bool) -> None:
    async with RawServer(replying(headers=[("Keep-Alive", said)])) as server:
        for _ in range(5):
            assert (await fetch(transport, server, method="POST")).body == b"ok"
        assert server.connections == (1 if kept else 5)
        if not kept:
            await fetch(transport, server)
            await settled(lambda: server.open <= 1)


async def test_a_request_that_meets_the_end_of_its_connection_is_never_made_twice(transport: Transport) -> None:
    seen: Counter[bytes] = Counter()
    async with RawServer(counting(seen, 3, announced=False)) as server:
        failures = await _post_all(transport, server, iter(range(2000)))
    assert set(failures) <= {("CONNECT_ERROR", True)}
    assert set(seen.values()) == {1}
    assert len(seen) >= 2000 - failures.total()


# TLS sessions


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_sessions_are_resumed(transport: Transport, version: ssl.TLSVersion) -> None:
    context, resumed = server_context(), []
    context.minimum_version = context.maximum_version = version

    async def handle(peer: Peer) -> None:
        resumed.append(peer.resumed)
        await peer.receive()
        await peer.reply(b"ok")

    async with RawServer(handle, tls=context) as server:
        for _ in range(4):
            assert (await fetch(transport, server)).body == b"ok"
            await settled(lambda: server.open == 0)
    assert resumed == [False, True, True, True]


async def test_a_session_serves_no_other_identity_or_trust(transport: Transport) -> None:
    resumed = []

    async def handle(peer: Peer) -> None:
        resumed.append(peer.resumed)
        await peer.receive()
        await peer.reply(b"ok")

    async with RawServer(handle, tls=server_context()) as server:
        for tls in (TlsOptions(), TlsOptions(ca=ca_pem()), TlsOptions(identity=identity_pem())):
            assert (await read(transport, outbound(server), target(server, tls=tls))).status == 200
            await settled(lambda: server.open == 0)
    assert resumed == [False, False, False]


# The bulkhead


async def test_requests_over_the_bound_of_an_origin_wait_and_leave_others_alone(engine: Engine) -> None:
    transport = engine(5.0, max_in_flight=3)
    release = asyncio.Event()

    async def handle(peer: Peer) -> None:
        while True:
            got = await peer.receive()
            if "/held" in got.line:
                await release.wait()
            await peer.reply(b"ok")

    async with RawServer(handle) as slow, RawServer(handle) as quick, asyncio.TaskGroup() as group:
        held = [group.create_task(fetch(transport, slow, f"/held/{number}")) for number in range(8)]
        await settled(lambda: len(slow.received) == 3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), transport.open(outbound(slow), target(slow), within=0.01):
                pass
        assert (await fetch(transport, quick)).body == b"ok"
        assert (len(slow.received), slow.open) == (3, 3)
        held[0].cancel()
        held[7].cancel()
        release.set()
        await asyncio.wait(held)
        assert [task.cancelled() for task in held] == [True, *[False] * 6, True]
        assert (await fetch(transport, slow)).body == b"ok"
    await transport.aclose()
