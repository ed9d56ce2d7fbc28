"""What httpx itself would do, and here doesn't; and when a connection is free again."""

from __future__ import annotations

import asyncio
import logging
import pathlib
from collections.abc import AsyncIterator

import httpx
import pytest

from broker_edge.backends.http_httpx import HttpxTransport
from broker_edge.backends.http_pinned import PinnedTransport
from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import CallerError, UpstreamError
from tests.upstreams import HOST, Http2Server, RawServer, ca_pem, replying, server_context


@pytest.fixture
async def transport() -> AsyncIterator[HttpxTransport]:
    transport = HttpxTransport(5.0, ca_pem())
    yield transport
    await transport.aclose()


def plain(server: RawServer) -> Target:
    return Target("http", HOST, server.port, "127.0.0.1")


async def test_every_request_passes_httpxs_client_and_its_log_holds_no_path(
    transport: HttpxTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "httpx")
    async with RawServer(replying()) as server, Http2Server() as other:
        for where in (plain(server), Target("https", HOST, other.port, "127.0.0.1")):
            async with transport.open(Outbound("GET", f"{where.scheme}://u:p@{HOST}/path?token=t"), where) as reply:
                assert reply.status == 200
        assert caplog.messages == [
            f'HTTP Request: GET http://{HOST}:{server.port}/ "HTTP/1.1 200 OK"',
            f'HTTP Request: GET https://{HOST}:{other.port}/ "HTTP/2 200 OK"',
        ]


async def test_a_connection_is_free_once_its_body_is_read(transport: HttpxTransport) -> None:
    async with RawServer(replying(b"body")) as server, asyncio.timeout(10):
        request, where = Outbound("GET", server.url), plain(server)
        async with transport.open(request, where) as first:
            assert [chunk async for chunk in first.chunks()] == [b"body"]
            async with transport.open(request, where) as second:
                assert second.status == 200
        assert server.connections == 1


async def test_a_connection_with_an_unread_body_is_given_up(transport: HttpxTransport) -> None:
    async with RawServer(replying(b"body")) as server, asyncio.timeout(10):
        for _ in range(2):
            async with transport.open(Outbound("GET", server.url), plain(server)):
                pass
        assert server.connections == 2


async def test_no_authority_is_trusted_for_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(ca_pem())
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(authority))
    transport = HttpxTransport(5.0)
    async with RawServer(replying(), tls=server_context()) as server:
        with pytest.raises(UpstreamError) as caught:
            async with transport.open(Outbound("GET", server.url), Target("https", HOST, server.port, "127.0.0.1")):
                pass
        assert (caught.value.code, caught.value.sent) == ("TLS_ERROR", False)
    await transport.aclose()


async def test_a_closed_transport_sends_nothing(transport: HttpxTransport) -> None:
    async with RawServer(replying()) as server:
        await transport.aclose()
        with pytest.raises(UpstreamError) as caught:
            async with transport.open(Outbound("GET", server.url), plain(server)):
                pass
        assert (caught.value.code, caught.value.sent, server.connections) == ("CONNECT_ERROR", False, 0)


@pytest.mark.parametrize("host", ["b\u00fcro.test", "1.2.3.999", "a b\x00"])
async def test_a_host_that_cannot_stand_in_a_url_is_refused_unsent(transport: HttpxTransport, host: str) -> None:
    async with RawServer(replying()) as server:
        with pytest.raises(CallerError) as caught:
            async with transport.open(Outbound("GET", server.url), Target("http", host, server.port, "127.0.0.1")):
                pass
        assert (caught.value.code, server.connections) == ("INVALID_VALUE", 0)


async def test_the_pinned_transport_serves_a_plain_client_of_httpx() -> None:
    async with (
        Http2Server(lambda request: (201, [("x-a", "1")], bytes(request.body))) as server,
        httpx.AsyncClient(transport=PinnedTransport(5.0, ca_pem(), 1), trust_env=False) as client,
    ):
        extensions = {"target": Target("https", HOST, server.port, "127.0.0.1"), "request_target": b"/echo"}
        response = await client.send(httpx.Request("POST", server.url, content=b"word", extensions=extensions))
        assert (response.status_code, response.headers["x-a"], response.text) == (201, "1", "word")
        assert server.requests[0].pseudo[":path"] == "/echo"
