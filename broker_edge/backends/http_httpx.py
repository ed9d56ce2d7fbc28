"""The `Transport` over httpx: one client without habits of its own, above the transport that dials pinned addresses.

Nothing is decoded, added, followed, remembered or read from the environment. The URL that httpx is given names the origin and
nothing more: httpx rewrites paths as it likes, makes credentials of what stands before an @, and writes whole URLs to its log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from types import TracebackType
from typing import Final

import httpx

from broker_edge.backends.http_pinned import PinnedTransport
from broker_edge.backends.wire import (
    LONGEST,
    MAX_IN_FLIGHT,
    MAX_ORIGINS,
    authority,
    bounded,
    failure,
    reply_headers,
    request_headers,
    request_target,
)
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

    async def whole(self, most: int) -> bytes | None:
        if not bounded(self.headers, most):
            return None
        return b"".join([chunk async for chunk in self.chunks()])


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


class _Opened:
    """One exchange as a context."""

    __slots__ = ("_client", "_request", "_response", "_target")

    def __init__(self, client: _Client, request: Outbound, target: Target) -> None:
        self._client, self._request, self._target = client, request, target

    async def __aenter__(self) -> HttpxReply:
        message = _message(self._request, self._target)
        if self._client.is_closed:
            raise failure("connect")
        response = self._response = await self._client.send(message, stream=True)
        try:
            return HttpxReply(response)
        except BaseException:
            await response.aclose()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._response.aclose()


class HttpxTransport:
    """One client for all origins, `max_in_flight` exchanges at once with each.

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
        pinned = PinnedTransport(connect_timeout, extra_ca, max_origins, max_in_flight)
        self._client = _Client(transport=pinned, trust_env=False, follow_redirects=False, timeout=httpx.Timeout(None))

    def open(self, request: Outbound, target: Target, *, within: float = LONGEST) -> _Opened:
        """`within`, seconds until the caller's deadline, is the other engine's need: here cancelling ends the request at once."""
        return _Opened(self._client, request, target)

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
