"""A fetch on its way round ASGI, from a connection (broker_edge/protocol.py) to the endpoint and back.

ASGI's scope, messages and task are half of what a hit costs; whatever is not a small body at hand takes them all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from broker_edge.api.asgi import Answer
from broker_edge.api.envelope import Headers

_TRACE = {b"traceparent", b"tracestate"}
_JOINED = 64 * 1024  # bytes of an answer up to which one copy is cheaper than several buffers


class Head(NamedTuple):
    """A head that ends in `size` bytes, and says that `length` more make the body."""

    size: int
    length: int
    path: bytes
    headers: Headers


class Heads:
    """Heads of fetches that were read and found sound, by their bytes: a client repeats its own with every request.

    Those with a trace context are never met again.
    """

    most = 1024
    most_bytes = 2048

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """The head of `data`, if `data` is that and its body, and nothing else."""
        head = self._known.get(data[: data.find(b"\r\n\r\n") + 4])
        return head if head is not None and head.size + head.length == len(data) else None

    def keep(self, data: bytes, length: int, path: bytes, headers: Headers) -> None:
        """Remember the head of `data`, if `data` is that and a body of `length` bytes, and nothing else."""
        size = data.find(b"\r\n\r\n") + 4
        if size + length != len(data) or size > self.most_bytes or any(name in _TRACE for name, _ in headers):
            return
        if len(self._known) >= self.most:
            self._known.clear()
        self._known[data[:size]] = Head(size, length, path, headers)


class Shortcut:
    """A fetch on its way round ASGI; to the connection it is like one of uvicorn's cycles."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "protocol", "response_complete", "response_started")

    waiting_for_100_continue = False

    def __init__(self, protocol: HttpToolsProtocol, message_event: asyncio.Event, *, keep_alive: bool) -> None:
        self.protocol = protocol
        self.message_event = message_event
        self.keep_alive = keep_alive
        self.body = b""
        self.disconnected = self.response_started = self.response_complete = False

    def begin(self, path: bytes, headers: Headers) -> None:
        body, self.body = self.body, b""  # an idle connection keeps nothing of its last request
        self.protocol.app.begin(path, headers, body, self.respond, self.spawn)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """In uvicorn's keeping, which waits for it at the end, and cancels it when the time for that is over."""
        self.protocol._start_asgi_task(self, work)  # type: ignore[arg-type]

    @staticmethod
    def run_asgi(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        return work

    def respond(self, answer: Answer) -> None:
        self.response_started = self.response_complete = True
        protocol, transport = self.protocol, self.protocol.transport
        if transport.is_closing():
            return
        parts = answer.parts
        size = sum(map(len, parts))
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        own = b"".join([b"%s: %s\r\n" % field for field in protocol.server_state.default_headers])
        head = b"%s%s%scontent-length: %d\r\n%s" % (STATUS_LINE[answer.status], own, answer.fields, size, end)
        if size <= _JOINED:
            transport.write(b"".join((head, *parts)))
        else:
            transport.writelines((head, *parts))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


def asgi_scope(protocol: HttpToolsProtocol) -> HTTPScope:
    """The scope of a request that takes the long way."""
    return {  # type: ignore[typeddict-item]
        "type": "http",
        "asgi": {"version": protocol.asgi_version, "spec_version": "2.3"},
        "http_version": "1.1",
        "server": protocol.server,
        "client": protocol.client,
        "scheme": protocol.scheme or "http",
        "root_path": protocol.root_path,
        "headers": protocol.headers,
        "state": protocol.app_state.copy(),
    }
