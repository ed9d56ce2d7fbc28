"""The table of addresses that are not part of the public Internet: pure data for `guard.addresses`.

Explicit, because `ipaddress.is_global` calls several of them global and changes between Python versions. Sources: the IANA
IPv4 and IPv6 special-purpose address registries (RFC 6890), the cloud vendors' metadata addresses, RFC 4291 section 2.5.4.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DENIED: Final[tuple[tuple[str, str], ...]] = (
    ("0.0.0.0/8", "this network (RFC 791); the kernel takes it for loopback"),
    ("10.0.0.0/8", "private (RFC 1918)"),
    ("100.64.0.0/10", "carrier-grade NAT (RFC 6598); 100.100.100.200 is Alibaba's metadata"),
    ("127.0.0.0/8", "loopback (RFC 1122)"),
    ("168.63.129.16/32", "Azure's wire server"),
    ("169.254.0.0/16", "link-local (RFC 3927); 169.254.169.254 is most clouds' metadata"),
    ("172.16.0.0/12", "private (RFC 1918)"),
    ("192.0.0.0/24", "IETF protocol assignments (RFC 6890); 192.0.0.192 is Oracle's metadata"),
    ("192.0.2.0/24", "documentation (RFC 5737)"),
    ("192.88.99.0/24", "6to4 relay anycast (RFC 7526)"),
    ("192.168.0.0/16", "private (RFC 1918)"),
    ("198.18.0.0/15", "benchmarking (RFC 2544)"),
    ("198.51.100.0/24", "documentation (RFC 5737)"),
    ("203.0.113.0/24", "documentation (RFC 5737)"),
    ("224.0.0.0/4", "multicast (RFC 5771)"),
    ("240.0.0.0/4", "reserved and limited broadcast (RFC 1112, RFC 919)"),
    # Only 2000::/3 is global unicast (RFC 4291): the next three are all the rest. They hold ::, ::1, IPv4-compatible ::/96,
    # IPv4-mapped ::ffff:0:0/96, NAT64 64:ff9b::/96 and 64:ff9b:1::/48, discard 100::/64, segment routing 5f00::/16, unique local
    # fc00::/7 (fd00:ec2::254 is Amazon's metadata), link-local fe80::/10, site-local fec0::/10 and multicast ff00::/8.
    ("::/3", "not global unicast (RFC 4291)"),
    ("4000::/2", "not global unicast (RFC 4291)"),
    ("8000::/1", "not global unicast (RFC 4291)"),
    ("2001::/23", "IETF protocol assignments with Teredo (RFC 2928, RFC 4380)"),
    ("2001:db8::/32", "documentation (RFC 3849)"),
    ("2002::/16", "6to4: an IPv4 address inside (RFC 3056)"),
    ("3fff::/20", "documentation (RFC 9637)"),
)

_SPANS: Final[dict[int, tuple[tuple[int, int], ...]]] = {
    version: tuple(
        (int(network.network_address), int(network.broadcast_address))
        for network in (ip_network(text) for text, _ in DENIED)
        if network.version == version
    )
    for version in (4, 6)
}

_NO_IPV4_INSIDE: Final = (IPv6Address("::"), IPv6Address("::1"))
_LAST_32_BITS: Final = tuple(IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
_TEREDO: Final = IPv6Network("2001::/32")
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")


def is_public(address: Address) -> bool:
    """Whether no row of the table holds the address."""
    number = int(address)
    return not any(first <= number <= last for first, last in _SPANS[address.version])


def embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one carries: mapped, compatible, NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380)."""
    if isinstance(address, IPv4Address) or address in _NO_IPV4_INSIDE:
        return None
    if any(address in network for network in _LAST_32_BITS):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _TEREDO:
        return IPv4Address(~int(address) & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None
