"""A fetch on its way round ASGI, from a connection (broker_edge/protocol.py) to the endpoint and back.

ASGI's scope, messages and task are half of what a hit costs; whatever is not a small body at hand takes them all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from broker_edge.api.envelope import Headers
from broker_edge.api.fetch import Answer

_JOINED = 64 * 1024  # bytes of an answer up to which one copy is cheaper than several buffers


class Shortcut:
    """A fetch on its way round ASGI; to the connection it is like one of uvicorn's cycles."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "protocol", "response_complete", "response_started")

    waiting_for_100_continue = False

    def __init__(self, protocol: HttpToolsProtocol, message_event: asyncio.Event) -> None:
        self.protocol = protocol
        self.message_event = message_event
        self.keep_alive: bool = protocol.parser.should_keep_alive()
        self.body = b""
        self.disconnected = self.response_started = self.response_complete = False

    def begin(self, headers: Headers) -> None:
        self.protocol.app.begin(headers, self.body, self.respond, self.spawn)

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
        size = sum(map(len, answer.parts))
        head = [STATUS_LINE[answer.status]]
        for name, value in (*protocol.server_state.default_headers, *answer.headers):
            head += (name, b": ", value, b"\r\n")
        head.append(
            b"content-length: %d\r\n\r\n" % size if self.keep_alive else b"content-length: %d\r\nconnection: close\r\n\r\n" % size
        )
        if size <= _JOINED:
            transport.write(b"".join((*head, *answer.parts)))
        else:
            transport.writelines((b"".join(head), *answer.parts))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()
