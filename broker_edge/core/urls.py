"""URL templates: compiled per spec into scheme, host, port, segments and query, rendered into bytes no engine touches.

The structure of a URL is that of its template. A value is percent-encoded whole and can neither add nor remove a
segment, a parameter or a part of the authority.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_plus, urlsplit

from broker_edge.core.holes import Hole, Scope, Template
from broker_edge.core.hosts import BadHost, normalise_host, normalise_ipv6
from broker_edge.core.template import invalid, parse_template
from broker_edge.errors import CallerError

URL_LIMIT: Final = 65_536
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# Stands for a hole while the text is split; control characters are refused in the text itself.
_MARK: Final = "\x00"
_SCHEME: Final = re.compile(r"(https?)://", re.IGNORECASE | re.ASCII)
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\\]")
_HOST_TEXT: Final = re.compile(r"(?:[A-Za-z0-9._-]|[^\x00-\x7f])*")
_IPV6: Final = re.compile(r"\[([0-9A-Fa-f:.]*)\](?::(.*))?")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]*")  # RFC 3986 section 2.3
_LABEL: Final = re.compile(r"[A-Za-z0-9-]{1,63}")
_PORT: Final = re.compile(r"[0-9]{1,16}")
# pchar of RFC 3986 section 3.3, and query without the apostrophe, which WHATWG encodes in the query of http URLs.
_IN_SEGMENT: Final = "A-Za-z0-9._~!$&'()*+,;=:@-"
_IN_QUERY: Final = "A-Za-z0-9._~!$&()*+,;=:@/?-"
_ENCODED_IN_SEGMENT: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^%{_IN_SEGMENT}]")
_ENCODED_IN_QUERY: Final = re.compile(rf"%(?![0-9A-Fa-f]{{2}})|[^%{_IN_QUERY}]")


class Origin(NamedTuple):
    """Where a URL leads (RFC 6454 section 4); `host` without the brackets of an IPv6 literal."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UrlTemplate:
    """A compiled URL; literal parts are already percent-encoded, dot segments resolved, the fragment gone."""

    member: str
    scheme: str
    host: Template
    port: Template
    segments: tuple[Template, ...]
    query: Template

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(hole for part in (self.host, self.port, *self.segments, self.query) for hole in part.holes)

    def render(self, scope: Scope, pairs: Sequence[tuple[str, str]] = ()) -> str:
        """The absolute URL in pure ASCII, `pairs` appended to its query. Raises `CallerError` INVALID_VALUE."""
        path = "".join(["/" + _segment(segment, scope) for segment in self.segments])
        query = self.query.fill(scope, encode_value)
        extra = "&".join([f"{encode_value(name)}={encode_value(value)}" for name, value in pairs])
        joint = "&" if query and extra and not query.endswith("&") else ""
        target = f"{path}?{query}{joint}{extra}" if query or extra else path
        url = f"{self.scheme}://{_host(self.host, scope)}{_port(self.port, self.scheme, scope)}{target}"
        if len(url) > URL_LIMIT:
            raise CallerError("INVALID_VALUE", f"{self.member} is over {URL_LIMIT} characters long once filled")
        return url


def compile_url(text: str, member: str) -> UrlTemplate:
    """Compile a URL template. Raises `CallerError` INVALID_DATA_SOURCE or TEMPLATE_REJECTED, naming `member`."""
    return _compile(parse_template(text, member), member)


def normalise_url(url: str) -> str:
    """An absolute URL that is no template in the form in which `render` gives them. Raises `CallerError`."""
    return _compile(Template((url,)), "url").render(Scope({}, {}))


def origin_of(url: str) -> Origin:
    """The origin of a URL in the form in which `render` gives them: the path begins at the first slash behind the scheme's."""
    end = url.find("/", 8)
    return _origin(url if end < 0 else url[:end])


@lru_cache(1024)
def _origin(url: str) -> Origin:
    parts = urlsplit(url)
    return Origin(parts.scheme, parts.hostname or "", parts.port or int(_DEFAULT_PORTS[parts.scheme]))


def encode_value(text: str) -> str:
    """Percent-encode everything but RFC 3986's unreserved characters, as UTF-8."""
    return text if _UNRESERVED.fullmatch(text) else quote(text, safe="")


def with_param(url: str, name: str, value: str) -> str:
    """A rendered URL whose query has the parameter once, in place of any of that name."""
    url = without_params(url, frozenset({name}))
    joint = "?" if "?" not in url else "&"
    return f"{url}{joint}{encode_value(name)}={encode_value(value)}"


def without_params(url: str, names: frozenset[str]) -> str:
    """A URL without the query parameters of these names, however they are encoded; the rest stays byte by byte."""
    path, mark, query = url.partition("?")
    if not names or not mark:
        return url
    kept = [pair for pair in query.split("&") if unquote_plus(pair.partition("=")[0]) not in names]
    return f"{path}?{'&'.join(kept)}" if any(kept) else path


def _compile(template: Template, member: str) -> UrlTemplate:
    if any(_FORBIDDEN.search(literal) for literal in template.literals):
        raise invalid(member, "must not hold spaces, control characters or backslashes")
    marked = "".join(part if isinstance(part, str) else _MARK for part in template.parts)
    scheme = _SCHEME.match(marked)
    if scheme is None:
        raise invalid(member, "must start with http:// or https://")
    holes = iter(template.holes)
    before_query, _, query = marked[scheme.end() :].partition("#")[0].partition("?")
    authority, _, path = before_query.partition("/")
    host, port = _authority(authority, scheme[1].lower(), holes, member)
    segments = [_unmark(segment, holes, _ENCODED_IN_SEGMENT) for segment in path.split("/")]
    query_template = _unmark(query, holes, _ENCODED_IN_QUERY)
    return UrlTemplate(member, scheme[1].lower(), host, port, tuple(_without_dots(segments)), query_template)


def _authority(text: str, scheme: str, holes: Iterator[Hole], member: str) -> tuple[Template, Template]:
    if "@" in text:
        raise invalid(member, "must not hold a user name or password")
    ipv6 = _IPV6.fullmatch(text)
    host, _, port = (f"[{ipv6[1]}]", ":", ipv6[2] or "") if ipv6 else text.partition(":")
    if not host:
        raise invalid(member, "must name a host")
    return _compile_host(host, holes, member), _compile_port(port, scheme, holes, member)


def _compile_host(text: str, holes: Iterator[Hole], member: str) -> Template:
    try:
        if text.startswith("["):
            return Template((f"[{normalise_ipv6(text[1:-1])}]",))
        if _MARK not in text:
            return Template((normalise_host(text),))
    except BadHost as why:
        raise invalid(member, str(why)) from None
    template = _unmark(text, holes, None)
    if not all(_HOST_TEXT.fullmatch(literal) for literal in template.literals):
        raise invalid(member, "must be a valid host name")
    return template


def _compile_port(text: str, scheme: str, holes: Iterator[Hole], member: str) -> Template:
    template = _unmark(text, holes, None)
    if not all(_PORT.fullmatch(literal) for literal in template.literals):
        raise invalid(member, "must have a port of 1 to 65535")
    if template.holes or not text:
        return template
    if not 1 <= int(text) <= 65_535:
        raise invalid(member, "must have a port of 1 to 65535")
    port = str(int(text))
    return Template(() if port == _DEFAULT_PORTS[scheme] else (port,))


def _unmark(text: str, holes: Iterator[Hole], encoded: re.Pattern[str] | None) -> Template:
    """The text between delimiters with its holes back, which come in order; literals percent-encoded where `encoded` says."""
    parts: list[str | Hole] = []
    for index, literal in enumerate(text.split(_MARK)):
        if index:
            parts.append(next(holes))
        if literal:
            parts.append(literal if encoded is None else encoded.sub(lambda found: quote(found[0], safe=""), literal))
    return Template(tuple(parts))


def _without_dots(segments: Sequence[Template]) -> list[Template]:
    """RFC 3986 section 5.2.4 over whole segments; %2e counts as a dot, as in WHATWG's parser."""
    kept: list[Template] = []
    for segment in segments:
        text = _dots("".join(segment.literals)) if not segment.holes else ""
        if text == "..":
            del kept[-1:]
        elif text != ".":
            kept.append(segment)
    if not segments[-1].holes and _dots("".join(segments[-1].literals)) in {".", ".."}:
        kept.append(Template(()))
    return kept


def _dots(text: str) -> str:
    return text.replace("%2e", ".").replace("%2E", ".")


def _segment(segment: Template, scope: Scope) -> str:
    if segment.text is not None:
        return segment.text
    text = segment.fill(scope, encode_value)
    if _dots(text) in {"", ".", ".."}:
        segment.holes[0].refuse("it would change which path is meant")
    return text


def _host(template: Template, scope: Scope) -> str:
    """A parameter fills one DNS label, so that it can't move the request to another domain; the operator's may hold dots."""
    if template.text is not None:
        return template.text
    for hole in template.holes:
        if hole.has_param(scope) and not _LABEL.fullmatch(hole.text(scope)):
            hole.refuse("in a host name it must be one label of letters, digits and hyphens")
    try:
        return normalise_host(template.fill(scope))
    except BadHost as why:
        template.holes[0].refuse(f"the host {why}")


def _port(template: Template, scheme: str, scope: Scope) -> str:
    if template.text is not None:  # compiled: never the default port
        return template.text and f":{template.text}"
    text = template.fill(scope)
    if not (_PORT.fullmatch(text) and 1 <= int(text) <= 65_535):
        template.holes[0].refuse("a port must be 1 to 65535")
    port = str(int(text))
    return "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
