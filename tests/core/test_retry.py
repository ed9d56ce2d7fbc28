"""What may be sent again: never what may have been processed, where that could cost or change anything."""

from __future__ import annotations

from uuid import UUID

import pytest

from broker_edge.core.exchange import Outbound
from broker_edge.core.retry import keyed, may_retry
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


# Calls that cost money

BILLABLE = RetryPolicy(status_forcelist=POLICY.status_forcelist, billable=True)
KEYED = RetryPolicy(status_forcelist=POLICY.status_forcelist, billable=True, keyed=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("code", UPSTREAM)
def test_a_billable_call_is_made_again_only_where_nothing_was_sent(method: str, code: str) -> None:
    unsent = may_retry(method, UpstreamError(code, "no", sent=False), BILLABLE)
    assert unsent is (code in {"CONNECT_ERROR", "DNS_ERROR", "TIMEOUT"})
    assert not may_retry(method, UpstreamError(code, "no", sent=True), BILLABLE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", [429, 500, 503, 404])
def test_a_listed_status_is_no_reason_to_pay_again(method: str, status: int) -> None:
    assert not may_retry(method, UpstreamError("UPSTREAM_STATUS", "no", upstream_status=status), BILLABLE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("billable", [True, False])
def test_a_key_that_the_upstream_honours_makes_every_method_idempotent(method: str, billable: bool) -> None:
    policy = KEYED if billable else RetryPolicy(status_forcelist=POLICY.status_forcelist, keyed=True)
    for code in UPSTREAM:
        assert may_retry(method, UpstreamError(code, "no"), policy) is (
            code in {"CONNECT_ERROR", "UPSTREAM_INCOMPLETE", "TIMEOUT"}
        )
    for status, again in ((500, True), (404, False)):
        assert may_retry(method, UpstreamError("UPSTREAM_STATUS", "no", upstream_status=status), policy) is again


def test_the_key_is_added_once_and_the_spec_s_own_goes_first() -> None:
    request = Outbound("POST", "http://bureau.test/", (("accept", "*/*"),), b"{}")
    key = UUID(int=7)
    assert keyed(request, None, lambda: key) is request
    assert keyed(request, "X-Key", lambda: key).headers == (("accept", "*/*"), ("X-Key", str(key)))
    own = Outbound("POST", "http://bureau.test/", (("x-key", "order 7"),), b"{}")
    assert keyed(own, "X-Key", lambda: key) is own
