"""What both HTTP engines put on the wire and take from it, so that they can't differ.

Request target, authority and headers of an `Outbound`; the head of an answer; the fixed texts of what can go wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from broker_edge.core.exchange import Outbound, Target
from broker_edge.errors import CallerError, UpstreamError

# Below the keep-alive of common servers and balancers (60 s and more): whoever closes an idle connection first decides
# whether a request can meet its end, and one that does may have been processed.
IDLE_SECONDS: Final = 55.0
SHARED_IDLE_SECONDS: Final = 240.0  # HTTP/2: a peer that ends one says which requests it took
# A peer that vanished is found by the kernel, whose counterpart answers even while a process is busy with a long call. HTTP/2's
# PING is the process's to answer: a slow one would lose the calls it is working on, and some servers say GOAWAY to it.
PROBE_SECONDS: Final = 15
PROBES: Final = 3
DEAD_SECONDS: Final = 30  # with data that nobody acknowledges
MAX_IDLE: Final = 100  # idle HTTP/1.1 connections kept per origin
MAX_IN_FLIGHT: Final = 1024  # exchanges per origin; more wait
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_ORIGINS: Final = 1000
LONGEST: Final = 300.0  # seconds; the longest time-out that a data source may have

# reqwest sends both in any case; RFC 9110 section 10.1.5 asks for the one, section 12.5.1 makes the other mean nothing.
USER_AGENT: Final = "broker-edge"
_DEFAULTS: Final = (("accept", "*/*"), ("user-agent", USER_AGENT))
_EXPECT_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_TIMEOUT: Final = re.compile(r"\btimeout *= *\"?([0-9]{1,9})", re.IGNORECASE)
_DIGITS: Final = 15  # enough for any length that memory could hold
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Failure = Literal[
    "connect", "connect_timeout", "tls", "tls_material", "alert", "refused", "broken", "incomplete", "head", "coding", "late"
]

_FAILURES: Final[dict[Failure, tuple[str, str, bool]]] = {
    "connect": ("CONNECT_ERROR", "The connection to the upstream could not be opened", False),
    "connect_timeout": ("TIMEOUT", "The connection to the upstream was not opened in time", False),
    "tls": ("TLS_ERROR", "The upstream's TLS handshake or certificate check failed", False),
    "tls_material": ("TLS_ERROR", "The certificates or the key given for the upstream could not be read", False),
    "alert": ("TLS_ERROR", "The upstream ended TLS after the handshake; it may want a client certificate", True),
    "refused": ("CONNECT_ERROR", "The upstream refused the request unprocessed", False),
    "broken": ("CONNECT_ERROR", "The connection to the upstream broke before an answer", True),
    "incomplete": ("UPSTREAM_INCOMPLETE", "The upstream's answer ended before it was whole", True),
    "late": ("TIMEOUT", "The upstream did not answer in time", True),
    "head": ("UPSTREAM_TOO_LARGE", f"The head of the upstream's answer is larger than {MAX_HEAD_BYTES} bytes", True),
    "coding": ("CONNECT_ERROR", "The upstream's answer has a transfer coding other than chunked", True),
}


def failure(name: Failure) -> UpstreamError:
    """The error of that name; none carries a word of the engine's, whose texts hold URLs."""
    code, message, sent = _FAILURES[name]
    return UpstreamError(code, message, sent=sent)


def request_target(url: str) -> str:
    """Path and query of an absolute URL in origin form (RFC 9112 section 3.2.1), the fragment cut off."""
    rest = url.partition("://")[2].partition("#")[0]
    start = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    target = rest[start:]
    return target if target.startswith("/") else "/" + target


def authority(target: Target) -> str:
    """Host and port as in Host and :authority: the port only where it isn't the scheme's own, IPv6 in brackets."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == _DEFAULT_PORTS.get(target.scheme) else f"{host}:{target.port}"


def request_headers(request: Outbound) -> list[tuple[str, str]]:
    """All headers but Host: the request's, the defaults it lacks, Content-Length (RFC 9110 section 8.6).

    Raises `CallerError` INVALID_VALUE for what RFC 9110 section 5 allows in no header.
    """
    if not all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in request.headers):
        raise CallerError("INVALID_VALUE", "A header's name or value can't be sent")
    names = {name.lower() for name, _ in request.headers}
    headers = [*request.headers, *(default for default in _DEFAULTS if default[0] not in names)]
    length = framing(request)
    if length is not None:
        headers.append(("content-length", length))
    return headers


def framing(request: Outbound) -> str | None:
    """The Content-Length of a request, None where it has none (RFC 9110 section 8.6)."""
    if request.body is None and request.method not in _EXPECT_CONTENT:
        return None
    return str(len(request.body or b""))


def bounded(headers: Mapping[str, str], most: int) -> bool:
    """Whether the framing itself bounds the answer's body by `most` bytes: Content-Length does where nothing overrides it."""
    length = headers.get("content-length", "")
    return length.isdecimal() and len(length) <= _DIGITS and int(length) <= most and "transfer-encoding" not in headers


def idle_limit(keep_alive: str) -> float:
    """Seconds for which a connection may be kept idle, by the server's Keep-Alive: well before it ends the connection itself."""
    said = _TIMEOUT.search(keep_alive)
    if said is None:
        return IDLE_SECONDS
    seconds = float(said[1])
    return min(IDLE_SECONDS, seconds - min(1.0, seconds / 2))


def reply_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header lines as the port promises them; a name with a value that isn't ASCII is left out, as one engine can't read it.

    Raises UPSTREAM_TOO_LARGE.
    """
    headers: dict[str, str] = {}
    size, opaque = 0, set()
    for raw_name, raw_value in pairs:
        size += len(raw_name) + len(raw_value) + 4
        name = raw_name.decode("ascii", "replace").lower()
        if not raw_value.isascii():
            opaque.add(name)
        headers[name] = add_value(headers.get(name), raw_value.decode("latin-1"))
    check_head_size(size)
    for name in opaque:
        del headers[name]
    return headers


def add_value(before: str | None, value: str) -> str:
    """Repeated headers make one list (RFC 9110 section 5.3)."""
    return value if before is None else f"{before}, {value}"


def check_head_size(size: int) -> None:
    if size > MAX_HEAD_BYTES:
        raise failure("head")
