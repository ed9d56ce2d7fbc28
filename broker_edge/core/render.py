"""A plan to the request that is sent: runs only on the way upstream, the one place where values meet templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from broker_edge import __version__
from broker_edge.core.exchange import Outbound
from broker_edge.core.holes import Scope, Template, scalar_text
from broker_edge.core.plan import Plan
from broker_edge.core.source import RequestTemplate

_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_DEFAULT_HEADERS: Final = (
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("accept", "*/*"),
    ("user-agent", f"broker-edge/{__version__}"),
)


def render(plan: Plan) -> Outbound:
    """Fill every hole. Raises `CallerError` INVALID_VALUE naming the variable and the member it can't stand in."""
    request, scope = plan.source.request, Scope(plan.params, plan.env)
    headers = _headers(request, scope)
    names = {name.lower() for name, _ in headers}
    content = None
    if request.body is not None:
        content, content_type = request.body.render(scope)
        if content is not None and "content-type" not in names:
            headers.append(("content-type", content_type))
    headers += [default for default in _DEFAULT_HEADERS if default[0] not in names]
    # What a hole filled may be a secret, in whatever header it stands.
    filled = frozenset([name.lower() for name, template in request.headers if template.holes])
    url = request.url.render(scope, _pairs(request, scope))
    return Outbound(request.method, url, tuple(headers), content, bound_headers=filled)


def _headers(request: RequestTemplate, scope: Scope) -> list[tuple[str, str]]:
    return [(name, text) for name, template in request.headers if (text := _header(template, scope)) is not None]


def _header(template: Template, scope: Scope) -> str | None:
    if template.text is not None:
        return template.text.strip(" \t")
    if template.hole is not None and template.hole.value(scope) is None:
        return None
    text = template.fill(scope)
    # Only visible ASCII: the engines send everything else each in its own way, and a line end would start a header.
    if not _FIELD_VALUE.fullmatch(text):
        guilty = next(hole for hole in template.holes if not _FIELD_VALUE.fullmatch(hole.text(scope)))
        guilty.refuse("a header value must be visible ASCII, spaces and tabs")
    return text.strip(" \t")


def _pairs(request: RequestTemplate, scope: Scope) -> list[tuple[str, str]]:
    return [(name, text) for name, template in request.params for text in _texts(template, scope)]


def _texts(template: Template, scope: Scope) -> Sequence[str]:
    """The texts of one query parameter: null is none; an array that fills the whole template repeats the parameter."""
    hole = template.hole
    if hole is None:
        return (template.fill(scope),)
    value = hole.value(scope)
    return [scalar_text(hole, item) for item in (value if isinstance(value, list) else [value]) if item is not None]
