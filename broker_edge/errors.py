"""Every way a fetch can fail, by stable code: the leaf that all other rooms import.

A code fixes its HTTP status, who caused it and whether asking again can help; see the table in the README. Messages are
written for callers: they name members and variables, never values, secrets, paths or foreign exception texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["caller", "upstream", "edge"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a code means outside: HTTP status, RFC 9457 title, origin of the fault, whether a retry can help."""

    status: int
    title: str
    source: Source
    retryable: bool = False


NOT_SENT = "nothing was sent"  # a note on a cancellation that met a call before it had a connection

CODES: dict[str, Kind] = {
    "INVALID_REQUEST": Kind(400, "The request is not valid", "caller"),
    "INVALID_DATA_SOURCE": Kind(400, "The data source is not valid", "caller"),
    "TEMPLATE_REJECTED": Kind(400, "A template is not allowed", "caller"),
    "MISSING_VARIABLE": Kind(400, "A template variable has no value", "caller"),
    "INVALID_VALUE": Kind(400, "A value can't stand where its template puts it", "caller"),
    "UNAUTHENTICATED": Kind(401, "The caller is not known", "caller"),
    "FORBIDDEN": Kind(403, "The caller may not do this", "caller"),
    "TARGET_DENIED": Kind(403, "The address may not be called", "caller"),
    "DATA_SOURCE_NOT_FOUND": Kind(404, "There is no such data source", "caller"),
    "DATA_OBJECT_NOT_FOUND": Kind(404, "There is no such data object", "caller"),
    "DATA_SOURCE_ALREADY_EXISTS": Kind(409, "The name is taken by another data source", "caller"),
    "NOT_FOUND": Kind(404, "There is nothing here", "caller"),
    "METHOD_NOT_ALLOWED": Kind(405, "The method is not allowed here", "caller"),
    "NOT_CACHED": Kind(404, "The answer is not in the cache", "caller"),
    "PAYLOAD_TOO_LARGE": Kind(413, "The request is too large", "caller"),
    "RATE_LIMITED": Kind(429, "Too many requests", "caller", retryable=True),
    "BUDGET_EXHAUSTED": Kind(429, "The data source's budget of the day is spent", "edge"),
    "CONNECT_ERROR": Kind(502, "The upstream could not be reached", "upstream", retryable=True),
    "DNS_ERROR": Kind(502, "The upstream's name could not be resolved", "upstream", retryable=True),
    "TLS_ERROR": Kind(502, "The upstream's TLS handshake failed", "upstream"),
    "UPSTREAM_STATUS": Kind(502, "The upstream answered with an error status", "upstream"),
    "UPSTREAM_INCOMPLETE": Kind(502, "The upstream's answer was cut short", "upstream", retryable=True),
    "UPSTREAM_TOO_LARGE": Kind(502, "The upstream's answer is too large", "upstream"),
    "PARSE_ERROR": Kind(502, "The upstream's answer could not be read", "upstream"),
    "TIMEOUT": Kind(502, "The upstream did not answer in time", "upstream", retryable=True),
    "OVERLOADED": Kind(503, "The edge is overloaded", "edge", retryable=True),
    "CIRCUIT_OPEN": Kind(503, "The upstream is failing and is left alone for a while", "edge", retryable=True),
    "STORAGE_UNAVAILABLE": Kind(503, "The edge's storage is not available", "edge", retryable=True),
    "INTERNAL": Kind(500, "The edge failed", "edge"),
}


class EdgeError(Exception):
    """A failure with a stable code from `CODES`; `retry_after` in seconds, `upstream_status` an HTTP status."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        upstream_status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = CODES[code]
        self.code = code
        self.message = message
        self.retryable = self.kind.retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.upstream_status = upstream_status

    def member(self) -> dict[str, Any]:
        """`error` as replies and audit rows carry it."""
        member: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "source": self.kind.source,
            "retryable": self.retryable,
        }
        if self.upstream_status is not None:
            member["upstream_status"] = self.upstream_status
        return member


class CallerError(EdgeError):
    """The request can't be served as it stands; the same request will fail again."""


class TargetDenied(EdgeError):
    """The address guard refuses to dial; fails closed."""

    def __init__(self, message: str) -> None:
        super().__init__("TARGET_DENIED", message)


class UpstreamError(EdgeError):
    """The upstream failed. `sent` is False only where certainly no byte of the request reached it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        sent: bool = True,
        retryable: bool | None = None,
        retry_after: float | None = None,
        upstream_status: int | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable, retry_after=retry_after, upstream_status=upstream_status)
        self.sent = sent


class TokenError(UpstreamError):
    """The token endpoint failed: nothing was asked of the upstream, and so this is no answer of its that could be remembered."""


class RememberedStatus(UpstreamError):
    """The upstream answered this error status `age` seconds ago; it is not asked again for another `remaining` seconds."""

    def __init__(self, status: int, *, retryable: bool, age: float, remaining: float) -> None:
        super().__init__("UPSTREAM_STATUS", f"the upstream answered {status}", retryable=retryable, upstream_status=status)
        self.age = age
        self.remaining = remaining


class TierBroken(EdgeError):
    """A cache tier, the flight lock or the database can't be reached: not a miss, counted under its own name."""

    def __init__(self, message: str) -> None:
        super().__init__("STORAGE_UNAVAILABLE", message, retry_after=1.0)


class Overtaken(TierBroken):
    """Somebody else changed what was read before it was written; nothing is. Whoever reads again may get through."""
