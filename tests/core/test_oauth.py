"""Tokens by OAuth 2: what is asked, and what an answer is taken for."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.auth import OutboundAuth, compile_auth
from broker_edge.core.oauth import MARGIN, UNTOLD, Chain, Grant, Token, marks_after, read_grant, token_request
from broker_edge.core.spec import Auth
from broker_edge.errors import CallerError, UpstreamError

GIVEN = {"CLIENT_ID": "me", "CLIENT_SECRET": "secret", "USERNAME": "user", "PASSWORD": "word", "REFRESH_TOKEN": "r0"}


def bearer(**members: Any) -> OutboundAuth:
    return compile_auth(Auth("bearer", **{"token_url": "https://a.test/token", "grant_type": "client_credentials", **members}))


def form(auth: OutboundAuth, given: Any = None, refresh: str | None = None) -> dict[str, list[str]]:
    return parse_qs(
        (token_request(auth, given or GIVEN, refresh).body or b"").decode(), keep_blank_values=True, strict_parsing=True
    )


@pytest.mark.parametrize(
    ("grant", "members"),
    [
        ("client_credentials", {}),
        ("password", {"username": ["user"], "password": ["word"]}),
        ("refresh_token", {"refresh_token": ["r0"]}),
    ],
)
def test_a_request_has_what_its_grant_wants(grant: str, members: Any) -> None:
    assert form(bearer(grant_type=grant)) == {"grant_type": [grant], **members}
    assert form(bearer(grant_type=grant, scope="a b")) == {"grant_type": [grant], **members, "scope": ["a b"]}


def test_the_last_refresh_token_goes_before_the_configured_one() -> None:
    assert form(bearer(grant_type="refresh_token"), refresh="r7")["refresh_token"] == ["r7"]


@given(
    st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
)
def test_the_client_is_known_by_basic_or_by_the_form(client: str, secret: str) -> None:
    given = {**GIVEN, "CLIENT_ID": client, "CLIENT_SECRET": secret}
    request = token_request(bearer(), given)
    [encoded] = [value for name, value in request.headers if name == "authorization"]
    pair = base64.b64decode(encoded.removeprefix("Basic ")).decode()
    assert pair.count(":") == 1
    assert parse_qs(
        "&".join(f"{name}={value}" for name, value in zip("is", pair.split(":"), strict=True)), keep_blank_values=True
    ) == {
        "i": [client],
        "s": [secret],
    }
    posted = token_request(bearer(client_auth="post"), given)
    assert "authorization" not in dict(posted.headers)
    assert form(bearer(client_auth="post"), given)["client_secret"] == [secret]


def test_the_request_goes_where_the_source_says_with_its_trust() -> None:
    request = token_request(bearer(token_url="HTTPS://A.test:443/x/../token?a=b"), GIVEN)
    assert (request.method, request.url, request.tls) == ("POST", "https://a.test/token?a=b", None)
    assert request.bound_headers == {"authorization"}
    assert not request.follows
    pem = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"
    tls = token_request(bearer(ca_bundle=pem), GIVEN).tls
    assert tls is not None
    assert (tls.ca, tls.identity) == (pem.encode(), None)


@pytest.mark.parametrize("url", [None, "", "ftp://a.test", "/token", "https://a.test/{{ id }}", "https://u:p@a.test/"])
def test_a_token_endpoint_must_be_a_plain_url(url: str | None) -> None:
    with pytest.raises(CallerError) as caught:
        bearer(token_url=url)
    assert caught.value.code == "INVALID_DATA_SOURCE"
    assert "token_url" in caught.value.message


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (3600, 3600 - MARGIN),
        ("3600", 3600 - MARGIN),
        (3600.5, 3600.5 - MARGIN),
        (MARGIN + 1, 1),
        (MARGIN, 0),
        (0, 0),
        (-5, 0),
        ("soon", 0),
        ([], 0),
        (True, 0),
        (10**400, 0),
        (1e300, 30 * 86_400),
        (None, UNTOLD),
    ],
)
def test_a_token_is_used_until_a_minute_before_it_expires(expires_in: Any, lifetime: float) -> None:
    body = {"access_token": "t"} | ({} if expires_in is None else {"expires_in": expires_in})
    assert read_grant(json.dumps(body).encode()).lifetime == lifetime


@pytest.mark.parametrize(("refresh", "kept"), [("r1", "r1"), ("", None), (None, None), (7, None)])
def test_a_new_refresh_token_is_kept(refresh: Any, kept: str | None) -> None:
    assert read_grant(json.dumps({"access_token": "t", "refresh_token": refresh}).encode()).refresh == kept


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER", "BearerToken", None])
def test_a_token_is_a_bearer_s_where_nothing_else_is_said(kind: str | None) -> None:
    assert read_grant(json.dumps({"access_token": "t", "token_type": kind}).encode()).access == "t"
    assert read_grant(b'{"access_token": "t"}').access == "t"


@pytest.mark.parametrize("kind", ["mac", "DPoP", "", " bearer", 1, ["Bearer"], {}])
def test_a_token_of_another_type_is_not_used_as_a_bearer_s(kind: Any) -> None:
    with pytest.raises(UpstreamError) as caught:
        read_grant(json.dumps({"access_token": "t", "token_type": kind}).encode())
    assert (caught.value.code, caught.value.message) == (
        "PARSE_ERROR",
        "the answer of the token endpoint has another token_type than Bearer",
    )


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_nothing_else_is_taken_for_a_token_or_quoted(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        read_grant(body)
    assert caught.value.code == "PARSE_ERROR"
    assert caught.value.message in (
        "the answer of the token endpoint is no JSON object",
        "the answer of the token endpoint holds no access_token that can be sent",
    )


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=1), max_size=12, unique=True), st.sampled_from("abc"), st.sampled_from("xyz")
)
def test_marks_keep_the_configured_one_and_the_last(marks: list[str], configured: str, fresh: str) -> None:
    after = marks_after(tuple(marks), configured, fresh)
    assert (after[0], after[-1]) == (configured, fresh)
    assert len(set(after)) == len(after) <= 8
    assert set(after[1:-1]) <= set(marks)


def test_no_token_is_shown() -> None:
    for kept in (Grant("canary", 1.0, "canary"), Token("canary", 1.0, ("canary",)), Chain("canary", ("canary",))):
        assert "canary" not in repr(kept)
