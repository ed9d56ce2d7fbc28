"""What a fetch has to do with ASGI: its body is read within a bound, its answer sent in two messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from broker_edge.api.envelope import Parts, fields
from broker_edge.errors import CallerError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_DRAINED = 64 * 2**20  # bytes of a refused body that are still read, so that its sender hears the answer


class Gone(Exception):
    """The caller left before its request was complete: there is nobody to answer."""


class Answer(NamedTuple):
    """`fields` are header lines, Content-Length not among them; `parts` the pieces of the body."""

    status: int
    fields: bytes
    parts: Parts


async def read(receive: Receive, most: int) -> bytes:
    """The whole body; raises CallerError PAYLOAD_TOO_LARGE over `most` bytes, and Gone."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    body: bytes = message.get("body", b"")
    return await _read_on(receive, body, most) if message.get("more_body", False) else body


async def _read_on(receive: Receive, first: bytes, most: int) -> bytes:
    chunks, size, more = [first], len(first), True
    while more and size <= most + _DRAINED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        more = message.get("more_body", False)
        size += len(message.get("body", b""))
        if size <= most:
            chunks.append(message.get("body", b""))
    check_size(size, most)
    return b"".join(chunks)


def check_size(size: int, most: int) -> None:
    if size > most:
        raise CallerError("PAYLOAD_TOO_LARGE", f"the request is larger than {most} bytes")


async def send_answer(send: Send, answer: Answer) -> None:
    body = b"".join(answer.parts)
    headers = [*fields(answer.fields), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
