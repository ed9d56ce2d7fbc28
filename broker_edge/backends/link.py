"""One connection of the httpx engine: dialled at the pinned address, the name kept for SNI and the certificate check.

A `Link` is httpcore's network stream, so that httpcore's HTTP/1.1 runs over it, and it hands bytes straight on to HTTP/2.
It is an asyncio protocol rather than a pair of streams: it hears of the peer's end at once, while nobody reads.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import httpcore

from broker_edge.backends.trust import ResumingContext
from broker_edge.backends.wire import DEAD_SECONDS, PROBE_SECONDS, PROBES, failure
from broker_edge.core.exchange import Target

_BUFFER: Final = 256 * 1024
_OPTIONS: Final = {
    "TCP_NODELAY": 1,  # head and body are two writes: without it the second waits for the peer's delayed acknowledgement
    "TCP_KEEPIDLE": PROBE_SECONDS,
    "TCP_KEEPINTVL": PROBE_SECONDS,
    "TCP_KEEPCNT": PROBES,
    "TCP_USER_TIMEOUT": DEAD_SECONDS * 1000,
}

Feed = Callable[[bytes], None]
Lost = Callable[[], None]


async def dial(target: Target, context: ResumingContext | None) -> Link:
    """Connect to `target.address`, and through TLS where there is a context; unbounded in time.

    Raises `UpstreamError` CONNECT_ERROR or TLS_ERROR with sent=False, and TimeoutError where the kernel gives up.
    """
    return await _wrapped(await _connected(target), target, context)


async def _connected(target: Target) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _set_options(sock)
        await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise failure("connect") from None
        raise
    return sock


def _set_options(sock: socket.socket) -> None:
    """Write at once, and have the kernel find out about a peer that vanished, as far as the system knows the options."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _wrapped(sock: socket.socket, target: Target, context: ResumingContext | None) -> Link:
    name = target.host.removesuffix(".") if context else None
    try:
        make = partial(Link, context)
        _, link = await asyncio.get_running_loop().create_connection(make, sock=sock, ssl=context, server_hostname=name)
    except TimeoutError:
        raise
    except (OSError, ValueError):  # ValueError: a name that no certificate can carry
        raise failure("tls") from None
    return link


class Link(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """A byte stream both ways. `failed` holds why it broke, if it did; `closed` is set once nothing more comes."""

    def __init__(self, context: ResumingContext | None = None) -> None:
        self._context = context  # until its session is known
        self._arrivals: deque[bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._feed: Feed | None = None
        self._on_lost: Lost | None = None
        self.failed: Exception | None = None
        self.closed = False

    def push_to(self, feed: Feed, on_lost: Lost) -> None:
        """Hand every byte to `feed` as it comes, instead of keeping it for `read`; `on_lost` is called once at the end."""
        self._feed, self._on_lost = feed, on_lost
        while self._arrivals:
            feed(self._arrivals.popleft())
        self._size = 0
        self._transport.resume_reading()
        if self.closed:
            on_lost()

    @property
    def speaks_h2(self) -> bool:
        ssl_object = self._transport.get_extra_info("ssl_object")
        return ssl_object is not None and ssl_object.selected_alpn_protocol() == "h2"

    @property
    def is_readable(self) -> bool:
        """Whether the peer has ended, or sent what nobody has read; asks the kernel too, which may be ahead of the loop."""
        return self.closed or bool(self._arrivals) or _readable(self._transport.get_extra_info("socket"))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._context is not None:
            self._context.remember(self._transport.get_extra_info("ssl_object"))
            self._context = None
        if self._feed is not None:
            self._feed(data)
            return
        self._arrivals.append(data)
        self._size += len(data)
        self._arrived.set()
        if self._size > _BUFFER:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        return False  # the transport closes itself: no socket of ours outlives its peer

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed = self.failed or exc
        self._gone.set()
        self._end()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self._arrived.set()
            self._writable.set()
            if self._on_lost is not None:
                self._on_lost()

    # What httpcore calls; its time-outs are not used, deadlines are the caller's.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Some bytes; none at the peer's end. Raises httpcore.ReadError where the connection broke."""
        while not self._arrivals and not self.closed:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._arrivals:
            if self.failed is not None:
                raise httpcore.ReadError from self.failed
            return b""
        data = self._arrivals.popleft()  # as it came: nothing is copied where the reader takes as much
        if len(data) > max_bytes:
            self._arrivals.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._size -= len(data)
        if not self.closed and self._size <= _BUFFER:
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Raises httpcore.WriteError on a connection that is gone."""
        if self.closed:
            raise httpcore.WriteError
        self.send(buffer)
        await self.drained()

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the peer keeps up, or is gone."""
        await self._writable.wait()

    async def aclose(self) -> None:
        """End the connection at once and wait until its socket is closed; no farewell that a mute peer could hold up."""
        self.abort()
        await self._gone.wait()

    def abort(self) -> None:
        self._end()
        self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        return self._transport.get_extra_info(info)


def _readable(sock: socket.socket | None) -> bool:
    if sock is None or (number := sock.fileno()) < 0:  # closed, and its end not yet told
        return True
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
