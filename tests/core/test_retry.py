"""What may be sent again: never what may have been processed, where that could cost or change anything."""

from __future__ import annotations

import pytest

from broker_edge.core.retry import may_retry
from broker_edge.core.source import METHODS, RetryPolicy
from broker_edge.errors import CODES, UpstreamError

POLICY = RetryPolicy(status_forcelist=frozenset({429, 500, 503}))
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}
UPSTREAM = [code for code, kind in CODES.items() if kind.source == "upstream" and code != "UPSTREAM_STATUS"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("status", "again"), [(429, True), (500, True), (503, True), (404, False), (502, False), (301, False)])
def test_a_listed_status_is_tried_again_by_every_method(method: str, status: int, again: bool) -> None:
    assert may_retry(method, UpstreamError("UPSTREAM_STATUS", "no", upstream_status=status), POLICY) is again


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("code", UPSTREAM)
def test_what_was_never_sent_is_tried_again_by_every_method(method: str, code: str) -> None:
    again = code in {"CONNECT_ERROR", "DNS_ERROR", "TIMEOUT"}
    assert may_retry(method, UpstreamError(code, "no", sent=False), POLICY) is again


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("code", UPSTREAM)
def test_what_may_have_been_processed_is_tried_again_by_idempotent_methods_alone(method: str, code: str) -> None:
    again = method in IDEMPOTENT and code in {"CONNECT_ERROR", "UPSTREAM_INCOMPLETE", "TIMEOUT"}
    assert may_retry(method, UpstreamError(code, "no", sent=True), POLICY) is again


def test_an_empty_list_tries_no_status_again() -> None:
    policy = RetryPolicy(status_forcelist=frozenset())
    assert not may_retry("GET", UpstreamError("UPSTREAM_STATUS", "no", upstream_status=500), policy)
