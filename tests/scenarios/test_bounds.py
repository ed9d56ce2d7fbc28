"""How much of an upstream's answer is taken, in which codings, and that half an answer is none; over either HTTP engine."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, request, settings, spec, table
from tests.upstreams import Peer, RawServer

_ENCODED = 64 * 1024
_DECODED = 256 * 1024
_TEXT = b"score;" * 1000


def _deflated(data: bytes) -> bytes:
    """Without zlib's header, as some servers send it."""
    return zlib.compress(data)[2:-4]


_CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "GZIP": gzip.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}


@pytest.fixture(params=["pyreqwest", "httpx"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InProcess]:
    bounds = {"max_encoded_bytes": _ENCODED, "max_decoded_bytes": _DECODED}
    async with in_process(settings(tmp_path, http_engine=request.param, allowed_private_hosts="127.0.0.1", **bounds)) as running:
        yield running


def asking(url: str, **members: Any) -> dict[str, Any]:
    return request(spec(url, **{"response_type": "PLAIN_TEXT", **members}))


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]["code"]


@pytest.mark.parametrize("coding", _CODINGS)
async def test_a_content_coding_is_undone(edge: InProcess, bureau: Bureau, coding: str) -> None:
    bureau._answer = lambda _: http_reply(_CODINGS[coding](_TEXT), 200, f"Content-Encoding: {coding}")
    answer = await edge.post(asking(bureau.url))
    assert (answer.status, answer.json()["value"]) == (200, _TEXT.decode())


async def test_an_object_is_kept_without_its_content_coding(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda _: http_reply(gzip.compress(_TEXT), 200, "Content-Encoding: gzip")
    await edge.post(asking(bureau.url))
    (row,) = await table(edge.edge.engine, "data_object")
    assert bytes(row.value) == _TEXT


@pytest.mark.parametrize("coding", ["compress", "made-up", "gzip, gzip, gzip, gzip"])
async def test_a_coding_that_is_not_known_is_a_parse_error(edge: InProcess, bureau: Bureau, coding: str) -> None:
    bureau._answer = lambda _: http_reply(_TEXT, 200, f"Content-Encoding: {coding}")
    assert code(await edge.post(asking(bureau.url))) == (502, "PARSE_ERROR")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_body_that_is_not_in_its_coding_is_a_parse_error(edge: InProcess, bureau: Bureau, coding: str) -> None:
    bureau._answer = lambda _: http_reply(b"\x00plain text\xff" * 20, 200, f"Content-Encoding: {coding}")
    assert code(await edge.post(asking(bureau.url))) == (502, "PARSE_ERROR")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_over_the_bound_is_refused_while_it_flows(edge: InProcess, chunked: bool) -> None:
    async def endless(peer: Peer) -> None:
        await peer.receive()
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000000"
        await peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        piece = b"x" * 8192
        while True:
            await peer.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)

    async with RawServer(endless) as server:
        answer = await edge.post(asking(f"http://127.0.0.1:{server.port}/"))
    assert code(answer) == (502, "UPSTREAM_TOO_LARGE")
    assert str(_ENCODED) in answer.json()["detail"]


async def test_a_body_of_exactly_the_bound_is_taken(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = lambda got: http_reply(b"x" * (_ENCODED + ("more" in got.line)))
    assert len((await edge.post(asking(bureau.url))).json()["value"]) == _ENCODED
    assert code(await edge.post(asking(f"{bureau.url}/more"))) == (502, "UPSTREAM_TOO_LARGE")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
async def test_a_small_body_that_inflates_beyond_the_bound_is_refused(edge: InProcess, bureau: Bureau, coding: str) -> None:
    bomb = _CODINGS[coding](b"\x00" * (2**20))
    assert len(bomb) < _ENCODED
    bureau._answer = lambda _: http_reply(bomb, 200, f"Content-Encoding: {coding}")
    answer = await edge.post(asking(bureau.url))
    assert code(answer) == (502, "UPSTREAM_TOO_LARGE")
    assert str(_DECODED) in answer.json()["detail"]
    assert await table(edge.edge.engine, "data_object") == []


def _half(head: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + body


_HALVES = {
    "content-length": _half("Content-Length: 100", b"half"),
    "no body at all": _half("Content-Length: 100", b""),
    "chunked without an end": _half("Transfer-Encoding: chunked", b"4\r\nhalf\r\n"),
    "within a chunk": _half("Transfer-Encoding: chunked", b"64\r\nhalf"),
    "gzip": _half("Connection: close\r\nContent-Encoding: gzip", gzip.compress(_TEXT)[:-12]),
    "gzip trailer": _half("Connection: close\r\nContent-Encoding: gzip", gzip.compress(_TEXT)[:-1]),
    "deflate": _half("Connection: close\r\nContent-Encoding: deflate", zlib.compress(_TEXT)[:-6]),
    "raw deflate": _half("Connection: close\r\nContent-Encoding: deflate", _deflated(_TEXT)[:-1]),
    "br": _half("Connection: close\r\nContent-Encoding: br", brotli.compress(_TEXT)[:-2]),
    "zstd": _half("Connection: close\r\nContent-Encoding: zstd", zstandard.ZstdCompressor().compress(_TEXT)[:-2]),
}


@pytest.mark.parametrize("name", _HALVES)
async def test_half_an_answer_is_an_error_and_never_cached(edge: InProcess, name: str) -> None:
    async def cutting(peer: Peer) -> None:
        await peer.receive()
        await peer.send(_HALVES[name])

    async with RawServer(cutting) as server:
        body = asking(f"http://127.0.0.1:{server.port}/")
        answers = [await edge.post(body), await edge.post(body)]
        assert [code(answer) for answer in answers] == [(502, "UPSTREAM_INCOMPLETE")] * 2
        assert len(server.received) == 2
    assert {answer.json()["error"]["retryable"] for answer in answers} == {True}
    assert await table(edge.edge.engine, "data_object") == []


async def test_a_body_that_ends_with_its_connection_is_whole(edge: InProcess) -> None:
    async def closing(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + _TEXT)

    async with RawServer(closing) as server:
        answer = await edge.post(asking(f"http://127.0.0.1:{server.port}/"))
    assert (answer.status, answer.json()["value"]) == (200, _TEXT.decode())


async def test_a_head_without_end_is_refused(edge: InProcess) -> None:
    async def shouting(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(300)) + b"\r\n")

    async with RawServer(shouting) as server:
        answer = await edge.post(asking(f"http://127.0.0.1:{server.port}/"))
    assert code(answer) == (502, "UPSTREAM_TOO_LARGE")


@pytest.mark.parametrize(
    "reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46"], ids=repr
)
async def test_what_is_no_http_is_a_connection_error(edge: InProcess, reply: bytes) -> None:
    async def talking(peer: Peer) -> None:
        await peer.receive()
        await peer.send(reply)

    async with RawServer(talking) as server:
        answer = await edge.post(asking(f"http://127.0.0.1:{server.port}/"))
    assert code(answer) == (502, "CONNECT_ERROR")


@pytest.mark.parametrize("engine", ["pyreqwest", "httpx"])
async def test_five_megabytes_of_json_pass_whole_and_again_from_the_cache(tmp_path: Path, bureau: Bureau, engine: str) -> None:
    value = {"rows": [{"id": number, "name": "x" * 80} for number in range(50_000)]}
    data = json.dumps(value).encode()
    assert len(data) > 5_000_000
    bureau._answer = lambda _: http_reply(data, 200, "Content-Type: application/json")
    async with in_process(settings(tmp_path, bureau.port, http_engine=engine)) as edge:
        body = asking(bureau.url, response_type="JSON")
        first, second = await edge.post(body), await edge.post(body)
    assert (first.json()["value"] == value, second.json()["value"] == value) == (True, True)
    assert (second.json()["origin"], len(bureau.calls)) == ("CACHE", 1)
