"""Where the next hop goes, and what of the request may go along (RFC 9110 section 15.4)."""

from __future__ import annotations

import msgspec
import pytest

from broker_edge.core.exchange import Outbound, Reply
from broker_edge.core.redirect import redirected
from broker_edge.errors import UpstreamError

HEADERS = (
    ("Authorization", "Bearer secret"),
    ("Cookie", "session=secret"),
    ("X-Api-Key", "secret"),
    ("Accept", "application/json"),
    ("Accept-Language", "de"),
    ("User-Agent", "policy"),
    ("Content-Type", "application/json"),
)
NAMES = [name for name, _ in HEADERS]


def request(method: str = "GET", url: str = "https://api.test/a/b?q=1", body: bytes | None = None) -> Outbound:
    return Outbound(method, url, HEADERS, body)


def reply(status: int, location: str | None) -> Reply:
    return Reply(status, {} if location is None else {"location": location}, b"")


def hop(asked: Outbound, status: int, location: str) -> Outbound:
    following = redirected(asked, reply(status, location))
    assert following is not None
    return following


@pytest.mark.parametrize("status", [200, 204, 300, 304, 305, 306, 404, 500])
def test_other_statuses_are_the_answer_whatever_their_location(status: int) -> None:
    assert redirected(request(), reply(status, "/there")) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_without_a_location_is_the_answer(status: int) -> None:
    assert redirected(request(), reply(status, None)) is None


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://api.test/c", "https://api.test/c"),
        ("/c?x=2", "https://api.test/c?x=2"),
        ("c", "https://api.test/a/c"),
        ("../c", "https://api.test/c"),
        ("?x=2", "https://api.test/a/b?x=2"),
        ("//other.test/c", "https://other.test/c"),
        ("https://other.test", "https://other.test/"),
        ("/c#fragment", "https://api.test/c"),
        ("HTTPS://API.test:443/c", "https://api.test/c"),
        ("/\u00fcber?q=\u00fc", "https://api.test/%C3%BCber?q=%C3%BC"),
        ("https://\u00fcber.test/", "https://xn--ber-goa.test/"),
    ],
)
def test_a_location_is_resolved_against_the_request(location: str, url: str) -> None:
    assert hop(request(), 302, location).url == url


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "PATCH", "GET"),
        (303, "DELETE", "GET"),
        (303, "GET", "GET"),
        (303, "HEAD", "HEAD"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (307, "PATCH", "PATCH"),
        (301, "HEAD", "HEAD"),
    ],
)
def test_the_method_changes_where_the_rfc_says_so(status: int, method: str, then: str) -> None:
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    following = hop(request(method, body=body), status, "/there")
    assert following.method == then
    assert following.body == (None if then in ("GET", "HEAD") else body)


def test_a_request_that_loses_its_body_loses_what_describes_it() -> None:
    following = hop(request("POST", body=b"{}"), 303, "/there")
    assert [name for name, _ in following.headers] == [name for name in NAMES if name != "Content-Type"]


def test_the_same_origin_gets_every_header() -> None:
    assert hop(request("POST", body=b"{}"), 307, "/there").headers == HEADERS
    assert hop(request("POST", body=b"{}"), 307, "https://API.TEST:443/there").headers == HEADERS


@pytest.mark.parametrize(
    "location", ["https://other.test/", "https://api.test:8443/", "https://api.test.evil.test/", "https://sub.api.test/"]
)
def test_another_origin_gets_nothing_that_could_be_a_secret(location: str) -> None:
    following = hop(request(), 302, location)
    assert {name for name, _ in following.headers} == {"Accept", "Accept-Language", "User-Agent"}


@pytest.mark.parametrize("name", ["Accept", "Accept-Language", "User-Agent"])
def test_another_origin_gets_no_header_that_was_filled_in(name: str) -> None:
    asked = msgspec.structs.replace(request(), bound_headers=frozenset({name.lower()}))
    there = {name for name, _ in hop(asked, 302, "https://other.test/").headers}
    assert there == {"Accept", "Accept-Language", "User-Agent"} - {name}
    assert name in dict(hop(asked, 302, "/there").headers)


def test_a_request_that_follows_nothing_has_the_redirect_for_its_answer() -> None:
    asked = msgspec.structs.replace(request(), follows=False)
    assert redirected(asked, reply(302, "/there")) is None
    assert redirected(asked, reply(307, "https://other.test/")) is None


def test_from_http_to_https_is_another_origin() -> None:
    following = hop(request(url="http://api.test/a"), 301, "https://api.test/a")
    assert "Authorization" not in dict(following.headers)


@pytest.mark.parametrize("status", [307, 308])
def test_no_body_goes_to_another_origin(status: int) -> None:
    with pytest.raises(UpstreamError, match="body") as refused:
        redirected(request("POST", body=b"secret"), reply(status, "https://other.test/"))
    assert (refused.value.code, refused.value.upstream_status) == ("UPSTREAM_STATUS", status)


def test_https_never_falls_back_to_http() -> None:
    with pytest.raises(UpstreamError, match="https to http"):
        redirected(request(), reply(302, "http://api.test/a/b"))


@pytest.mark.parametrize(
    "location",
    [
        "ftp://api.test/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:secret@api.test/",
        "https://@api.test/",
        "https://api.test:99999/",
        "https://api.test:0/",
        "https://api.test:abc/",
        "https://[::1/",
        "https://api.test/a b",
        "https://api.test\\@other.test/",
        "https:///path",
        "https://",
    ],
)
def test_a_location_that_is_no_plain_url_is_not_followed_nor_quoted(location: str) -> None:
    with pytest.raises(UpstreamError) as refused:
        redirected(request(), reply(302, location))
    assert refused.value.code == "UPSTREAM_STATUS"
    assert refused.value.upstream_status == 302
    assert "api.test" not in refused.value.message
    assert refused.value.__cause__ is None
