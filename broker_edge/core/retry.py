"""May a failed call be sent again? Bureau calls cost money, so what may have been processed is rarely repeated."""

from __future__ import annotations

from typing import Protocol

from broker_edge.errors import UpstreamError

# RFC 9110 section 9.2.2: the methods that a client may repeat by itself.
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_BEFORE_SENDING = frozenset({"CONNECT_ERROR", "DNS_ERROR", "TIMEOUT"})
_AFTER_SENDING = frozenset({"CONNECT_ERROR", "UPSTREAM_INCOMPLETE", "TIMEOUT"})


class Listed(Protocol):
    @property
    def status_forcelist(self) -> frozenset[int]: ...


def may_retry(method: str, error: UpstreamError, policy: Listed) -> bool:
    """Listed statuses for every method; broken connections and time-outs where nothing was sent or the method is idempotent."""
    if error.code == "UPSTREAM_STATUS":
        return error.upstream_status in policy.status_forcelist
    if not error.sent:
        return error.code in _BEFORE_SENDING
    return method in _IDEMPOTENT and error.code in _AFTER_SENDING
