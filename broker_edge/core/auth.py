"""How a data source wants its callers to prove who they are: `source.auth`, compiled; no secret is in it.

Methods: `basic` (RFC 7617), `bearer` (a token by OAuth 2, RFC 6749), `api_key` (a header or a query parameter), `mtls` (the
client's certificate alone, RFC 8446). Any of them may come with a client certificate and with authorities of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from broker_edge.core.holes import Scope
from broker_edge.core.spec import ROOT, Auth
from broker_edge.core.template import invalid
from broker_edge.core.urls import compile_url

Method = Literal["basic", "bearer", "api_key", "mtls"]
Grant = Literal["client_credentials", "password", "refresh_token"]
T = TypeVar("T", bound=str)

CLIENT: Final = ("CLIENT_ID", "CLIENT_SECRET")
USER: Final = ("USERNAME", "PASSWORD")
CERTIFICATE: Final = ("CLIENT_CERTIFICATE", "CLIENT_KEY")
# The first four are the predecessor's. What else a method may need is kept and sent beside them.
CREDENTIALS: Final = (*CLIENT, *USER, "API_KEY", "REFRESH_TOKEN", *CERTIFICATE)

# Framing and connection management belong to the transport, Host to the URL (RFC 9110 sections 7.2 and 7.6.1).
FRAMING: Final = frozenset({"host", "content-length", "transfer-encoding", "te", "trailer"})
CONNECTION: Final = frozenset({"connection", "keep-alive", "upgrade", "expect", "http2-settings"})

_METHODS: Final[tuple[Method, ...]] = ("basic", "bearer", "api_key", "mtls")
_GRANTS: Final[tuple[Grant, ...]] = ("client_credentials", "password", "refresh_token")
MEMBER: Final = f"{ROOT}.source.auth"
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NEEDS: Final[dict[tuple[Method, Grant | None], tuple[frozenset[str], ...]]] = {
    ("basic", None): (frozenset(CLIENT), frozenset(USER)),
    ("bearer", "client_credentials"): (frozenset(CLIENT),),
    ("bearer", "password"): (frozenset({*CLIENT, *USER}),),
    ("bearer", "refresh_token"): (frozenset({*CLIENT, "REFRESH_TOKEN"}),),
    ("api_key", None): (frozenset({"API_KEY"}), frozenset({"CLIENT_SECRET"})),
    ("mtls", None): (frozenset(),),
}


@dataclass(frozen=True, slots=True)
class OutboundAuth:
    """`alternatives`: the sets of credentials of which one must be given, the preferred one first. `ca` is PEM."""

    method: Method
    token_url: str | None = None
    grant: Grant | None = None
    scope: str | None = None
    client_auth: Literal["basic", "post"] = "basic"
    location: Literal["header", "query"] = "header"
    name: str = ""
    client_certificate: bool = False
    ca: bytes | None = field(default=None, repr=False)
    alternatives: tuple[frozenset[str], ...] = (frozenset(),)

    def missing(self, given: Collection[str]) -> tuple[str, ...]:
        """The credentials without which nothing can be sent; those of the preferred way where none is complete."""
        if any(wanted <= set(given) for wanted in self.alternatives):
            return ()
        return tuple(name for name in CREDENTIALS if name in self.alternatives[0] and name not in given)

    def chosen(self, given: Collection[str]) -> frozenset[str]:
        """The credentials that are used of those `given`."""
        return next((wanted for wanted in self.alternatives if wanted <= set(given)), frozenset())


def compile_auth(wire: Auth) -> OutboundAuth:
    """Raises `CallerError` INVALID_DATA_SOURCE."""
    method = _one_of(_METHODS, wire.method, "method")
    certificate = bool(wire.client_certificate) or method == "mtls"
    grant, token_url = None, None
    if method == "bearer":
        grant = _one_of(_GRANTS, wire.grant_type, "grant_type")
        token_url = _token_url(wire.token_url)
    extra = frozenset(CERTIFICATE) if certificate else frozenset()
    return OutboundAuth(
        method=method,
        token_url=token_url,
        grant=grant,
        scope=wire.scope or None,
        client_auth=_one_of(("basic", "post"), wire.client_auth or "basic", "client_auth"),
        location=_one_of(("header", "query"), wire.location or "header", "in"),
        name=_key_name(wire) if method == "api_key" else "",
        client_certificate=certificate,
        ca=_pem(wire.ca_bundle),
        alternatives=tuple(wanted | extra for wanted in _NEEDS[method, grant]),
    )


def _one_of(allowed: tuple[T, ...], value: str | None, member: str) -> T:
    for one in allowed:
        if value == one:
            return one
    raise invalid(f"{MEMBER}.{member}", f"must be one of {', '.join(allowed)}")


def _token_url(value: str | None) -> str:
    """In the form in which every engine sends it unchanged."""
    if not value:
        raise invalid(f"{MEMBER}.token_url", "is required")
    url = compile_url(value, f"{MEMBER}.token_url")
    if url.holes:
        raise invalid(f"{MEMBER}.token_url", "must hold no template variables")
    return url.render(Scope({}, {}))


def _key_name(wire: Auth) -> str:
    if not wire.name or not _HEADER_NAME.fullmatch(wire.name):
        raise invalid(f"{MEMBER}.name", "must name the header or query parameter that carries the key")
    name = wire.name.lower()
    if wire.location != "query" and (name in FRAMING | CONNECTION or name.startswith("proxy-")):
        raise invalid(f"{MEMBER}.name", "names a header that is set by the edge")
    return wire.name


def _pem(text: str | None) -> bytes | None:
    if text is None:
        return None
    if "-----BEGIN CERTIFICATE-----" not in text or not text.isascii():
        raise invalid(f"{MEMBER}.ca_bundle", "must be certificates in PEM")
    return text.encode()
