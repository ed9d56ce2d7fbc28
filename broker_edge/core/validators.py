"""Conditional revalidation: what an answer can be asked for again by, and how (RFC 9110 sections 8.8 and 13.1).

A refill that meets a stale object asks with its validators; a 304 says that the object is still the answer (RFC 9111, 4.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from broker_edge.core.exchange import DataObject
from broker_edge.core.source import RequestTemplate

# RFC 9110 section 8.8.3, but for octets over 127: engines don't agree how to send them back. Longer ones are nobody's.
_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,1000}"')
_DATE: Final = re.compile(r"[A-Za-z0-9 ,:+-]{1,64}")
_REPEATABLE: Final = ("GET", "HEAD")
# A spec that makes its requests conditional, or partial, means what it says.
_OWN: Final = frozenset({"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"})

Conditions = tuple[tuple[str, str], ...]


def etag_of(headers: Mapping[str, str]) -> str | None:
    """The entity tag of an answer, or None where there is none that could be sent back."""
    tag = headers.get("etag", "").strip(" \t")
    return tag if _ETAG.fullmatch(tag) else None


def last_modified_of(headers: Mapping[str, str]) -> str | None:
    """Last-Modified as the upstream wrote it, which is how it is sent back, or None where it is no date."""
    text = headers.get("last-modified", "").strip(" \t")
    if not _DATE.fullmatch(text):
        return None
    try:
        parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return text


def conditions_of(item: DataObject, request: RequestTemplate) -> Conditions:
    """The headers that ask whether `item` is the answer still; none where it can't be asked.

    Both, where there are both: who knows entity tags ignores the date (RFC 9110 section 13.1.3).
    """
    if request.method not in _REPEATABLE or any(name.lower() in _OWN for name, _ in request.headers):
        return ()
    given = (("If-None-Match", item.etag), ("If-Modified-Since", item.last_modified))
    return tuple((name, value) for name, value in given if value is not None)


def confirms(item: DataObject, headers: Mapping[str, str]) -> bool:
    """Whether a 304 with these headers speaks of `item`: one that names another entity tag does not (RFC 9111 section 4.3.4)."""
    named = etag_of(headers)
    return named is None or item.etag is None or named.removeprefix("W/") == item.etag.removeprefix("W/")
