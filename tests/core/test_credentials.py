"""Credentials on a rendered request: where they stand, what gives way to them, and what can't stand there."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.auth import CREDENTIALS, compile_auth
from broker_edge.core.credentials import authorized, credentials_of
from broker_edge.core.exchange import Outbound, Reply
from broker_edge.core.redirect import redirected
from broker_edge.core.spec import Auth
from broker_edge.core.urls import without_params
from broker_edge.errors import CallerError

ANY = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\ny\n-----END PRIVATE KEY-----"


def proven(
    auth: Auth, env: dict[str, Any], *headers: tuple[str, str], url: str = "https://a.test/p?x=1", token: str | None = None
) -> Outbound:
    compiled = compile_auth(auth)
    return authorized(Outbound("GET", url, headers), compiled, credentials_of(compiled, env), token)


def refusal(auth: Auth, env: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(CallerError) as caught:
        proven(auth, env)
    return caught.value.code, caught.value.message


def test_what_is_for_this_origin_alone_stays_so_beside_a_proof() -> None:
    asked = Outbound("GET", "https://a.test/", (("Accept", "x"),), bound_headers=frozenset({"accept"}))
    assert authorized(asked, compile_auth(Auth("basic")), {"CLIENT_ID": "me", "CLIENT_SECRET": "x"}).bound_headers == {
        "accept",
        "authorization",
    }


AUTHS = [
    Auth("basic"),
    Auth("bearer", token_url="https://a.test/", grant_type="password"),
    Auth("bearer", token_url="https://a.test/", grant_type="refresh_token"),
    Auth("api_key", name="X-Key"),
    Auth("api_key", name="key", location="query"),
    Auth("mtls"),
    Auth("basic", client_certificate=True),
]


@pytest.mark.parametrize("auth", AUTHS, ids=lambda auth: auth.method)
@given(env=st.dictionaries(st.sampled_from(CREDENTIALS), ANY))
def test_any_credentials_do_or_are_refused_by_name(auth: Auth, env: dict[str, Any]) -> None:
    outbound: Outbound | CallerError
    try:
        outbound = proven(auth, env, token="t")
    except CallerError as error:
        outbound = error
    if isinstance(outbound, CallerError):
        assert outbound.code in ("INVALID_VALUE", "MISSING_VARIABLE")
        assert any(name in outbound.message for name in CREDENTIALS)
        return
    for name, value in outbound.headers:
        assert (name + value).isprintable()
        assert value.isascii()
    assert outbound.url.isascii()


def test_the_first_complete_alternative_is_used() -> None:
    user = {"USERNAME": "u", "PASSWORD": "p"}
    compiled = compile_auth(Auth("basic"))
    assert credentials_of(compiled, {**user, "CLIENT_ID": "c"}) == user
    assert credentials_of(compiled, {**user, "CLIENT_ID": "c", "CLIENT_SECRET": None}) == user
    assert set(credentials_of(compiled, {**user, "CLIENT_ID": "c", "CLIENT_SECRET": "s"})) == {"CLIENT_ID", "CLIENT_SECRET"}


def test_what_is_missing_is_named() -> None:
    code, message = refusal(Auth("basic", client_certificate=True), {"CLIENT_ID": "c", "CLIENT_KEY": None})
    assert code == "MISSING_VARIABLE"
    assert "CLIENT_SECRET, CLIENT_CERTIFICATE, CLIENT_KEY" in message


@pytest.mark.parametrize("name", ["X-Key", "x-KEY"])
def test_a_header_of_that_name_gives_way(name: str) -> None:
    outbound = proven(Auth("api_key", name="X-Key"), {"API_KEY": "k"}, (name, "spec"), ("Accept", "*/*"))
    assert outbound.headers == (("Accept", "*/*"), ("X-Key", "k"))
    assert outbound.bound_headers == {"x-key"}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50))
def test_a_key_in_the_query_is_one_parameter_whatever_it_holds(key: str) -> None:
    auth = Auth("api_key", name="key", location="query")
    outbound = proven(auth, {"API_KEY": key}, url="https://a.test/p?a=1&k%65y=old&key=older&b=%20")
    assert outbound.url.startswith("https://a.test/p?a=1&b=%20&key=")
    assert parse_qsl(urlsplit(outbound.url).query, keep_blank_values=True) == [("a", "1"), ("b", " "), ("key", key)]


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("https://a.test/p", "https://a.test/p"),
        ("https://a.test/p?", "https://a.test/p"),
        ("https://a.test/p?key=1", "https://a.test/p"),
        ("https://a.test/p?key", "https://a.test/p"),
        ("https://a.test/p?Key=1&a&&b==&k%65y=", "https://a.test/p?Key=1&a&&b=="),
        ("https://a.test/key?key=1&x=?key=2", "https://a.test/key?x=?key=2"),
    ],
)
def test_a_parameter_is_found_however_it_is_encoded(url: str, left: str) -> None:
    assert without_params(url, frozenset({"key"})) == left
    assert without_params(url, frozenset()) == url


def test_certificate_and_key_are_the_identity_of_the_connection() -> None:
    auth = Auth("mtls", ca_bundle=CERTIFICATE)
    tls = proven(auth, {"CLIENT_CERTIFICATE": f"\n{CERTIFICATE}", "CLIENT_KEY": KEY}).tls
    assert tls is not None
    assert (tls.ca, tls.identity) == (CERTIFICATE.encode(), f"{CERTIFICATE}{KEY}\n".encode())
    assert "BEGIN" not in repr(tls)


@pytest.mark.parametrize(
    ("certificate", "key", "named"),
    [
        (KEY, KEY, "CLIENT_CERTIFICATE"),
        (CERTIFICATE, CERTIFICATE, "CLIENT_KEY"),
        (CERTIFICATE + "\u00fc", KEY, "CLIENT_CERTIFICATE"),
        (CERTIFICATE, KEY + "\u00fc", "CLIENT_KEY"),
        (CERTIFICATE, KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), "CLIENT_KEY"),
        (CERTIFICATE, "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "CLIENT_KEY"),
    ],
)
def test_what_is_no_certificate_or_key_is_named(certificate: str, key: str, named: str) -> None:
    code, message = refusal(Auth("mtls"), {"CLIENT_CERTIFICATE": certificate, "CLIENT_KEY": key})
    assert (code, named in message) == ("INVALID_VALUE", True)
    assert "BEGIN" not in message


# Redirects


def hop(outbound: Outbound, location: str) -> Outbound:
    following = redirected(outbound, Reply(302, {"location": location}, b""))
    assert following is not None
    return following


def test_within_the_origin_the_proof_goes_along() -> None:
    outbound = proven(Auth("mtls", ca_bundle=CERTIFICATE), {"CLIENT_CERTIFICATE": CERTIFICATE, "CLIENT_KEY": KEY})
    assert hop(outbound, "/q").tls == outbound.tls
    outbound = proven(Auth("api_key", name="X-Key"), {"API_KEY": "k"})
    assert (hop(outbound, "/q").headers, hop(outbound, "/q").bound_headers) == (outbound.headers, {"x-key"})


@pytest.mark.parametrize("location", ["https://b.test/q", "https://a.test:444/q"])
def test_to_another_origin_trust_goes_along_and_identity_does_not(location: str) -> None:
    outbound = proven(Auth("mtls", ca_bundle=CERTIFICATE), {"CLIENT_CERTIFICATE": CERTIFICATE, "CLIENT_KEY": KEY})
    tls = hop(outbound, location).tls
    assert tls is not None
    assert (tls.ca, tls.identity) == (CERTIFICATE.encode(), None)
    alone = proven(Auth("mtls"), {"CLIENT_CERTIFICATE": CERTIFICATE, "CLIENT_KEY": KEY})
    assert hop(alone, location).tls is None


@pytest.mark.parametrize("name", ["X-Key", "Accept-Language", "User-Agent", "Authorization"])
def test_to_another_origin_no_bound_header_goes_whatever_its_name(name: str) -> None:
    following = hop(proven(Auth("api_key", name=name), {"API_KEY": "k"}, ("Accept", "*/*")), "https://b.test/")
    assert following.headers == (("Accept", "*/*"),)
    back = hop(following, "https://a.test/")
    assert (back.headers, back.tls) == (following.headers, None)


def test_a_key_that_the_upstream_repeats_in_its_location_stays_here() -> None:
    outbound = proven(Auth("api_key", name="key", location="query"), {"API_KEY": "k"})
    assert hop(outbound, "https://b.test/?key=k&x=1").url == "https://b.test/?x=1"
    assert hop(outbound, "/?key=k&x=1").url == "https://a.test/?key=k&x=1"
