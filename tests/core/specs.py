"""Specs as callers send them, for the tests of the path from spec to request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker_edge.core.exchange import Outbound
from broker_edge.core.plan import make_plan
from broker_edge.core.render import render
from broker_edge.core.source import DataSource, parse_source
from broker_edge.errors import CallerError

SOURCE_ID = "550e8400-e29b-41d4-a716-446655440000"


def spec(*, caching: Any = None, **source: Any) -> dict[str, Any]:
    return {
        "data_source_id": SOURCE_ID,
        "name": "bureau",
        "source": {"url": "https://api.example.com/score"} | source,
        "caching": caching,
    }


def source_of(*, caching: Any = None, **source: Any) -> DataSource:
    return parse_source(json.dumps(spec(caching=caching, **source)).encode())


def sent(params: dict[str, Any] | None = None, env: dict[str, Any] | None = None, /, **source: Any) -> Outbound:
    return render(make_plan(source_of(**source), params or {}, env or {}))


def refused_spec(code: str = "INVALID_DATA_SOURCE", /, *, caching: Any = None, **source: Any) -> str:
    """The message that a spec is refused with."""
    with pytest.raises(CallerError) as caught:
        source_of(caching=caching, **source)
    assert caught.value.code == code
    return caught.value.message


def refused_value(value: Any, env: dict[str, Any] | None = None, /, **source: Any) -> str:
    """The message that a configured parameter `x` is refused with when the request is rendered."""
    plan = make_plan(source_of(**source), {"x": value}, env or {})
    with pytest.raises(CallerError) as caught:
        render(plan)
    assert caught.value.code == "INVALID_VALUE"
    return caught.value.message
