"""The address guard: which address may be dialled. Resolve, classify every answer, hand out targets that dial that very address.

Classification happens after resolving, never on the text: the system's resolver takes 2130706433, 0x7f.1 and 127.1 for
127.0.0.1. Dialling the classified address, and no name, leaves a name no moment to change its answer (DNS rebinding).
Fails closed: one denied, empty or unreadable answer denies the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from broker_edge.core.exchange import Target, TlsOptions
from broker_edge.errors import TargetDenied
from broker_edge.guard.ranges import Address, Network, embedded, is_public
from broker_edge.ports import Resolver

# The host is left out on purpose: a caller's value may have been rendered into it.
_DENIED = "The address of the target may not be called"
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PORT = re.compile(r"[0-9]{1,5}")

_Asked = tuple[str, str, int, TlsOptions | None]


@dataclass(frozen=True, slots=True)
class AllowList:
    """What the operator lets through beside public addresses; a port of None stands for any."""

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    def holds_name(self, host: str, port: int) -> bool:
        return (host, port) in self.names or (host, None) in self.names

    def holds(self, address: Address, port: int) -> bool:
        """Whether an entry covers the address. A range of IPv6 covers no private IPv4 address carried inside one of its own."""
        inner = embedded(address)
        carries_private = inner is not None and not is_public(inner)
        return any(
            address in network and (network.num_addresses == 1 or not carries_private)
            for network, only in self.networks
            if only in (None, port)
        )


def parse_allowed(entries: str | Iterable[str]) -> AllowList:
    """Read `host`, `host:port`, `ip`, `ip:port`, `[v6]:port` and CIDR entries, comma or blank separated if in one text.

    Raises ValueError that names the entry it can't read.
    """
    texts = re.split(r"[,\s]+", entries.strip()) if isinstance(entries, str) else entries
    names: set[tuple[str, int | None]] = set()
    networks: list[tuple[Network, int | None]] = []
    for text in filter(None, texts):
        host, port = _split_port(text)
        network = _network(host)
        if network is not None and (port is None or "/" not in host):
            networks.append((network, port))
        elif _NAME.fullmatch(name := _canonical(host)) and not name.rpartition(".")[2].isdigit():
            names.add((name, port))
        else:
            raise ValueError(f"{text!r} is not a host, host:port, address, address:port, [v6]:port or CIDR")
    return AllowList(frozenset(names), tuple(networks))


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("[") and entry.endswith("]"):
        return entry[1:-1], None
    host, colon, port = entry.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        return entry, None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{entry!r} has no port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _network(text: str) -> Network | None:
    if "%" in text:
        return None
    try:
        return ip_network(text)
    except ValueError:
        return None


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".")


def _parse(answer: str) -> Address:
    """An answer as an address; a zone is denied, as it names an interface of this machine."""
    try:
        address = ip_address(answer)
    except ValueError:
        raise TargetDenied(_DENIED) from None
    if "%" in answer:
        raise TargetDenied(_DENIED)
    return address


class AddressGuard:
    """Turns scheme, host and port into dialable targets, or refuses.

    A verdict is a pure function of the answers, so it is kept beside them and holds for exactly those: other answers of the
    resolver, which it is asked for every time, are classified before they are dialled.
    """

    def __init__(self, resolver: Resolver, allowed: str | Sequence[str] = (), *, max_verdicts: int = 10_000) -> None:
        self._resolver = resolver
        self._allowed = parse_allowed(allowed)
        self._max_verdicts = max_verdicts
        self._admitted: dict[_Asked, tuple[tuple[str, ...], tuple[Target, ...]]] = {}

    async def targets(self, scheme: str, host: str, port: int, tls: TlsOptions | None = None) -> tuple[Target, ...]:
        """One target per answer, in the resolver's order; `host` without a port, IPv6 with or without brackets.

        Raises TargetDenied, and `UpstreamError` DNS_ERROR where there is no answer to judge.
        """
        host = host.removeprefix("[").removesuffix("]")
        if not host or "%" in host or not 1 <= port <= 65535:
            raise TargetDenied(_DENIED)
        answers = tuple(await self._resolver.resolve(host, port))
        asked = (scheme, host, port, tls)
        known = self._admitted.get(asked)
        if known is not None and known[0] == answers:
            return known[1]
        targets = self._judge(asked, answers)
        self._keep(asked, answers, targets)
        return targets

    def _judge(self, asked: _Asked, answers: tuple[str, ...]) -> tuple[Target, ...]:
        scheme, host, port, tls = asked
        addresses = [_parse(answer) for answer in answers]
        if not addresses or not all(self._admits(host, address, port) for address in addresses):
            raise TargetDenied(_DENIED)
        options = tls or TlsOptions()
        return tuple(Target(scheme, host, port, str(address), options) for address in addresses)

    def _keep(self, asked: _Asked, answers: tuple[str, ...], targets: tuple[Target, ...]) -> None:
        self._admitted.pop(asked, None)
        if len(self._admitted) >= self._max_verdicts:
            del self._admitted[next(iter(self._admitted))]
        self._admitted[asked] = answers, targets

    def _admits(self, host: str, address: Address, port: int) -> bool:
        if is_public(address) or self._allowed.holds_name(_canonical(host), port) or self._allowed.holds(address, port):
            return True
        # ::ffff:a.b.c.d is the same host in another spelling. NAT64, 6to4 and the like lead to another one, through a gateway.
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return mapped is not None and self._allowed.holds(mapped, port)
