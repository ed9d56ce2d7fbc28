"""The answers of the pyreqwest engine: head, body and failures as `ports.RawReply` and `ports.Transport` promise them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, cast

from pyreqwest.exceptions import PyreqwestError, RequestError, RequestTimeoutError
from pyreqwest.http import HeaderMap
from pyreqwest.response import Response

from broker_edge.backends.wire import add_value, bounded, check_head_size, failure
from broker_edge.errors import UpstreamError

_VERSIONS: Final = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2"}


class PyreqwestReply:
    """A `RawReply` over a response that still flows."""

    __slots__ = ("_response", "headers", "http_version", "status")

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status
        self.headers = _reply_headers(response.headers)
        self.http_version = _VERSIONS.get(response.version, "1.1")

    async def whole(self, most: int) -> bytes | None:
        """Gathered in the engine's thread: one wake-up of the loop, where `chunks` has one for each piece and one for the end."""
        if not bounded(self.headers, most):
            return None
        swallowed = Swallowed()
        try:
            body = await self._response.body_reader.bytes()
        except (PyreqwestError, OSError) as error:
            raise _cut(error) from None
        swallowed.surface()
        return body.to_bytes()

    async def chunks(self) -> AsyncIterator[bytes]:
        read = self._response.body_reader.read_chunk
        swallowed = Swallowed()
        try:
            while (chunk := await read()) is not None:
                swallowed.surface()
                yield chunk.to_bytes()
                swallowed = Swallowed()
        except (PyreqwestError, OSError) as error:
            raise _cut(error) from None
        swallowed.surface()


class Swallowed:
    """Made before an await on pyreqwest, which swallows a cancellation where its answer comes in the same moment."""

    __slots__ = ("_before", "_task")

    def __init__(self) -> None:
        self._task = task = asyncio.current_task()
        self._before = task.cancelling() if task else 0

    def surface(self) -> None:
        """Raise the cancellation that was asked for since."""
        if self._task is not None and self._task.cancelling() > self._before:
            raise asyncio.CancelledError


def _cut(error: Exception) -> UpstreamError:
    return failure("late" if isinstance(error, RequestTimeoutError) else "incomplete")


def _reply_headers(raw: HeaderMap) -> dict[str, str]:
    try:
        multi = raw.dict_multi_value()
    except ValueError:  # some value isn't ASCII, and then the view gives nothing at all
        multi = {name: values for name in dict.fromkeys(raw.keys()) if (values := _readable(raw, name))}
    headers = _measured(multi)
    # hyper hands out any other coding as it came, or reads it to the connection's end.
    if "transfer-encoding" in raw and headers.get("transfer-encoding", "").lower() != "chunked":
        raise failure("coding")
    return headers


def _measured(multi: dict[str, str | list[str]]) -> dict[str, str]:
    if list in map(type, multi.values()):
        pairs = [(name, value) for name, values in multi.items() for value in ([values] if isinstance(values, str) else values)]
        headers: dict[str, str] = {}
        for name, value in pairs:
            headers[name] = add_value(headers.get(name), value)
        check_head_size(sum(len(name) + len(value) + 4 for name, value in pairs))
        return headers
    single = cast("dict[str, str]", multi)
    check_head_size(sum(map(len, single)) + sum(map(len, single.values())) + 4 * len(single))
    return single


def _readable(raw: HeaderMap, name: str) -> list[str]:
    try:
        return list(raw.getall(name))
    except ValueError:
        return []


def translated(error: Exception) -> UpstreamError:
    """The port's error by the class and by the fixed words of reqwest's, hyper's and rustls's causes; their texts stay inside."""
    causes = error.details.get("causes") if isinstance(error, RequestError) else None
    words = " / ".join(cause["message"] for cause in (causes or ())[1:])
    if "client error (Connect)" in words:
        if isinstance(error, RequestTimeoutError):
            return failure("connect_timeout")
        return failure("connect" if "tcp connect error" in words else "tls")
    if isinstance(error, RequestTimeoutError):
        return failure("late")
    if "REFUSED_STREAM" in words or "refused stream" in words:
        return failure("refused")
    if "message head is too large" in words:
        return failure("head")
    return failure("alert" if "received fatal alert" in words else "broken")
