"""The transport below httpx's client: HTTP/1.1 by httpcore's connection, with a pool, dialling and HTTP/2 of our own.

httpx takes no hook for the dialled address, its pool scans every request for every request, and its HTTP/2 doesn't survive GOAWAY
(see backends.http2); what is left below its client, and used here, is httpcore's public `AsyncHTTP11Connection`.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import httpcore
import httpx

from broker_edge.backends.http2 import Http2Connection
from broker_edge.backends.http2_stream import Broken, HeaderPairs, Unprocessed
from broker_edge.backends.http_pool import Http1Connection, Pool
from broker_edge.backends.link import Link
from broker_edge.backends.origins import Origins
from broker_edge.backends.trust import tls_context
from broker_edge.backends.wire import Failure, failure
from broker_edge.core.exchange import Target, TlsOptions
from broker_edge.errors import UpstreamError

_ATTEMPTS: Final = 5  # of what the peer certainly left unprocessed; each at another connection
_MAX_CONTEXTS: Final = 256
# h11's words for a head beyond its buffer, and for any Transfer-Encoding but one that says chunked.
_BY_HINT: Final[dict[object, Failure]] = {431: "head", 501: "coding"}


class Body(httpx.AsyncByteStream):
    """The body of an answer as it arrives; `aclose` gives back what it holds: stream or connection, and the pool."""

    def __init__(self, chunks: AsyncIterable[bytes], held: AsyncExitStack) -> None:
        self._chunks, self._held = chunks, held

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except (Broken, httpcore.NetworkError, httpcore.ProtocolError, OSError):
            raise failure("incomplete") from None

    async def aclose(self) -> None:
        await self._held.aclose()


class PinnedResponse(httpx.Response):
    """An answer whose Location httpx leaves alone: it prepares the next request even where it may not follow."""

    @property
    def has_redirect_location(self) -> bool:
        return False


class PinnedTransport(httpx.AsyncBaseTransport):
    """One pool per origin; `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too."""

    def __init__(self, connect_timeout: float, extra_ca: bytes | None, max_origins: int) -> None:
        self._connect_timeout = connect_timeout
        self._extra_ca = extra_ca
        self._contexts: OrderedDict[TlsOptions, ssl.SSLContext] = OrderedDict()
        self._pools: Origins[Pool] = Origins(self._pool, Pool.aclose, max_origins)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer; the body flows until the response is closed.

        `request.extensions` hold `target`, the `Target` to dial, and `request_target`, path and query as bytes: the URL names
        the origin alone. Raises `UpstreamError` as `ports.Transport` says, and no exception of httpx's.
        """
        async with AsyncExitStack() as held:
            pool = await held.enter_async_context(self._pools.lease(request.extensions["target"]))
            for _ in range(_ATTEMPTS):
                connection = await pool.acquire()
                if isinstance(connection, Http1Connection):
                    held.callback(pool.give_back, connection)
                    return await _over_http1(connection, pool.url, request, held)
                try:
                    return await _over_http2(connection, request, held)
                except Unprocessed:
                    continue
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


async def _over_http1(
    connection: Http1Connection, origin: httpcore.URL, request: httpx.Request, held: AsyncExitStack
) -> PinnedResponse:
    url = httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=request.extensions["request_target"])
    message = httpcore.Request(request.method, url, headers=request.headers.raw, content=request.read())
    try:
        answer = await connection.engine.handle_async_request(message)
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise _translated(error, connection.link) from None
    held.push_async_callback(answer.aclose)
    return _response(
        answer.status, answer.headers, answer.extensions["http_version"], Body(answer.aiter_stream(), held.pop_all())
    )


async def _over_http2(connection: Http2Connection, request: httpx.Request, held: AsyncExitStack) -> PinnedResponse:
    try:
        stream = await connection.send(_http2_head(request), request.read())
    except Broken as error:
        raise _translated(error, connection.link) from None
    held.callback(connection.release, stream)
    head = stream.head or ()
    status = next(int(value) for name, value in head if name == b":status")
    headers = [(name, value) for name, value in head if not name.startswith(b":")]
    return _response(status, headers, b"HTTP/2", Body(connection.chunks(stream), held.pop_all()))


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
