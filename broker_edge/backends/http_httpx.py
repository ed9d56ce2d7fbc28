"""The `Transport` over httpx: one client without habits of its own, above the transport that dials pinned addresses.

Nothing is decoded, added, followed, remembered or read from the environment. The URL that httpx is given names the origin and
nothing more: httpx rewrites paths as it likes, makes credentials of what stands before an @, and writes whole URLs to its log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Final

import httpx

from broker_edge.backends.http_pinned import PinnedTransport
from broker_edge.backends.wire import LONGEST, MAX_ORIGINS, authority, failure, reply_headers, request_headers, request_target
from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import CallerError


class HttpxReply:
    """A `RawReply` over a response that still flows."""

    __slots__ = ("_response", "headers", "http_version", "status")

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers = reply_headers(response.headers.raw)
        self.http_version = response.http_version.removeprefix("HTTP/")

    def chunks(self) -> AsyncIterator[bytes]:
        return self._response.aiter_raw()


class _NoCookies(httpx.Cookies):
    """Takes none: no request is ever given any, and a jar would keep those of every answer."""

    def extract_cookies(self, response: httpx.Response) -> None:
        return


class _Client(httpx.AsyncClient):
    """httpx's client without a cookie jar, which an argument can't spare it: httpx parses every answer for its jar."""

    _none: Final = _NoCookies()

    @property
    def cookies(self) -> httpx.Cookies:
        return self._none

    @cookies.setter
    def cookies(self, _: object) -> None:
        raise AttributeError("this client keeps no cookies")


class HttpxTransport:
    """One client for all origins; `extra_ca` (PEM) is trusted for all of them, `connect_timeout` in seconds covers TLS too."""

    def __init__(self, connect_timeout: float, extra_ca: bytes | None = None, *, max_origins: int = MAX_ORIGINS) -> None:
        pinned = PinnedTransport(connect_timeout, extra_ca, max_origins)
        self._client = _Client(transport=pinned, trust_env=False, follow_redirects=False, timeout=httpx.Timeout(None))

    @asynccontextmanager
    async def open(self, request: Outbound, target: Target, *, within: float = LONGEST) -> AsyncIterator[HttpxReply]:
        """`within`, seconds until the caller's deadline, is the other engine's need: here cancelling ends the request at once."""
        message = _message(request, target)
        if self._client.is_closed:
            raise failure("connect")
        response = await self._client.send(message, stream=True)
        try:
            yield HttpxReply(response)
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()


def _message(request: Outbound, target: Target) -> httpx.Request:
    """A request that httpx sends as it is: given as a stream, its body brings no headers. Values are UTF-8 in both engines."""
    where, headers = authority(target), request_headers(request)
    try:
        return httpx.Request(
            request.method,
            _origin(target.scheme, where),
            headers=[(b"Host", where.encode("ascii")), *((name.encode("ascii"), value.encode()) for name, value in headers)],
            stream=httpx.ByteStream(request.body or b""),
            extensions={"target": target, "request_target": request_target(request.url).encode("ascii")},
        )
    except (UnicodeEncodeError, httpx.InvalidURL):
        raise CallerError("INVALID_VALUE", "The request can't be sent as it is written") from None


@lru_cache(MAX_ORIGINS)
def _origin(scheme: str, where: str) -> httpx.URL:
    return httpx.URL(f"{scheme}://{where}/")
