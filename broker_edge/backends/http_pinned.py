"""The transport below httpx's client: HTTP/1.1 by httpcore's connection, with a pool, dialling and HTTP/2 of our own.

httpx takes no hook for the dialled address, its pool scans every request for every request, and its HTTP/2 doesn't survive GOAWAY
(see backends.http2); what is left below its client, and used here, is httpcore's public `AsyncHTTP11Connection`.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Final

import httpcore
import httpx

from broker_edge.backends.http2 import Http2Connection
from broker_edge.backends.http2_stream import Broken, HeaderPairs, Unprocessed
from broker_edge.backends.http_pool import Http1Connection, Pool
from broker_edge.backends.link import Link
from broker_edge.backends.origins import Origin, Origins
from broker_edge.backends.trust import ResumingContext, tls_context
from broker_edge.backends.wire import MAX_IN_FLIGHT, Failure, failure, idle_limit
from broker_edge.core.exchange import Target, TlsOptions
from broker_edge.errors import UpstreamError

End = Callable[[], Awaitable[None]]

_ATTEMPTS: Final = 5  # of what the peer certainly left unprocessed; each at another connection
_MAX_CONTEXTS: Final = 256
# h11's words for a head beyond its buffer, and for any Transfer-Encoding but one that says chunked.
_BY_HINT: Final[dict[object, Failure]] = {431: "head", 501: "coding"}


class Body(httpx.AsyncByteStream):
    """The body of an answer as it arrives; `aclose` gives back what it holds: stream, connection, place."""

    def __init__(self, chunks: AsyncIterable[bytes], end: End, origin: Origin[Pool]) -> None:
        self._chunks, self._end, self._origin = chunks, end, origin
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except (Broken, httpcore.NetworkError, httpcore.ProtocolError, OSError):
            raise failure("incomplete") from None

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._end()
        finally:
            self._origin.leave()


class PinnedResponse(httpx.Response):
    """An answer whose Location httpx leaves alone: it prepares the next request even where it may not follow."""

    @property
    def has_redirect_location(self) -> bool:
        return False


class PinnedTransport(httpx.AsyncBaseTransport):
    """One pool per origin; `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too."""

    def __init__(
        self, connect_timeout: float, extra_ca: bytes | None, max_origins: int, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        self._connect_timeout = connect_timeout
        self._extra_ca = extra_ca
        self._contexts: OrderedDict[TlsOptions, ResumingContext] = OrderedDict()
        self._pools: Origins[Pool] = Origins(self._pool, Pool.aclose, max_origins, max_in_flight)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer; the body flows until the response is closed.

        `request.extensions` hold `target`, the `Target` to dial, and `request_target`, path and query as bytes: the URL names
        the origin alone. Raises `UpstreamError` as `ports.Transport` says, and no exception of httpx's.
        """
        origin = await self._pools.take(request.extensions["target"])
        try:
            return await _sent(origin, request)
        except BaseException:
            origin.leave()
            raise

    async def aclose(self) -> None:
        await self._pools.aclose()

    def _pool(self, target: Target) -> Pool:
        context = self._context(target.tls) if target.scheme == "https" else None
        return Pool(target, context, self._connect_timeout)

    def _context(self, options: TlsOptions) -> ResumingContext:
        context = self._contexts.get(options)
        if context is None:
            context = self._contexts[options] = tls_context(options, self._extra_ca)
            if len(self._contexts) > _MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(options)
        return context


async def _sent(origin: Origin[Pool], request: httpx.Request) -> httpx.Response:
    """At another connection each time the peer certainly left the request unprocessed; nothing else is sent again."""
    for _ in range(_ATTEMPTS):
        connection = await origin.value.acquire()
        if isinstance(connection, Http1Connection):
            return await _over_http1(connection, origin, request)
        try:
            return await _over_http2(connection, origin, request)
        except Unprocessed:
            continue
    raise failure("refused")


async def _over_http1(connection: Http1Connection, origin: Origin[Pool], request: httpx.Request) -> PinnedResponse:
    pool = origin.value
    url = httpcore.URL(
        scheme=pool.url.scheme, host=pool.url.host, port=pool.url.port, target=request.extensions["request_target"]
    )
    message = httpcore.Request(request.method, url, headers=request.headers.raw, content=request.read())
    try:
        answer = await connection.engine.handle_async_request(message)
    except BaseException as error:
        pool.give_back(connection)
        if isinstance(error, (httpcore.NetworkError, httpcore.ProtocolError, OSError)):
            raise _translated(error, connection.link) from None
        raise

    for name, value in answer.headers:
        if name.lower() == b"keep-alive":
            connection.idle_seconds = idle_limit(value.decode("latin-1"))

    async def end() -> None:
        try:
            await answer.aclose()
        finally:
            pool.give_back(connection)

    body = Body(answer.aiter_stream(), end, origin)
    return _response(answer.status, answer.headers, answer.extensions["http_version"], body)


async def _over_http2(connection: Http2Connection, origin: Origin[Pool], request: httpx.Request) -> PinnedResponse:
    try:
        stream = await connection.send(_http2_head(request), request.read())
    except Broken as error:
        raise _translated(error, connection.link) from None

    async def end() -> None:
        connection.release(stream)

    head = stream.head or ()
    status = next(int(value) for name, value in head if name == b":status")
    headers = [(name, value) for name, value in head if not name.startswith(b":")]
    return _response(status, headers, b"HTTP/2", Body(connection.chunks(stream), end, origin))


def _http2_head(request: httpx.Request) -> HeaderPairs:
    """Pseudo-headers first (RFC 9113 section 8.3.1); the first header of every request is its Host."""
    (_, host), *rest = request.headers.raw
    return [
        (b":method", request.method.encode("ascii")),
        (b":scheme", request.extensions["target"].scheme.encode("ascii")),
        (b":authority", host),
        (b":path", request.extensions["request_target"]),
        *((name.lower(), value) for name, value in rest),
    ]


def _response(status: int, headers: HeaderPairs, version: bytes, body: Body) -> PinnedResponse:
    return PinnedResponse(status, headers=headers, stream=body, extensions={"http_version": version})


def _translated(error: Exception, link: Link) -> UpstreamError:
    if isinstance(link.failed, ssl.SSLError):
        return failure("alert")
    hint = getattr(error.__cause__, "error_status_hint", None)
    return failure(_BY_HINT.get(hint, "broken"))
