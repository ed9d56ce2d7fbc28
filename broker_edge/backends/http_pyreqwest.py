"""The `Transport` over pyreqwest: reqwest and rustls in threads of their own; HTTP/2 by ALPN, HTTP/1.1 otherwise.

reqwest itself sends again what GOAWAY or REFUSED_STREAM left unprocessed (RFC 9113 section 8.7), and nothing else.
Make it after the fork: its runtime doesn't survive one.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from types import TracebackType
from typing import Final

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, PyreqwestError
from pyreqwest.http import Url
from pyreqwest.request import StreamRequest

from broker_edge.backends.http_pyreqwest_reply import PyreqwestReply, Swallowed, translated
from broker_edge.backends.origins import Origin, Origins
from broker_edge.backends.trust import trust
from broker_edge.backends.wire import (
    DEAD_SECONDS,
    IDLE_SECONDS,
    LONGEST,
    MAX_HEAD_BYTES,
    MAX_IDLE,
    MAX_IN_FLIGHT,
    MAX_ORIGINS,
    PROBE_SECONDS,
    PROBES,
    USER_AGENT,
    authority,
    failure,
    framing,
    idle_limit,
    request_target,
)
from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import CallerError, TargetDenied

_AFTER_DEADLINE: Final = 0.25  # seconds
_STREAM_WINDOW: Final = 1 << 20
_CONNECTION_WINDOW: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class _Client:
    """A client and `base`, its origin as a URL that ends with the path's first slash; empty if parsing would rewrite it."""

    engine: Client
    base: str
    idle_seconds: float


class _Opened:
    """One exchange as a context. A class: a context manager made of a generator costs four times as much."""

    __slots__ = ("_exchange", "_origin", "_request", "_target", "_transport", "_within")

    def __init__(self, transport: PyreqwestTransport, request: Outbound, target: Target, within: float) -> None:
        self._transport, self._request, self._target, self._within = transport, request, target, within

    async def __aenter__(self) -> PyreqwestReply:
        origin = self._origin = await self._transport.origins.take(self._target)
        try:
            self._exchange = _exchange(origin.value, self._request, self._target, self._within)
            reply = await _begun(self._exchange)
            if "keep-alive" in reply.headers:
                self._transport.heed(origin, self._target, reply.headers["keep-alive"])
            return reply
        except BaseException:
            origin.leave()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self._exchange.__aexit__(None, None, None)
        finally:
            self._origin.leave()


class PyreqwestTransport:
    """One reqwest client per origin, with `max_in_flight` exchanges at once.

    `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too.
    """

    def __init__(
        self,
        connect_timeout: float,
        extra_ca: bytes | None = None,
        *,
        max_origins: int = MAX_ORIGINS,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._connect_timeout = timedelta(seconds=connect_timeout)
        self._extra_ca = extra_ca
        self.origins: Origins[_Client] = Origins(self._client, _close, max_origins, max_in_flight)

    def open(self, request: Outbound, target: Target, *, within: float = LONGEST) -> _Opened:
        """`within`: seconds after which nobody can be waiting any more.

        pyreqwest 0.15 leaves a request that is cancelled before its head running in its thread, with its connection, and closing
        the client does not end it either; this does, a moment later, so that the caller's own time-out always comes first.
        """
        return _Opened(self, request, target, within)

    def heed(self, origin: Origin[_Client], target: Target, keep_alive: str) -> None:
        """Where the server ends idle connections earlier than they would be here, go on with a client that is ahead of it.

        reqwest's limit is fixed with the client. The one before ends with its last exchange.
        """
        limit = idle_limit(keep_alive)
        if limit < origin.value.idle_seconds:
            origin.value = self._client(target, limit)

    async def aclose(self) -> None:
        await self.origins.aclose()

    def _client(self, target: Target, idle_seconds: float = IDLE_SECONDS) -> _Client:
        builder = (
            ClientBuilder()
            .user_agent(USER_AGENT)
            .http2(True)
            .http2_initial_stream_window_size(_STREAM_WINDOW)
            .http2_initial_connection_window_size(_CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEAD_BYTES)
            .tcp_keepalive(timedelta(seconds=PROBE_SECONDS))
            .tcp_keepalive_interval(timedelta(seconds=PROBE_SECONDS))
            .tcp_keepalive_retries(PROBES)
            .tcp_user_timeout(timedelta(seconds=DEAD_SECONDS))
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .follow_redirects(False)
            .referer(False)
            .no_proxy()
            .connect_timeout(self._connect_timeout)
            .pool_idle_timeout(timedelta(seconds=idle_seconds))
            .pool_max_idle_per_host(MAX_IDLE)
        )
        return _Client(_trusting(_pinned(builder, target), self._extra_ca, target), _base(target), idle_seconds)


def _base(target: Target) -> str:
    base = f"{target.scheme}://{authority(target)}/"
    return base if str(Url(base)) == base and base.count("/") == 3 and "@" not in base else ""


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


async def _begun(exchange: StreamRequest) -> PyreqwestReply:
    swallowed = Swallowed()
    try:
        response = await exchange.__aenter__()
    except (PyreqwestError, OSError) as error:
        raise translated(error) from None
    try:
        swallowed.surface()  # with an answer to close
        return PyreqwestReply(response)
    except BaseException:
        await exchange.__aexit__(None, None, None)
        raise


async def _close(client: _Client) -> None:
    await client.engine.close()


def _exchange(client: _Client, request: Outbound, target: Target, within: float) -> StreamRequest:
    """The request built of the target's authority and the URL's path and query, which must leave as they are.

    Names and values of headers are checked by the engine, which also adds the defaults that are lacking. Nothing is read ahead:
    a body of 64 KiB that is waited for with the head costs less, but where it is cut short the status is lost with it.
    """
    text = _url(client, request, target)
    try:
        url = Url(text)
        builder = client.engine.request(request.method, url).headers(request.headers)
        length = framing(request)
        if length is not None:
            builder = builder.header("content-length", length)
        if request.body is not None:
            builder = builder.body_bytes(request.body)
        timeout = timedelta(seconds=within + _AFTER_DEADLINE)
        exchange = builder.timeout(timeout).streamed_read_buffer_limit(0).build_streamed()
    except (BuilderError, ValueError):
        raise CallerError("INVALID_VALUE", "The request can't be sent as it is written") from None
    # The URL standard rewrites what isn't in its normal form ("/a/%2e%2e/b" becomes "/b"): refused, not sent as something else.
    if not (client.base and str(url) == text) and not _as_written(url, request_target(request.url)):
        raise CallerError("INVALID_VALUE", "The URL is not in its normal form")
    return exchange


def _url(client: _Client, request: Outbound, target: Target) -> str:
    if client.base and request.url.startswith(client.base) and "#" not in request.url:
        return request.url
    return f"{target.scheme}://{authority(target)}{request_target(request.url)}"


def _as_written(url: Url, wanted: str) -> bool:
    return str(url).endswith(wanted) and (url.path if "?" not in wanted else f"{url.path}?{url.query_string}") == wanted
