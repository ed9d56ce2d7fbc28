"""An OAuth 2 server and the upstream that takes its tokens, scripted by tests, on one loopback port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from tests.edges import http_reply, json_reply
from tests.upstreams import Peer, RawServer, Received


class Authority:
    """`/token` gives tokens as it is told, `/data` answers whoever brings one that is good.

    `asked` are the forms that came to the token endpoint, with the client by name; `served` the calls of /data. `gate` holds
    tokens back, `data_gate` answers. `single_use`: a refresh token is good once, and comes with another one.
    """

    def __init__(self) -> None:
        self.expires_in: Any = 3600
        self.answer: bytes | None = None
        self.single_use = False
        self.refresh = "refresh-0"
        self.asked: list[dict[str, str]] = []
        self.requests: list[Received] = []
        self.served: list[Received] = []
        self.good: set[str] = set()
        self.replayed = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.data_gate = asyncio.Event()
        self.data_gate.set()
        self.arrived = asyncio.Event()
        self.data_arrived = asyncio.Event()
        self.port = 0
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def auth(self, **members: Any) -> dict[str, Any]:
        return {"method": "bearer", "grant_type": "client_credentials", "token_url": f"{self.url}/token", **members}

    def revoke(self) -> None:
        self.good.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Authority]:
        async with RawServer(self._serve) as server:
            self.port = server.port
            try:
                yield self
            finally:
                self.gate.set()
                self.data_gate.set()

    async def _serve(self, peer: Peer) -> None:
        while True:
            got = await peer.receive()
            if got.line.split()[1].startswith("/token"):
                self.requests.append(got)
                self.asked.append(_form(got))
                self.arrived.set()
                answer = self.answer or self._granted(self.asked[-1])
                await self.gate.wait()
            else:
                self.served.append(got)
                self.data_arrived.set()
                await self.data_gate.wait()
                answer = self._data(got)
            await peer.send(answer)

    def _granted(self, form: dict[str, str]) -> bytes:
        members: dict[str, Any] = {"token_type": "Bearer"}
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] != self.refresh:
                self.replayed += 1
                return json_reply({"error": "invalid_grant"}, 400)
            if self.single_use:
                members["refresh_token"] = self.refresh = f"refresh-{next(self._numbers)}"
        token = f"token-canary-{next(self._numbers)}"
        self.good.add(token)
        if self.expires_in is not None:
            members["expires_in"] = self.expires_in
        return json_reply({"access_token": token, **members})

    def _data(self, got: Received) -> bytes:
        token = (got.get("authorization") or "").removeprefix("Bearer ")
        return json_reply({"score": 700}) if token in self.good else http_reply(b"no", 401, "WWW-Authenticate: Bearer")


def _form(got: Received) -> dict[str, str]:
    form = dict(parse_qsl(got.body.decode(), keep_blank_values=True))
    scheme, _, encoded = (got.get("authorization") or "").partition(" ")
    if scheme == "Basic":
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        form |= {"basic_id": unquote_plus(client), "basic_secret": unquote_plus(secret)}
    return form
