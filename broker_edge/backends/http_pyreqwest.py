"""The `Transport` over pyreqwest: reqwest and rustls in threads of their own; HTTP/2 by ALPN, HTTP/1.1 otherwise.

reqwest itself sends again what GOAWAY or REFUSED_STREAM left unprocessed (RFC 9113 section 8.7), and nothing else.
Make it after the fork: its runtime doesn't survive one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address
from typing import Final, TypeVar

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, PyreqwestError, RequestError, RequestTimeoutError
from pyreqwest.http import HeaderMap, Url
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from broker_edge.backends.origins import Origins
from broker_edge.backends.trust import trust
from broker_edge.backends.wire import (
    IDLE_SECONDS,
    LONGEST,
    MAX_HEAD_BYTES,
    MAX_IDLE,
    MAX_ORIGINS,
    add_value,
    authority,
    check_head_size,
    failure,
    request_headers,
    request_target,
)
from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import CallerError, TargetDenied, UpstreamError

T = TypeVar("T")

_VERSIONS: Final = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2"}
_AFTER_DEADLINE: Final = 0.25  # seconds
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 1 << 24


class PyreqwestReply:
    """A `RawReply` over a response that still flows."""

    __slots__ = ("_response", "headers", "http_version", "status")

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status
        self.headers = _reply_headers(response.headers)
        self.http_version = _VERSIONS.get(response.version, "1.1")

    async def chunks(self) -> AsyncIterator[bytes]:
        read = self._response.body_reader.read_chunk
        try:
            while (chunk := await _cancellable(read())) is not None:
                yield bytes(chunk)
        except (PyreqwestError, OSError) as error:
            raise failure("late" if isinstance(error, RequestTimeoutError) else "incomplete") from None


class PyreqwestTransport:
    """One reqwest client per origin; `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too."""

    def __init__(self, connect_timeout: float, extra_ca: bytes | None = None, *, max_origins: int = MAX_ORIGINS) -> None:
        self._connect_timeout = timedelta(seconds=connect_timeout)
        self._extra_ca = extra_ca
        self._clients: Origins[Client] = Origins(self._client, _close, max_origins)

    @asynccontextmanager
    async def open(self, request: Outbound, target: Target, *, within: float = LONGEST) -> AsyncIterator[PyreqwestReply]:
        """`within`: seconds until the caller's deadline.

        pyreqwest 0.15 leaves a request that is cancelled before its head running in its thread; this ends it there, a moment
        after the deadline, so that the caller's own time-out always comes first.
        """
        async with self._clients.lease(target) as client:
            exchange = _exchange(client, request, target, timedelta(seconds=within + _AFTER_DEADLINE))
            response = await _begun(exchange)
            try:
                yield PyreqwestReply(response)
            finally:
                await exchange.__aexit__(None, None, None)

    async def aclose(self) -> None:
        await self._clients.aclose()

    def _client(self, target: Target) -> Client:
        builder = (
            ClientBuilder()
            .http2(True)
            .http2_initial_stream_window_size(_STREAM_WINDOW)
            .http2_initial_connection_window_size(_CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEAD_BYTES)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .follow_redirects(False)
            .referer(False)
            .no_proxy()
            .connect_timeout(self._connect_timeout)
            .pool_idle_timeout(timedelta(seconds=IDLE_SECONDS))
            .pool_max_idle_per_host(MAX_IDLE)
        )
        return _trusting(_pinned(builder, target), self._extra_ca, target)


def _pinned(builder: ClientBuilder, target: Target) -> ClientBuilder:
    """Answer the one name of this client with the one address.

    A host that the URL standard reads as an address (127.1, 0x7f.1) is dialled as it stands and can't be answered for: it has to
    be the classified address itself.
    """
    host = Url(f"{target.scheme}://{authority(target)}/").host_str or ""
    try:
        literal = ip_address(host.strip("[]"))
    except ValueError:
        return builder.resolve(host, target.address, target.port)
    if literal != ip_address(target.address):
        raise TargetDenied("The address of the target may not be called")
    return builder


def _trusting(builder: ClientBuilder, extra_ca: bytes | None, target: Target) -> Client:
    try:
        for ca in (extra_ca, target.tls.ca):
            if ca is not None:
                trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca)  # reqwest passes over what it can't read
                builder = builder.add_root_certificate_pem(ca)
        if target.tls.identity is not None:
            builder = builder.identity_pem(target.tls.identity)
        return builder.build()
    except (BuilderError, ValueError):
        raise failure("tls_material") from None


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


async def _cancellable(work: Awaitable[T]) -> T:
    """Await pyreqwest, and raise the cancellation that it swallows where its answer comes in the same moment."""
    before = _cancellations()
    result = await work
    if _cancellations() > before:
        raise asyncio.CancelledError
    return result


async def _begun(exchange: StreamRequest) -> Response:
    before = _cancellations()
    try:
        response = await exchange.__aenter__()
    except (PyreqwestError, OSError) as error:
        raise _translated(error) from None
    if _cancellations() > before:  # swallowed, as above, but with an answer to close
        await exchange.__aexit__(None, None, None)
        raise asyncio.CancelledError
    return response


async def _close(client: Client) -> None:
    await client.close()


def _exchange(client: Client, request: Outbound, target: Target, timeout: timedelta) -> StreamRequest:
    """The request built of the target's authority and the URL's path and query, which must leave as they are.

    Nothing is read ahead: by default 64 KiB of the body would be waited for before the head is given.
    """
    wanted = request_target(request.url)
    try:
        url = Url(f"{target.scheme}://{authority(target)}{wanted}")
        builder = client.request(request.method, url).headers(request_headers(request)).timeout(timeout)
        if request.body is not None:
            builder = builder.body_bytes(request.body)
        exchange = builder.streamed_read_buffer_limit(0).build_streamed()
    except (BuilderError, ValueError):
        raise CallerError("INVALID_VALUE", "The request can't be sent as it is written") from None
    # The URL standard rewrites what isn't in its normal form ("/a/%2e%2e/b" becomes "/b"): refused, not sent as something else.
    if not str(url).endswith(wanted) or (url.path if "?" not in wanted else f"{url.path}?{url.query_string}") != wanted:
        raise CallerError("INVALID_VALUE", "The URL is not in its normal form")
    return exchange


def _reply_headers(raw: HeaderMap) -> dict[str, str]:
    try:
        pairs = list(raw.items())
    except ValueError:  # some value isn't ASCII, and then the view gives nothing at all
        pairs = [(name, value) for name in dict.fromkeys(raw.keys()) for value in _readable(raw, name)]
    check_head_size(sum(len(name) + len(value) + 4 for name, value in pairs))
    headers: dict[str, str] = {}
    for name, value in pairs:
        headers[name] = add_value(headers.get(name), value)
    # hyper hands out any other coding as it came, or reads it to the connection's end.
    if "transfer-encoding" in raw and headers.get("transfer-encoding", "").lower() != "chunked":
        raise failure("coding")
    return headers


def _readable(raw: HeaderMap, name: str) -> list[str]:
    try:
        return list(raw.getall(name))
    except ValueError:
        return []


def _translated(error: Exception) -> UpstreamError:
    """The port's error by the class and by the fixed words of reqwest's, hyper's and rustls's causes; their texts stay inside."""
    causes = error.details.get("causes") if isinstance(error, RequestError) else None
    words = " / ".join(cause["message"] for cause in (causes or ())[1:])
    if "client error (Connect)" in words:
        if isinstance(error, RequestTimeoutError):
            return failure("connect_timeout")
        return failure("connect" if "tcp connect error" in words else "tls")
    if isinstance(error, RequestTimeoutError):
        return failure("late")
    if "REFUSED_STREAM" in words or "refused stream" in words:
        return failure("refused")
    if "message head is too large" in words:
        return failure("head")
    return failure("alert" if "received fatal alert" in words else "broken")
