"""Tokens by OAuth 2 (RFC 6749): the request for one, and what its answer says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

import msgspec

from broker_edge import __version__
from broker_edge.core.auth import OutboundAuth
from broker_edge.core.credentials import Credentials, basic, tls_of
from broker_edge.core.exchange import Outbound
from broker_edge.errors import UpstreamError

MARGIN: Final = 60.0  # seconds before its expiry from which a token is not used again
UNTOLD: Final = 300.0  # seconds for which a token is used whose answer tells no lifetime
_LONGEST: Final = 30 * 86_400.0
_BETWEEN: Final = 6  # more than others may have seen configured while the registry's news are on their way to them
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,65536}")
_HEADERS: Final = (
    ("content-type", "application/x-www-form-urlencoded"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("user-agent", f"broker-edge/{__version__}"),
)


class Grant(msgspec.Struct, frozen=True):
    """What a token endpoint gave: `lifetime` in seconds for which the token may be used, `refresh` where it gave a new one."""

    access: str
    lifetime: float
    refresh: str | None = None

    def __repr__(self) -> str:
        return f"Grant({self.lifetime!r})"


class Token(msgspec.Struct, frozen=True):
    """A token as it is kept; `until` in epoch seconds. `marks` are those of the refresh tokens that it may have come of."""

    access: str
    until: float
    marks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Token({self.until!r})"


class Chain(msgspec.Struct, frozen=True):
    """The refresh token that a server gave last, and the marks of it, of the configured one and of some in between."""

    latest: str
    marks: tuple[str, ...]

    def __repr__(self) -> str:
        return "Chain()"


def name_of(*parts: str | None) -> str:
    """A digest of what a refresh token is known by, in 32 hex digits; without a key, as it must outlast the rotation of all keys.

    Nobody finds the token in it who could not guess it (RFC 6749 section 10.10): no password may be among the parts.
    """
    return blake2b(msgspec.json.encode(parts), digest_size=16, person=b"be refresh v1").hexdigest()


def marks_after(marks: tuple[str, ...], configured: str, fresh: str) -> tuple[str, ...]:
    """The marks of a chain that goes on with `fresh`: who still has one of them means the chain, whichever is good by now."""
    between = [mark for mark in marks if mark not in (configured, fresh)]
    return (configured, *between[-_BETWEEN:], fresh)


def token_request(auth: OutboundAuth, given: Credentials, refresh: str | None = None) -> Outbound:
    """RFC 6749 sections 4.3.2, 4.4.2 and 6, the client known by section 2.3.1. `refresh` goes before the configured one."""
    form: dict[str, str] = {"grant_type": auth.grant or ""}
    if auth.grant == "password":
        form |= {"username": given["USERNAME"], "password": given["PASSWORD"]}
    elif auth.grant == "refresh_token":
        form["refresh_token"] = refresh or given["REFRESH_TOKEN"]
    if auth.scope:
        form["scope"] = auth.scope
    headers: tuple[tuple[str, str], ...] = _HEADERS
    client, secret = given["CLIENT_ID"], given["CLIENT_SECRET"]
    if auth.client_auth == "post":
        form |= {"client_id": client, "client_secret": secret}
    else:  # section 2.3.1: each form-encoded before they are joined, so that a colon is none
        headers = (*headers, ("authorization", f"Basic {basic(quote_plus(client), quote_plus(secret))}"))
    return Outbound(
        "POST",
        auth.token_url or "",
        headers,
        urlencode(form).encode(),
        tls=tls_of(auth, given),
        bound_headers=frozenset({"authorization"}),
        follows=False,
    )


def read_grant(body: bytes) -> Grant:
    """The answer of a token endpoint (RFC 6749 section 5.1). Raises UpstreamError PARSE_ERROR, which quotes nothing of it."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    if not isinstance(answer, Mapping):
        raise _unreadable("is no JSON object")
    access, refresh, kind = answer.get("access_token"), answer.get("refresh_token"), answer.get("token_type")
    if not isinstance(access, str) or not _TOKEN.fullmatch(access):
        raise _unreadable("holds no access_token that can be sent")
    # Section 7.1: a token of a type that is not understood must not be used. Some servers leave out the only one there is, and
    # widespread ones call it BearerToken.
    if kind is not None and not (isinstance(kind, str) and kind.lower() in ("bearer", "bearertoken")):
        raise _unreadable("has another token_type than Bearer")
    return Grant(access, _lifetime(answer.get("expires_in")), refresh if isinstance(refresh, str) and refresh else None)


def _lifetime(told: Any) -> float:
    """The seconds for which a token is used; 0 where that is once. Some servers tell theirs as text."""
    if told is None:
        return UNTOLD
    try:
        seconds = float(told) if not isinstance(told, bool) else math.nan
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(seconds - MARGIN, _LONGEST) if seconds > MARGIN else 0.0


def _unreadable(what: str) -> UpstreamError:
    return UpstreamError("PARSE_ERROR", f"the answer of the token endpoint {what}")
