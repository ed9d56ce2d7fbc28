"""The `Transport` over httpx's engine, httpcore: its HTTP/1.1 connection, with a pool, dialling and HTTP/2 of our own.

httpx takes no hook for the dialled address, its pool scans every request for every request, and its HTTP/2 doesn't survive GOAWAY
(see backends.http2); what is left of it, and used here, is httpcore's public `AsyncHTTP11Connection`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpcore

from broker_edge.backends.http2 import Broken, Http2Connection, Stream, Unprocessed
from broker_edge.backends.link import Link, dial
from broker_edge.backends.origins import Origins
from broker_edge.backends.trust import tls_context
from broker_edge.backends.wire import (
    IDLE_SECONDS,
    LONGEST,
    MAX_IDLE,
    MAX_ORIGINS,
    authority,
    failure,
    reply_headers,
    request_headers,
    request_target,
)
from broker_edge.core.exchange import Outbound, Target, TlsOptions
from broker_edge.errors import CallerError, UpstreamError

_ATTEMPTS: Final = 5  # of what the peer certainly left unprocessed; each at another connection
_MAX_CONTEXTS: Final = 256


class Http1Connection:
    """httpcore's HTTP/1.1 connection with its link, for one exchange after the other."""

    def __init__(self, link: Link, url: httpcore.URL) -> None:
        self.link = link
        self.engine = httpcore.AsyncHTTP11Connection(origin=url.origin, stream=link)
        self.idle_since = 0.0


class Pool:
    """The connections to one origin. HTTP/1.1 ones are used last in, first out; HTTP/2 ones are shared."""

    def __init__(self, target: Target, context: ssl.SSLContext | None, connect_timeout: float) -> None:
        self._target, self._context, self._connect_timeout = target, context, connect_timeout
        self.url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=b"/")
        self._idle: list[Http1Connection] = []
        self._shared: list[Http2Connection] = []
        self._opening = asyncio.Lock()
        self._shares = context is not None  # until ALPN says otherwise
        self._closed = False

    async def acquire(self) -> Http1Connection | Http2Connection:
        """A kept connection or a new one; raises `UpstreamError` with sent=False."""
        kept = self._kept()
        if kept is not None:
            return kept
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._open()
        except TimeoutError:
            raise failure("connect_timeout") from None

    def give_back(self, connection: Http1Connection) -> None:
        """Keep a connection whose exchange is whole; end any other."""
        reusable = connection.engine.is_idle() and not connection.link.get_extra_info("is_readable")
        if not reusable or self._closed or len(self._idle) >= MAX_IDLE:
            connection.link.abort()
            return
        connection.idle_since = _now()
        self._idle.append(connection)

    async def aclose(self) -> None:
        self._closed = True
        links = [*(one.link for one in self._idle), *(one.link for one in self._shared)]
        self._idle.clear()
        self._shared.clear()
        for link in links:
            await link.aclose()

    async def _open(self) -> Http1Connection | Http2Connection:
        """Where the peer may speak HTTP/2, one dials at a time and the others look again: its connection may do for all."""
        if self._shares:
            async with self._opening:
                kept = self._kept()
                if kept is not None:
                    return kept
                if self._shares:
                    return await self._dial()
        return await self._dial()

    async def _dial(self) -> Http1Connection | Http2Connection:
        link = await dial(self._target, self._context)
        self._shares = link.speaks_h2
        if not link.speaks_h2:
            return Http1Connection(link, self.url)
        connection = Http2Connection(link)
        self._shared.append(connection)
        await connection.settled()
        return connection

    def _kept(self) -> Http1Connection | Http2Connection | None:
        """Nothing here waits: a connection is found and taken in one go."""
        too_old = _now() - IDLE_SECONDS
        for shared in [one for one in self._shared if not _fresh(one, too_old)]:
            self._shared.remove(shared)
            shared.retire()
        for shared in self._shared:
            if shared.has_room:
                return shared
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > too_old and not connection.engine.has_expired():
                return connection
            connection.link.abort()
        return None


def _fresh(connection: Http2Connection, too_old: float) -> bool:
    return connection.usable and (connection.idle_since is None or connection.idle_since > too_old)


def _now() -> float:
    return asyncio.get_running_loop().time()


class Http1Reply:
    """A `RawReply` over HTTP/1.1."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self.status = response.status
        self.headers = reply_headers(response.headers)
        self.http_version = response.extensions["http_version"].removeprefix(b"HTTP/").decode("ascii")

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_stream():
                yield chunk
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
            raise failure("incomplete") from None


class Http2Reply:
    """A `RawReply` over HTTP/2."""

    http_version = "2"

    def __init__(self, connection: Http2Connection, stream: Stream) -> None:
        self._connection, self._stream = connection, stream
        head = stream.head or ()
        self.status = next(int(value) for name, value in head if name == b":status")
        self.headers = reply_headers((name, value) for name, value in head if not name.startswith(b":"))

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._connection.chunks(self._stream):
                yield chunk
        except Broken:
            raise failure("incomplete") from None


class HttpxTransport:
    """One pool per origin; `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too."""

    def __init__(self, connect_timeout: float, extra_ca: bytes | None = None, *, max_origins: int = MAX_ORIGINS) -> None:
        self._connect_timeout = connect_timeout
        self._extra_ca = extra_ca
        self._contexts: OrderedDict[TlsOptions, ssl.SSLContext] = OrderedDict()
        self._pools: Origins[Pool] = Origins(self._pool, Pool.aclose, max_origins)

    @asynccontextmanager
    async def open(self, request: Outbound, target: Target, *, within: float = LONGEST) -> AsyncIterator[Http1Reply | Http2Reply]:
        """`within`, seconds until the caller's deadline, is the other engine's need: here cancelling ends the request at once."""
        headers = _encoded(request, target)
        async with self._pools.lease(target) as pool:
            for _ in range(_ATTEMPTS):
                connection = await pool.acquire()
                if isinstance(connection, Http1Connection):
                    async with _over_http1(connection, pool, request, headers) as reply:
                        yield reply
                    return
                try:
                    stream = await connection.send(_http2_head(request, target, headers), request.body)
                except Unprocessed:
                    continue
                except Broken as error:
                    raise _translated(error, connection.link) from None
                try:
                    yield Http2Reply(connection, stream)
                finally:
                    connection.release(stream)
                return
            raise failure("refused")

    async def aclose(self) -> None:
        await self._pools.aclose()

    def _pool(self, target: Target) -> Pool:
        context = self._context(target.tls) if target.scheme == "https" else None
        return Pool(target, context, self._connect_timeout)

    def _context(self, options: TlsOptions) -> ssl.SSLContext:
        context = self._contexts.get(options)
        if context is None:
            context = self._contexts[options] = tls_context(options, self._extra_ca)
            if len(self._contexts) > _MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(options)
        return context


def _encoded(request: Outbound, target: Target) -> list[tuple[bytes, bytes]]:
    """Host first, then the rest, as bytes; values in UTF-8, as the other engine sends them."""
    try:
        host = authority(target).encode("ascii")
    except UnicodeEncodeError:
        raise CallerError("INVALID_VALUE", "The host's name isn't in its ASCII form") from None
    return [(b"Host", host), *((name.encode("ascii"), value.encode()) for name, value in request_headers(request))]


def _http2_head(request: Outbound, target: Target, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [
        (b":method", request.method.encode("ascii")),
        (b":scheme", target.scheme.encode("ascii")),
        (b":authority", headers[0][1]),
        (b":path", request_target(request.url).encode("ascii")),
        *((name.lower(), value) for name, value in headers[1:]),
    ]


@asynccontextmanager
async def _over_http1(
    connection: Http1Connection, pool: Pool, request: Outbound, headers: list[tuple[bytes, bytes]]
) -> AsyncIterator[Http1Reply]:
    url = httpcore.URL(scheme=pool.url.scheme, host=pool.url.host, port=pool.url.port, target=request_target(request.url))
    try:
        message = httpcore.Request(request.method, url, headers=headers, content=request.body or b"")
        try:
            response = await connection.engine.handle_async_request(message)
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise _translated(error, connection.link) from None
        try:
            yield Http1Reply(response)
        finally:
            await response.aclose()
    finally:
        pool.give_back(connection)


def _translated(error: Exception, link: Link) -> UpstreamError:
    if isinstance(link.failed, ssl.SSLError):
        return failure("alert")
    too_large = getattr(error.__cause__, "error_status_hint", None) == 431  # h11's word for a head beyond its buffer
    return failure("head" if too_large else "broken")
