"""Upstreams that tests script: real sockets on loopback, in this process, ended with their context.

    async with RawServer(answering(lambda got: b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")) as server:
        server.port, server.connections, server.received

`RawServer` speaks HTTP/1.1 byte by byte, with TLS where it gets a context from `server_context`; `Http2Server` speaks HTTP/2 over
TLS and can say GOAWAY or refuse streams. `ca_pem()` is the authority that issued their certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import trustme
from hyperframe.frame import GoAwayFrame

HOST = "bureau.test"


@lru_cache
def authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name)


def ca_pem(name: str = "trusted") -> bytes:
    return authority(name).cert_pem.bytes()


def identity_pem(name: str = "edge.test") -> bytes:
    """A client's key and certificate, as `TlsOptions.identity` wants them."""
    return authority("trusted").issue_cert(name).private_key_and_cert_chain_pem.bytes()


def server_context(*names: str, alpn: Sequence[str] = ("http/1.1",), want_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority("trusted").issue_cert(*(names or (HOST,))).configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    if want_client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority("trusted").configure_trust(context)
    return context


@dataclass(frozen=True)
class Received:
    """One request as it came: `head` is every byte before the body, `headers` in order with names as sent."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def headers(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-2]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Peer:
    """The server's side of one connection."""

    def __init__(self, server: RawServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer

    @property
    def resumed(self) -> bool:
        """Whether the TLS handshake of this connection went on from an earlier one's session."""
        return bool(self._writer.get_extra_info("ssl_object").session_reused)

    async def receive(self) -> Received:
        """The next request; raises asyncio.IncompleteReadError or OSError where the client has gone."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(Received(head, b"").get("content-length") or 0)
        got = Received(head, await self._reader.readexactly(length))
        self._server.received.append(got)
        return got

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self, body: bytes = b"", status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await self.send(f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body)

    async def end(self) -> None:
        """End this side of the connection (no TLS), and return when the client has seen it and ended the other."""
        self._writer.write_eof()
        await self.until_gone()

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def until_gone(self) -> None:
        """Return when the client has ended the connection, however it did."""
        with contextlib.suppress(OSError):
            while await self._reader.read(65536):
                pass


Handler = Callable[[Peer], Awaitable[None]]


def answering(answer: Callable[[Received], bytes]) -> Handler:
    """A handler that answers every request of a connection with the bytes that `answer` makes of it."""

    async def handle(peer: Peer) -> None:
        while True:
            await peer.send(answer(await peer.receive()))

    return handle


def replying(body: bytes = b"ok", status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Handler:
    """A handler that answers every request of a connection alike."""

    async def handle(peer: Peer) -> None:
        while True:
            await peer.receive()
            await peer.reply(body, status, headers)

    return handle


class _Server:
    """Accepts on a loopback port; ends every connection with its context."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0
        self.open = 0

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._writers:
            writer.transport.abort()
        for _ in range(10):  # transports close their sockets some turns of the loop later
            await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        self.connections += 1
        self.open += 1
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class RawServer(_Server):
    """An HTTP/1.1 server that does what `handler` says, connection by connection; returning from it ends the connection."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self._handler = handler
        self.received: list[Received] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._handler(Peer(self, reader, writer))


@dataclass
class Http2Request:
    """A request that came whole; `pseudo` has :method and the like."""

    stream: int
    pseudo: dict[str, str]
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


Http2Answer = Callable[[Http2Request], "tuple[int, list[tuple[str, str]], bytes] | None"]


def _ok(_: Http2Request) -> tuple[int, list[tuple[str, str]], bytes]:
    return 200, [], b"ok"


class Http2Server(_Server):
    """HTTP/2 over TLS. `answer` gives status, headers and body (up to one window), or None to say nothing.

    `goaway_after`: a connection takes that many requests, says GOAWAY before it answers the last ones and ignores any above; the
    client ends it. `refuse`: the first so many requests are refused with REFUSED_STREAM. `cut`: a GOAWAY that covers the
    request, then the connection ends without an answer. `requests` are those processed; `processed` counts them by `x-id`.
    """

    def __init__(
        self,
        answer: Http2Answer = _ok,
        *,
        goaway_after: int | None = None,
        refuse: int = 0,
        cut: bool = False,
        streams: int = 100,
        want_client: bool = False,
    ) -> None:
        super().__init__(server_context(alpn=("h2",), want_client=want_client))
        self.answer, self.goaway_after, self.refuse, self.cut, self.streams = answer, goaway_after, refuse, cut, streams
        self.requests: list[Http2Request] = []
        self.processed: Counter[str] = Counter()
        self.ignored = 0
        self.resets: list[int] = []
        self.reset_seen = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Http2Session(self, reader, writer).run()


class _Http2Session:
    def __init__(self, server: Http2Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.coming: dict[int, Http2Request] = {}
        self.taken = 0
        self.highest = 0
        self.last: int | None = None

    async def run(self) -> None:
        limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self.server.streams}
        self.conn.local_settings = h2.settings.Settings(client=False, initial_values=limit)
        self.conn.initiate_connection()
        await self._flush()
        while data := await self.reader.read(65536):
            whole: list[Http2Request] = []
            for event in self.conn.receive_data(data):
                self._take(event, whole)
            if self.server.cut and whole:
                await self._say_goaway(whole[-1].stream)
                return
            for request in whole:
                self._answer(request)
            await self._flush()

    def _take(self, event: h2.events.Event, whole: list[Http2Request]) -> None:
        if self.last is not None and getattr(event, "stream_id", 0) > self.last:
            self.server.ignored += isinstance(event, h2.events.RequestReceived)
        elif isinstance(event, h2.events.RequestReceived):
            self.highest = max(self.highest, event.stream_id)
            pairs = [(str(name), str(value)) for name, value in event.headers]
            self.coming[event.stream_id] = Http2Request(
                event.stream_id,
                {name: value for name, value in pairs if name.startswith(":")},
                {name: value for name, value in pairs if not name.startswith(":")},
            )
        elif isinstance(event, h2.events.DataReceived):
            self.coming[event.stream_id].body += event.data
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.server.resets.append(event.stream_id)
            self.server.reset_seen.set()
        elif isinstance(event, h2.events.StreamEnded):
            request = self.coming.pop(event.stream_id)
            if self._admits(request):
                whole.append(request)

    def _admits(self, request: Http2Request) -> bool:
        server = self.server
        if server.refuse:
            server.refuse -= 1
            self.conn.reset_stream(request.stream, error_code=7)
            return False
        server.requests.append(request)
        server.processed[request.headers.get("x-id", "")] += 1
        self.taken += 1
        if self.taken == server.goaway_after:
            self.last = self.highest
            self.writer.write(self.conn.data_to_send() + _goaway(self.last))
        return True

    def _answer(self, request: Http2Request) -> None:
        answer = self.server.answer(request)
        if answer is None:
            return
        status, headers, body = answer
        self.conn.send_headers(request.stream, [(":status", str(status)), *headers], end_stream=not body)
        if body:
            size = self.conn.max_outbound_frame_size
            for at in range(0, len(body), size):
                self.conn.send_data(request.stream, body[at : at + size], end_stream=at + size >= len(body))

    async def _say_goaway(self, last: int) -> None:
        await self._flush()
        self.writer.write(_goaway(last))
        await self.writer.drain()

    async def _flush(self) -> None:
        self.writer.write(self.conn.data_to_send())
        await self.writer.drain()


def _goaway(last: int) -> bytes:
    # Written past h2, whose state machine would not let the streams under way be answered.
    return bytes(GoAwayFrame(0, last_stream_id=last, error_code=0).serialize())
