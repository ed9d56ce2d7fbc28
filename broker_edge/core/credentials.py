"""Credentials where they belong: in a header, in the query, in the TLS handshake. Runs on the way upstream, after `render`.

What the spec itself says in the same place gives way: `source.auth` is the more deliberate of the two.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec

from broker_edge.core.auth import CERTIFICATE, CLIENT, MEMBER, OutboundAuth
from broker_edge.core.exchange import Outbound, TlsOptions
from broker_edge.core.urls import URL_LIMIT, with_param
from broker_edge.errors import CallerError

Credentials = Mapping[str, str]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?")
_MAY_BE_EMPTY: Final = ("CLIENT_SECRET", "PASSWORD")  # RFC 6749 section 2.3.1, RFC 7617 section 2


def credentials_of(auth: OutboundAuth, env: Mapping[str, Any]) -> dict[str, str]:
    """The credentials that are used of those in `env`; null is none.

    Raises `CallerError`: INVALID_VALUE naming one that is no text, MISSING_VARIABLE naming those that are lacking.
    """
    names = [name for name, value in env.items() if value is not None]
    if missing := auth.missing(names):
        raise CallerError("MISSING_VARIABLE", f"No value is given for {', '.join(missing)} (in {MEMBER})")
    return {name: _text(name, env[name]) for name in sorted(auth.chosen(names))}


def authorized(outbound: Outbound, auth: OutboundAuth, given: Credentials, token: str | None = None) -> Outbound:
    """The request with the proof that `auth` asks for; `token` is bearer's. Raises `CallerError` INVALID_VALUE."""
    outbound = msgspec.structs.replace(outbound, tls=tls_of(auth, given))
    if auth.method == "basic":
        return _with_header(outbound, "Authorization", f"Basic {basic(*_pair(given))}")
    if auth.method == "bearer":
        return _with_header(outbound, "Authorization", f"Bearer {token}")
    if auth.method == "api_key":
        return _with_key(outbound, auth, given)
    return outbound


def tls_of(auth: OutboundAuth, given: Credentials) -> TlsOptions | None:
    """Trust and identity of the source's connections, None where both are what everybody's are."""
    identity = _identity(given) if auth.client_certificate else None
    return None if auth.ca is None and identity is None else TlsOptions(auth.ca, identity)


def basic(user: str, password: str) -> str:
    """RFC 7617 section 2, in UTF-8."""
    return b64encode(f"{user}:{password}".encode()).decode()


def refuse(name: str, reason: str) -> NoReturn:
    raise CallerError("INVALID_VALUE", f"The credential {name} can't be used: {reason}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(name, "it is no text")
    if not value and name not in _MAY_BE_EMPTY:
        refuse(name, "it is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, "it holds half a surrogate pair, which is no character")
    return value


def _pair(given: Credentials) -> tuple[str, str]:
    user, password = CLIENT if CLIENT[0] in given else ("USERNAME", "PASSWORD")
    if ":" in given[user]:
        refuse(user, "a colon would end the user's name")
    for name in (user, password):
        if _CONTROL.search(given[name]):
            refuse(name, "it holds control characters")
    return given[user], given[password]


def _with_key(outbound: Outbound, auth: OutboundAuth, given: Credentials) -> Outbound:
    credential = "API_KEY" if "API_KEY" in given else CLIENT[1]
    key = given[credential]
    if auth.location == "header":
        if not _FIELD_VALUE.fullmatch(key):
            refuse(credential, "a header value must be visible ASCII, without spaces around it")
        return _with_header(outbound, auth.name, key)
    url = with_param(outbound.url, auth.name, key)
    if len(url) > URL_LIMIT:
        refuse(credential, f"the URL is over {URL_LIMIT} characters long with it")
    return msgspec.structs.replace(outbound, url=url, bound_params=frozenset({auth.name}))


def _with_header(outbound: Outbound, name: str, value: str) -> Outbound:
    lowered = name.lower()
    kept = [pair for pair in outbound.headers if pair[0].lower() != lowered]
    return msgspec.structs.replace(outbound, headers=(*kept, (name, value)), bound_headers=outbound.bound_headers | {lowered})


def _identity(given: Credentials) -> bytes:
    certificate, key = (given[name] for name in CERTIFICATE)
    if "-----BEGIN CERTIFICATE-----" not in certificate or not certificate.isascii():
        refuse(CERTIFICATE[0], "it must be a certificate in PEM, with those that lead to its authority behind it")
    if "PRIVATE KEY-----" not in key or not key.isascii():
        refuse(CERTIFICATE[1], "it must be a private key in PEM")
    if "ENCRYPTED" in key:
        refuse(CERTIFICATE[1], "it must not be encrypted: the vault does that")
    return f"{certificate.strip()}\n{key.strip()}\n".encode()
