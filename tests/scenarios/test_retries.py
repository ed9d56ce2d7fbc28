"""How often an upstream is called, and for how long, over either HTTP engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.edges import Answer, Bureau, InProcess, http_reply, in_process, json_reply, request, spec
from tests.edges import settings as make_settings
from tests.servers import free_port
from tests.upstreams import Handler, Peer, RawServer

_IDEMPOTENT = ["GET", "HEAD", "PUT", "DELETE"]
_OTHERS = ["POST", "PATCH"]


@pytest.fixture(params=["pyreqwest", "httpx"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[InProcess]:
    chosen = make_settings(tmp_path, http_engine=request.param, allowed_private_hosts="127.0.0.1", connect_timeout=5)
    async with in_process(chosen) as running:
        yield running


def retrying(url: str, method: str = "GET", timeout: float = 20, **retry: Any) -> dict[str, Any]:
    policy = {"max_retries": 3, "backoff_factor": 0, **retry}
    return request(spec(url, method=method, response_type="PLAIN_TEXT", timeout=timeout, retry=policy))


def code(answer: Answer) -> str:
    text: str = answer.json()["error"]["code"]
    return text


def in_turn(*replies: bytes) -> Callable[[Any], bytes]:
    """The replies one after the other, the last one for ever."""
    waiting = list(replies)
    return lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]


OK = http_reply(b"ok")


# How often


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_listed_status_is_tried_again_until_it_is_gone(edge: InProcess, bureau: Bureau, method: str) -> None:
    bureau._answer = in_turn(http_reply(b"", 503), http_reply(b"", 500), OK)
    answer = await edge.post(retrying(bureau.url, method))
    assert (answer.status, answer.json()["value"], len(bureau.calls)) == (200, "ok", 3)


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_there_are_as_many_retries_as_the_spec_allows(edge: InProcess, bureau: Bureau, retries: int) -> None:
    bureau._answer = in_turn(http_reply(b"", 503))
    answer = await edge.post(retrying(bureau.url, max_retries=retries))
    assert (answer.status, code(answer), answer.json()["upstream_status"]) == (502, "UPSTREAM_STATUS", 503)
    assert answer.json()["error"]["retryable"] is True
    assert len(bureau.calls) == 1 + retries


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 501])
async def test_a_status_that_is_not_listed_is_final(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = in_turn(http_reply(b"no", status))
    answer = await edge.post(retrying(bureau.url))
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["upstream_status"], error["retryable"]) == (502, "UPSTREAM_STATUS", status, False)
    assert len(bureau.calls) == 1


async def test_the_list_of_statuses_is_the_specs(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = in_turn(http_reply(b"", 418), http_reply(b"", 500))
    answer = await edge.post(retrying(bureau.url, status_forcelist=[418]))
    assert (answer.json()["upstream_status"], len(bureau.calls)) == (500, 2)


@pytest.mark.parametrize("status", [304, 300, 302, 399])
async def test_a_redirect_that_leads_nowhere_is_an_error(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = in_turn(b"HTTP/1.1 %d X\r\n%s\r\n" % (status, b"" if status == 304 else b"Content-Length: 0\r\n"))
    answer = await edge.post(retrying(bureau.url))
    assert (answer.status, code(answer), answer.json()["upstream_status"]) == (502, "UPSTREAM_STATUS", status)


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226])
async def test_every_status_of_the_two_hundreds_is_a_success(edge: InProcess, bureau: Bureau, status: int) -> None:
    bureau._answer = in_turn(http_reply(b"ok", status))
    answer = await edge.post(retrying(bureau.url))
    assert (answer.status, answer.json()["value"]) == (200, "ok")
    assert f"fwd-status={status}" in answer.headers["cache-status"]


@pytest.mark.parametrize("response_type", ["JSON", "XML", "CSV", "PLAIN_TEXT"])
async def test_no_content_is_a_success(edge: InProcess, bureau: Bureau, response_type: str) -> None:
    bureau._answer = in_turn(b"HTTP/1.1 204 No Content\r\n\r\n")
    answer = await edge.post(request(spec(bureau.url, response_type=response_type)))
    assert (answer.status, answer.json()["value"]) == (200, {"CSV": [], "PLAIN_TEXT": ""}.get(response_type))


async def test_head_has_no_body_whatever_its_headers_say(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = in_turn(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Encoding: gzip\r\n\r\n")
    answer = await edge.post(retrying(bureau.url, "HEAD"))
    assert (answer.status, answer.json()["value"], len(bureau.calls)) == (200, "", 1)


@pytest.mark.parametrize("method", [*_IDEMPOTENT, *_OTHERS])
async def test_a_refused_connection_is_tried_again_whatever_the_method(edge: InProcess, method: str) -> None:
    answer = await edge.post(retrying(f"http://127.0.0.1:{free_port()}/", method, max_retries=2))
    assert (answer.status, code(answer), answer.json()["error"]["retryable"]) == (502, "CONNECT_ERROR", True)
    assert edge.edge.metrics.render().count(b'upstream_attempts_total{outcome="connect_error"} 3.0') == 1


async def dropping(peer: Peer) -> None:
    await peer.receive()
    peer.reset()


async def truncating(peer: Peer) -> None:
    await peer.receive()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


@pytest.mark.parametrize(("handler", "expected"), [(dropping, "CONNECT_ERROR"), (truncating, "UPSTREAM_INCOMPLETE")])
@pytest.mark.parametrize(("method", "calls"), [*((one, 3) for one in ("GET", "PUT")), *((one, 1) for one in _OTHERS)])
async def test_what_may_have_been_processed_is_sent_again_only_by_idempotent_methods(
    edge: InProcess, handler: Handler, expected: str, method: str, calls: int
) -> None:
    async with RawServer(handler) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/", method, max_retries=2))
        assert (answer.status, code(answer), len(server.received)) == (502, expected, calls)


async def test_a_status_counts_though_its_body_is_cut_short(edge: InProcess) -> None:
    async def failing(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nhalf")

    async with RawServer(failing) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/", "POST", max_retries=2))
        assert (code(answer), answer.json().get("upstream_status"), len(server.received)) == ("UPSTREAM_STATUS", 503, 3)


async def test_a_status_counts_though_its_body_never_ends(edge: InProcess) -> None:
    async def failing(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            await peer.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    async with RawServer(failing) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/"))
        assert (code(answer), answer.json()["upstream_status"]) == ("UPSTREAM_STATUS", 404)


# For how long


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
async def test_a_retry_after_beyond_the_deadline_ends_the_fetch_at_once(edge: InProcess, bureau: Bureau, value: str) -> None:
    bureau._answer = in_turn(http_reply(b"", 503, f"Retry-After: {value}"), OK)
    answer = await edge.post(retrying(bureau.url, timeout=300))
    assert (code(answer), answer.json()["upstream_status"], len(bureau.calls)) == ("UPSTREAM_STATUS", 503, 1)


@pytest.mark.parametrize("value", ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "-1"])
async def test_a_retry_after_that_asks_for_no_wait_is_tried_again(edge: InProcess, bureau: Bureau, value: str) -> None:
    bureau._answer = in_turn(http_reply(b"", 503, f"Retry-After: {value}"), OK)
    answer = await edge.post(retrying(bureau.url))
    assert (answer.status, len(bureau.calls)) == (200, 2)


async def test_an_upstream_that_says_nothing_is_given_up_at_the_deadline(edge: InProcess) -> None:
    gone = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.receive()
        await peer.until_gone()
        gone.set()

    async with RawServer(silent) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/", timeout=0.3))
        assert (answer.status, code(answer), answer.json()["error"]["source"]) == (502, "TIMEOUT", "upstream")
        assert "source.timeout" in answer.json()["detail"]
        await asyncio.wait_for(gone.wait(), 30)
        assert len(server.received) == 1


async def test_an_upstream_that_drips_does_not_outlive_the_deadline(edge: InProcess) -> None:
    gone = asyncio.Event()

    async def dripping(peer: Peer) -> None:
        await peer.receive()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while True:
                await peer.send(b"x")
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async with RawServer(dripping) as server:
        body = retrying(f"http://127.0.0.1:{server.port}/", timeout=0.3)
        answer = await edge.post(body)
        assert (answer.status, code(answer)) == (502, "TIMEOUT")
        await asyncio.wait_for(gone.wait(), 30)
        assert (await edge.post({**body, "mode": "cache_only"})).json()["error"]["code"] == "NOT_CACHED"


async def test_an_attempt_has_a_time_out_of_its_own(edge: InProcess) -> None:
    async def slow_at_first(peer: Peer) -> None:
        await peer.receive()
        if len(server.received) == 1:
            await peer.until_gone()
        await peer.reply(b"ok")

    async with RawServer(slow_at_first) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/", attempt_timeout=0.5))
        assert answer.status == 200
        assert len(server.received) >= 2  # a busy machine may let a further attempt run out


async def test_an_attempt_that_timed_out_is_no_reason_to_post_again(edge: InProcess) -> None:
    async def silent(peer: Peer) -> None:
        await peer.receive()
        await peer.until_gone()

    async with RawServer(silent) as server:
        answer = await edge.post(retrying(f"http://127.0.0.1:{server.port}/", "POST", attempt_timeout=0.2))
        assert (code(answer), len(server.received)) == ("TIMEOUT", 1)
        assert "attempt_timeout" in answer.json()["detail"]


async def test_retries_happen_within_the_deadline_of_the_whole_fetch(edge: InProcess, bureau: Bureau) -> None:
    bureau._answer = in_turn(http_reply(b"", 503, "Retry-After: 1"))
    answer = await edge.post(retrying(bureau.url, timeout=0.5, max_retries=10))
    assert (code(answer), len(bureau.calls)) == ("UPSTREAM_STATUS", 1)


async def test_a_name_that_does_not_resolve_is_a_dns_error(edge: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    answer = await edge.post(retrying("http://bureau.invalid/", "POST", max_retries=2))
    assert (answer.status, code(answer), answer.json()["error"]["retryable"]) == (502, "DNS_ERROR", True)
    assert set(asked) == {"bureau.invalid"}


async def test_what_goes_out_is_what_the_spec_says(edge: InProcess, bureau: Bureau) -> None:
    body = retrying(f"{bureau.url}/a%20b/{{{{ id }}}}?x=1", "PATCH")
    source = body["data_source_spec"]["source"]
    source |= {"headers": {"X-Id": "{{ id }}"}, "params": {"q": ["{{ id }}", 2]}, "body": {"id": "{{ id }}", "n": 1}}
    body["configured_params"] = {"id": "a/b?c&d"}
    bureau._answer = in_turn(json_reply(1))
    assert (await edge.post(body)).status == 200
    (call,) = bureau.calls
    assert call.line == "PATCH /a%20b/a%2Fb%3Fc%26d?x=1&q=a%2Fb%3Fc%26d&q=2 HTTP/1.1"
    assert (call.get("x-id"), call.get("content-type"), call.body) == ("a/b?c&d", "application/json", b'{"id":"a/b?c&d","n":1}')
    assert call.get("host") == f"127.0.0.1:{bureau.port}"
    assert call.get("accept-encoding") == "gzip, deflate, br, zstd"
