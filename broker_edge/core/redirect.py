"""Redirects (RFC 9110 section 15.4): where the next hop goes, and what of the request may go along."""

from __future__ import annotations

from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from broker_edge.core.exchange import Outbound, Reply, TlsOptions
from broker_edge.core.urls import normalise_url, origin_of, without_params
from broker_edge.errors import CallerError, UpstreamError

MAX_HOPS = 5
_KEEPS_METHOD = frozenset({307, 308})
REDIRECTS = _KEEPS_METHOD | {301, 302, 303}
_OF_A_BODY = frozenset({"content-type", "content-encoding", "content-language"})
# Another origin gets nothing that could be a secret: what is left says how we speak, unless it was filled in.
_FOR_ANYONE = frozenset({"accept", "accept-encoding", "accept-language", "user-agent", "content-type"})


def redirected(request: Outbound, reply: Reply) -> Outbound | None:
    """The request of the next hop, or None where `reply` is the answer; raises UpstreamError for one that can't be followed."""
    location = reply.headers.get("location")
    if reply.status not in REDIRECTS or location is None or not request.follows:
        return None
    here = urlsplit(request.url)
    there = _resolved(request.url, location, reply.status)
    if here.scheme == "https" and there.scheme == "http":
        raise _refused("a redirect from https to http is not followed", reply.status)
    method, body = _method_and_body(request, reply.status)
    headers = request.headers if body is not None else _without(request.headers, _OF_A_BODY)
    if origin_of(request.url) == origin_of(there.geturl()):
        return msgspec.structs.replace(request, method=method, url=there.geturl(), headers=headers, body=body, conditions=())
    if body is not None:
        raise _refused("a redirect that would take the body to another origin is not followed", reply.status)
    allowed = _FOR_ANYONE - request.bound_headers
    headers = tuple((name, value) for name, value in headers if name.lower() in allowed)
    # Trust may go along, as it tells nobody anything; who we are may not. An upstream that repeats our query in its Location
    # would send on the key that stands in it.
    url = without_params(there.geturl(), request.bound_params)
    tls = None if request.tls is None or request.tls.ca is None else TlsOptions(ca=request.tls.ca)
    return Outbound(method, url, headers, tls=tls, any_status=request.any_status)


def _resolved(base: str, location: str, status: int) -> SplitResult:
    """Where `location` leads, in the form that every engine sends unchanged: upstreams write what no two of them read alike."""
    try:
        given = urlsplit(location)
        # urljoin takes a URL without a host ("http:///a") for a relative one, which RFC 3986 section 5.2.2 does not.
        if bool(given.scheme) == bool(given.netloc) or location.startswith("//"):
            return urlsplit(normalise_url(urljoin(base, location)))
    except (ValueError, CallerError):
        pass
    raise _refused("a redirect to something that is not an http(s) URL is not followed", status)


def _method_and_body(request: Outbound, status: int) -> tuple[str, bytes | None]:
    if status in _KEEPS_METHOD or request.method in ("GET", "HEAD"):
        return request.method, request.body
    if status == 303 or request.method == "POST":
        return "GET", None
    return request.method, request.body


def _without(headers: tuple[tuple[str, str], ...], names: frozenset[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in headers if name.lower() not in names)


def _refused(message: str, status: int) -> UpstreamError:
    return UpstreamError("UPSTREAM_STATUS", message, upstream_status=status)
