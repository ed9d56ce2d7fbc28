"""Host names in the one form that every HTTP engine and every URL parser sends unchanged.

The two HTTP engines disagree about hosts: one reads URLs as WHATWG does (127.1 is 127.0.0.1 to it), the other as
RFC 3986 does. What the two would not send alike is either brought into one form here or refused.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from itertools import groupby
from typing import Final
from unicodedata import bidirectional

import idna

_LABEL: Final = re.compile(r"[a-z0-9_-]{1,63}")
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OCTET: Final = r"(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_QUAD: Final = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")


class BadHost(ValueError):
    """The host can't be sent; the message says why and holds nothing of the host."""


def normalise_host(host: str) -> str:
    """A DNS name or dotted quad: lower case, IDNA 2008 over UTS 46, without a trailing dot. Raises `BadHost`."""
    name = _to_ascii(host).lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadHost("must be a valid host name")
    # WHATWG reads every name whose last label is a number as an IPv4 address, octal, hexadecimal and short forms included.
    if _NUMERIC.fullmatch(labels[-1]) and not _QUAD.fullmatch(name):
        raise BadHost("must write an IPv4 address as four decimal numbers")
    if any(label.startswith("xn--") for label in labels):
        _check_punycode(labels)
    return name


def normalise_ipv6(text: str) -> str:
    """An IPv6 literal, brackets left out, as WHATWG and RFC 5952 write it. Raises `BadHost`.

    Python writes mapped addresses in two ways, depending on its version: so they are written here.
    """
    try:
        packed = IPv6Address(text).packed
    except ValueError:
        raise BadHost("must be a valid IPv6 address") from None
    groups = [packed[i] << 8 | packed[i + 1] for i in range(0, 16, 2)]
    runs = [(is_zero, list(run)) for is_zero, run in groupby(range(8), key=lambda i: groups[i] == 0)]
    zeros = max((run for is_zero, run in runs if is_zero and len(run) > 1), key=len, default=[])
    if not zeros:
        return ":".join(f"{group:x}" for group in groups)
    head, tail = groups[: zeros[0]], groups[zeros[-1] + 1 :]
    return "::".join(":".join(f"{group:x}" for group in side) for side in (head, tail))


def _to_ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except ValueError:  # idna's own errors are among them
        raise BadHost("must be a valid internationalised host name") from None


def _check_punycode(labels: list[str]) -> None:
    try:
        names = [idna.ulabel(label) if label.startswith("xn--") else label for label in labels]
        # One label from right to left makes the whole name a bidi name, and every label subject to its rule (RFC 5893 section 2).
        if any(bidirectional(char) in {"R", "AL", "AN"} for name in names for char in name):
            for name in names:
                idna.check_bidi(name, check_ltr=True)
    except ValueError:
        raise BadHost("must be a valid internationalised host name") from None
