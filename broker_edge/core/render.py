"""A plan to the request that is sent: runs only on the way upstream, the one place where values meet templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    headers = dict(_headers(request, scope))
    names = {name.lower() for name in headers}
    content = None
    if request.body is not None:
        content, content_type = request.body.render(scope)
        if content is not None and "content-type" not in names:
            headers["content-type"] = content_type
    defaults = ((name, value) for name, value in _DEFAULT_HEADERS if name not in names)
    url = request.url.render(scope, list(_pairs(request, scope)))
    return Outbound(request.method, url, (*headers.items(), *defaults), content)


def _headers(request: RequestTemplate, scope: Scope) -> Iterator[tuple[str, str]]:
    for name, template in request.headers:
        if template.hole is not None and template.hole.value(scope) is None:
            continue
        # Only visible ASCII: the engines send everything else each in its own way, and a line end would start a header.
        for hole in template.holes:
            if not _FIELD_VALUE.fullmatch(hole.text(scope)):
                hole.refuse("a header value must be visible ASCII, spaces and tabs")
        yield name, template.fill(scope).strip(" \t")


def _pairs(request: RequestTemplate, scope: Scope) -> Iterator[tuple[str, str]]:
    for name, template in request.params:
        for text in _texts(template, scope):
            yield name, text


def _texts(template: Template, scope: Scope) -> Iterator[str]:
    """The texts of one query parameter: null is none; an array that fills the whole template repeats the parameter."""
    hole = template.hole
    if hole is None:
        yield template.fill(scope)
        return
    value = hole.value(scope)
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            yield scalar_text(hole, item)
