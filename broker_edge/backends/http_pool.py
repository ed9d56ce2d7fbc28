"""The connections of the httpx engine to one origin: dialled, kept while idle, shared where they speak HTTP/2."""

from __future__ import annotations

import asyncio

import httpcore

from broker_edge.backends.http2 import Http2Connection
from broker_edge.backends.link import Link, dial
from broker_edge.backends.trust import ResumingContext
from broker_edge.backends.wire import IDLE_SECONDS, MAX_IDLE, SHARED_IDLE_SECONDS, failure
from broker_edge.core.exchange import Target


class _Engine(httpcore.AsyncHTTP11Connection):
    """httpcore's connection, which begins its next exchange with whatever came behind the last answer."""

    @property
    def has_surplus(self) -> bool:
        surplus, _ = self._h11_state.trailing_data
        return bool(surplus)


class Http1Connection:
    """httpcore's HTTP/1.1 connection with its link, for one exchange after the other."""

    def __init__(self, link: Link, url: httpcore.URL) -> None:
        self.link = link
        self.engine = _Engine(origin=url.origin, stream=link)
        self.idle_since = 0.0
        self.idle_seconds = IDLE_SECONDS

    @property
    def reusable(self) -> bool:
        """Whether the exchange is whole and nothing came behind it: the next caller would take that for its answer."""
        return self.engine.is_idle() and not self.engine.has_surplus and not self.link.is_readable


class Pool:
    """The connections to one origin. HTTP/1.1 ones are used last in, first out; HTTP/2 ones are shared."""

    def __init__(self, target: Target, context: ResumingContext | None, connect_timeout: float) -> None:
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
        """Keep a connection that the next caller may use; end any other."""
        if not connection.reusable or self._closed or len(self._idle) >= MAX_IDLE:
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
        now = _now()
        for shared in [one for one in self._shared if not _fresh(one, now - SHARED_IDLE_SECONDS)]:
            self._shared.remove(shared)
            shared.retire()
        for shared in self._shared:
            if shared.has_room:
                return shared
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > now - connection.idle_seconds and connection.reusable:
                return connection
            connection.link.abort()
        return None


def _fresh(connection: Http2Connection, too_old: float) -> bool:
    return connection.usable and (connection.idle_since is None or connection.idle_since > too_old)


def _now() -> float:
    return asyncio.get_running_loop().time()
