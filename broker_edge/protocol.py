"""HTTP/1.1 as the edge speaks it: uvicorn's connection over httptools, strict about framing, with bounded heads.

Upgrades are ignored, as RFC 9110 section 7.8 allows. What is ambiguous, too large or too slow to be a request is refused with
problem+json, behind the answers that are still due, and no later byte of its connection is read as a request.

An application that has `begin` gets fetches without ASGI's scope, messages and task (`Shortcut`): half of what a hit costs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from broker_edge.refusal import Refused, check_framing, refusal
from broker_edge.shortcut import Heads, Shortcut, asgi_scope

_BETWEEN, _HEAD, _BODY = range(3)
_FRAMING = {b"host", b"content-length", b"transfer-encoding"}
_FETCHES = {b"/v1/fetch-data", b"/internal/data-broker"}
_AT_ONCE = 64 * 1024  # bytes of a body up to which a request is answered by the shortcut


class EdgeProtocol(HttpToolsProtocol):
    """One connection. The parser calls the `on_...` methods while it is fed; what they raise ends the feeding."""

    head_bytes = 64 * 1024
    head_fields = 100
    head_seconds = 15.0  # from its first byte to its end
    linger_seconds = 2.0
    heads = Heads()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._stage = _BETWEEN
        self._segment = 0  # its bytes
        self._unread = 0  # bytes since the last that made a head complete or a body longer: a parser may keep all of them
        self._without_upgrade = b""
        self._refusal: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._framing: dict[bytes, bytes] = {}
        self._framed_twice = False
        self._takes_shortcuts = hasattr(self.app, "begin") and self.limit_concurrency is None
        self._shortcut: Shortcut | None = None
        self._event = asyncio.Event()  # that nobody waits for
        self._whole = b""  # what the parser is fed, where a message may begin with it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or (self._stage == _BETWEEN and self._known(data)):
            return
        self._whole = data if self._stage == _BETWEEN else b""
        self._segment = len(data)
        self._unread += self._segment
        try:
            self._feed(data)
            if self._unread > self.head_bytes:
                self._too_large()
        except Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserError as error:  # around what a callback raised, where one did
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else Refused(400, "the request is not valid HTTP/1.1"))
        else:
            if self._stage == _HEAD and self._timer is None:
                self._unset_keepalive_if_required()  # here, and not for any byte: empty lines keep no connection alive
                self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def _known(self, data: bytes) -> bool:
        """Whether this is one request whose head was read before, byte for byte: the parser would read the same again."""
        head = self.heads.find(data)
        if head is None or not self._takes_shortcuts or not self._is_free():
            return False
        self._unread = 0
        shortcut = self.cycle = Shortcut(self, self._event, keep_alive=True)  # type: ignore[assignment]
        shortcut.body = data[head.size :]
        shortcut.begin(head.path, head.headers)
        return True

    def _feed(self, data: bytes) -> None:
        left: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(left)
                return
            except httptools.HttpParserUpgrade as upgrade:
                left = memoryview(left)[upgrade.args[0] :]
            self._read_again()

    def _read_again(self) -> None:
        """The parser takes what follows an upgrade for another protocol; without the field it is this request's body."""
        head, self._without_upgrade = self._without_upgrade, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    # What the parser calls

    def on_message_begin(self) -> None:
        self._stage = _HEAD
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._framing = {}
        self._framed_twice = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == _BODY:  # a trailer: the application has its headers already
            return
        if len(self.headers) == self.head_fields:
            self._too_large()
        name = name.lower()
        if name in _FRAMING:
            self._framed_twice = self._framed_twice or name in self._framing
            self._framing[name] = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._timer is not None:
            self._stop_timer()
        if max(self._segment, self._unread) > self.head_bytes:
            self._measure_head()
        self._unread = 0
        if self._framed_twice:
            raise Refused(400, "the request has two of Host, Content-Length or Transfer-Encoding")
        check_framing(self._framing, self.parser.get_http_version())
        if self.parser.should_upgrade():
            self._without_upgrade = self._head_without_upgrade()
            return
        self._stage = _BODY
        if self.url in _FETCHES and self._may_shortcut():
            keep_alive = self.parser.should_keep_alive()
            self.cycle = self._shortcut = Shortcut(self, self._event, keep_alive=keep_alive)  # type: ignore[assignment]
        else:
            self.scope = asgi_scope(self)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if self._shortcut is None:
            super().on_body(body)
        else:
            self._shortcut.body += body

    def on_message_complete(self) -> None:
        self._unread = 0
        self._stage = _BETWEEN
        whole, self._whole = self._whole, b""
        if self._shortcut is not None:
            shortcut, self._shortcut = self._shortcut, None
            if shortcut.keep_alive:
                self.heads.keep(whole, len(shortcut.body), self.url, self.headers)
            shortcut.begin(self.url, self.headers)
        elif not self._without_upgrade:
            super().on_message_complete()

    def shutdown(self) -> None:
        if self._shortcut is not None:
            # Its body may never come: by way of ASGI it has a task, which is given up when the time for stopping ends.
            body, self._shortcut, self.cycle = self._shortcut.body, None, None  # type: ignore[assignment]
            self.scope = asgi_scope(self)
            super().on_headers_complete()
            super().on_body(body)
        super().shutdown()

    def _may_shortcut(self) -> bool:
        """Whether a whole small body will come, nothing is under way before it, and the peer reads what it asks for."""
        length = self._framing.get(b"content-length")
        return (
            self._takes_shortcuts
            and length is not None
            and int(length) <= _AT_ONCE
            and self._is_free()
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
        )

    def _is_free(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _head_without_upgrade(self) -> bytes:
        if self.parser.get_method() == b"CONNECT":
            raise Refused(400, "the edge is no tunnel")
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([line, *fields, b"", b""])

    def _measure_head(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self.head_bytes:
            self._too_large()

    def _too_large(self) -> NoReturn:
        raise Refused(431, f"the head is larger than {self.head_bytes} bytes or {self.head_fields} fields")

    def _too_slow(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # the rest may wait in the socket until earlier requests are answered
            self._timer = self.loop.call_later(self.head_seconds, self._too_slow)
        else:
            self._refuse(Refused(408, "the head of the request took too long"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # How a connection ends that can't go on

    def _refuse(self, refused: Refused) -> None:
        self._stop_timer()
        self._refusal = refusal(refused, self.server_state.default_headers)
        if self._stage == _BODY:
            self._give_up_body()
        elif self.cycle is None or self.cycle.response_complete:
            self._end(self._refusal)

    def _give_up_body(self) -> None:
        """The framing of a body broke whose request is with the application already, or waits for its turn."""
        assert self._refusal is not None  # noqa: S101 the caller refuses
        if self.pipeline:
            self.pipeline.popleft()
            return
        self.cycle.disconnected = True
        self.cycle.waiting_for_100_continue = False
        self.cycle.message_event.set()
        self._end(b"" if self.cycle.response_started else self._refusal)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        last = not self.pipeline
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._rest()
        if self._refusal is not None and last:
            self._end(self._refusal)

    def _rest(self) -> None:
        """The connection is idle from here on. One timer looks at it now and then: one for each request is too dear."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._timer is not None or (self.cycle is not None and not self.cycle.response_complete):
            return  # busy: it rests again when it has answered
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _end(self, answer: bytes) -> None:
        """Closing with bytes unread would reset the connection, and the answer with it (RFC 9112 section 9.6)."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.transport.write(answer)
        with contextlib.suppress(OSError):  # the peer is gone
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(self.linger_seconds, self.transport.close)
