"""The answer of a connection (broker_edge/protocol.py) to what is no request, and what makes it none."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from broker_edge.api.envelope import Headers, problem
from broker_edge.errors import CallerError


class Refused(Exception):
    """What can't be served: an HTTP status, and a detail for the caller."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def check_framing(framing: Mapping[bytes, bytes], version: str) -> None:
    """RFC 9112 sections 3.2, 6.1 and 6.3: what two readers could take for two different messages is none. Raises Refused."""
    if b"host" not in framing and version != "1.0":
        raise Refused(400, "the request needs a Host")
    coding = framing.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or b"content-length" in framing or version == "1.0"):
        raise Refused(400, "the length of the request's body is not clear")


def refusal(refused: Refused, headers: Headers) -> bytes:
    own, body = problem(CallerError("INVALID_REQUEST", refused.detail))
    body = orjson.dumps(orjson.loads(body) | {"status": refused.status})
    fields = [*headers, *own, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    return b"".join([STATUS_LINE[refused.status], *(b"%s: %s\r\n" % field for field in fields), b"\r\n", body])
