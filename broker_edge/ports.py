"""The Protocols between the story (flow) and the technology (backends), named by role.

Contracts are stated here once; tests/contract runs the same suite over every implementation. Implementations translate
foreign exceptions into `EdgeError` before they leave the backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from broker_edge.core.exchange import Outbound, Target


class RawReply(Protocol):
    """An upstream's answer while its body still flows: nothing decoded, header names lower case.

    Repeated headers are joined with ", ". `chunks` raises `UpstreamError` UPSTREAM_INCOMPLETE where the body ends before its
    framing says so (short Content-Length, cut chunked body, reset stream).
    """

    status: int
    headers: Mapping[str, str]
    http_version: str

    def chunks(self) -> AsyncIterator[bytes]: ...


class Transport(Protocol):
    """Sends one request to one pinned address over pooled, kept-alive HTTP/1.1 or HTTP/2 connections.

    `open` never follows redirects, never retries what may have been processed, never decodes, never reads the environment, adds
    no header but Host, Content-Length and what framing needs (an absent User-Agent stays absent). It raises `UpstreamError`:
    CONNECT_ERROR or TLS_ERROR (sent=False) where no byte of the request left, CONNECT_ERROR (sent=True) where the connection broke
    before an answer, TIMEOUT (sent=False) where connecting took longer than the connect time-out. Deadlines are the caller's:
    cancelling the context at any await gives the connection up and leaks nothing.
    """

    def open(self, request: Outbound, target: Target) -> AbstractAsyncContextManager[RawReply]: ...

    async def aclose(self) -> None: ...


class Resolver(Protocol):
    """Names to addresses, as IP literals without zone; raises `UpstreamError` DNS_ERROR (sent=False)."""

    async def resolve(self, host: str, port: int) -> Sequence[str]: ...
