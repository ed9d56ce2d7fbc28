"""May a failed call be sent again? Bureau calls cost money, so what may have been processed is rarely repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec

from broker_edge.core.exchange import Outbound
from broker_edge.errors import UpstreamError

# RFC 9110 section 9.2.2: the methods that a client may repeat by itself.
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_BEFORE_SENDING = frozenset({"CONNECT_ERROR", "DNS_ERROR", "TIMEOUT"})
_AFTER_SENDING = frozenset({"CONNECT_ERROR", "UPSTREAM_INCOMPLETE", "TIMEOUT"})


class Listed(Protocol):
    @property
    def status_forcelist(self) -> frozenset[int]: ...

    @property
    def billable(self) -> bool: ...

    @property
    def keyed(self) -> bool: ...


def may_retry(method: str, error: UpstreamError, policy: Listed) -> bool:
    """Listed statuses for every method; broken connections and time-outs where nothing was sent or the method is idempotent.

    A key that the upstream honours makes any method idempotent. Without one a billable call that was sent is not sent again,
    whatever came of it and whatever the method: idempotent means that nothing changes twice, not that it is billed once.
    """
    if not error.sent:
        return error.code in _BEFORE_SENDING
    if policy.billable and not policy.keyed:
        return False
    if error.code == "UPSTREAM_STATUS":
        return error.upstream_status in policy.status_forcelist
    return (policy.keyed or method in _IDEMPOTENT) and error.code in _AFTER_SENDING


def keyed(request: Outbound, header: str | None, new_key: Callable[[], UUID]) -> Outbound:
    """The request with the key by which its upstream knows it again, for all attempts of a fetch; the spec's own goes first."""
    if header is None or any(name.lower() == header.lower() for name, _ in request.headers):
        return request
    return msgspec.structs.replace(request, headers=(*request.headers, (header, str(new_key()))))
