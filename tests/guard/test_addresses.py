"""Which addresses may be dialled: edges of every range, spellings, embedded addresses, the operator's exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_edge.core.exchange import TlsOptions
from broker_edge.errors import TargetDenied, UpstreamError
from broker_edge.guard.addresses import AddressGuard, parse_allowed
from broker_edge.guard.ranges import DENIED, embedded, is_public

PUBLIC = """
1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17
169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0 192.88.98.255 192.88.100.0
192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
2000:: 2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:200:: 2001:4860:4860::8888 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9::
2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2003:: 2606:4700::1111 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000::
3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""".split()  # noqa: SIM905 (a table reads better without quotes)

PRIVATE = """
0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255 127.0.0.0 127.0.0.1 127.255.255.255
168.63.129.16 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.192 192.0.0.255 192.0.2.0
192.0.2.255 192.88.99.0 192.88.99.255 192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255
203.0.113.0 203.0.113.255 224.0.0.0 239.255.255.255 240.0.0.0 255.255.255.254 255.255.255.255
:: ::1 ::2 ::7f00:1 ::808:808 ::ffff:0:0 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::ffff:255.255.255.255 64:ff9b:: 64:ff9b::8.8.8.8
64:ff9b::a9fe:a9fe 64:ff9b:1:: 64:ff9b:1:ffff:ffff:ffff:ffff:ffff 100:: 100::ffff:ffff:ffff:ffff
1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2001:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff
2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 2002:: 2002:7f00:1:: 2002:808:808::1 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff
3fff:: 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff 4000:: 5f00:: 5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff fc00:: fd00:ec2::254
fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80:: fe80::1 febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff fec0:: fec0::1 ff00:: ff02::1
ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""".split()  # noqa: SIM905 (a table reads better without quotes)


class Answers:
    """A resolver that gives one list of answers after the other, then the last for ever."""

    def __init__(self, *rounds: Sequence[str]) -> None:
        self._rounds = list(rounds)
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]


async def verdict(allowed: str, host: str, port: int, *answers: str) -> bool:
    try:
        targets = await AddressGuard(Answers(answers), allowed).targets("http", host, port)
    except TargetDenied:
        return False
    assert [target.address for target in targets] == [str(ip_address(answer)) for answer in answers]
    return True


@pytest.mark.parametrize("address", PUBLIC)
async def test_public_addresses_may_be_called(address: str) -> None:
    assert await verdict("", "bureau.test", 443, address)


@pytest.mark.parametrize("address", PRIVATE)
async def test_all_other_addresses_may_not(address: str) -> None:
    assert not await verdict("", "bureau.test", 443, address)


@pytest.mark.parametrize("text", [text for text, _ in DENIED])
def test_every_range_of_the_table_is_denied_from_its_first_to_its_last_address(text: str) -> None:
    network = ip_network(text)
    assert not is_public(network.network_address)
    assert not is_public(network.broadcast_address)


@given(st.ip_addresses(v=6))
def test_only_global_unicast_is_public_in_ipv6(address: IPv6Address) -> None:
    if is_public(address):
        assert int(address) >> 125 == 1
        assert embedded(address) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_found_and_never_public(address: IPv4Address) -> None:
    number = int(address)
    teredo = IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))
    forms = [IPv6Address(prefix << 32 | number) for prefix in (0xFFFF, 0x64FF9B << 64, 0x64FF9B0001 << 48)]
    forms += [teredo, IPv6Address(0x2002 << 112 | number << 80)]
    assert {embedded(form) for form in forms} == {address}
    assert not any(is_public(form) for form in forms)


async def test_the_refusal_says_nothing_of_the_host() -> None:
    with pytest.raises(TargetDenied) as caught:
        await AddressGuard(Answers(["127.0.0.1"])).targets("http", "secret.test", 80)
    assert (caught.value.code, caught.value.message) == ("TARGET_DENIED", "The address of the target may not be called")


async def test_one_private_answer_denies_the_name() -> None:
    assert not await verdict("", "bureau.test", 443, "8.8.8.8", "10.0.0.1")
    assert not await verdict("", "bureau.test", 443, "2606:4700::1111", "::1")
    assert await verdict("", "bureau.test", 443, "8.8.8.8", "2606:4700::1111")


@pytest.mark.parametrize("answers", [(), ("",), ("bureau.test",), ("8.8.8.8%eth0",), ("fe80::1%1",), ("2606::1%1",), ("8.8.8",)])
async def test_an_empty_or_unreadable_answer_denies_the_name(answers: tuple[str, ...]) -> None:
    assert not await verdict("", "bureau.test", 443, *answers)


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_a_port_outside_the_range_is_denied(port: int) -> None:
    assert not await verdict("", "bureau.test", port, "8.8.8.8")


@pytest.mark.parametrize("host", ["", "fe80::1%eth0", "[fe80::1%25eth0]"])
async def test_no_host_and_zones_are_denied_unresolved(host: str) -> None:
    resolver = Answers(["8.8.8.8"])
    with pytest.raises(TargetDenied):
        await AddressGuard(resolver).targets("http", host, 80)
    assert not resolver.asked


async def test_the_target_keeps_name_port_and_tls() -> None:
    tls = TlsOptions(ca=b"pem")
    (target,) = await AddressGuard(Answers(["8.8.8.8"])).targets("https", "Bureau.test", 8443, tls)
    assert (target.scheme, target.host, target.port, target.address, target.tls) == ("https", "Bureau.test", 8443, "8.8.8.8", tls)
    (target,) = await AddressGuard(Answers(["2606:4700:0::1111"])).targets("https", "[2606:4700::1111]", 443)
    assert (target.host, target.address) == ("2606:4700::1111", "2606:4700::1111")


async def test_the_address_dialled_is_the_one_classified() -> None:
    guard = AddressGuard(Answers(["8.8.8.8"], ["127.0.0.1"]))
    (target,) = await guard.targets("http", "rebind.test", 80)
    assert target.address == "8.8.8.8"
    with pytest.raises(TargetDenied):
        await guard.targets("http", "rebind.test", 80)


async def test_a_verdict_holds_for_its_answers_alone() -> None:
    rounds = (["8.8.8.8"], ["8.8.8.8"], ["8.8.8.8", "1.1.1.1"], ["8.8.8.8", "127.0.0.1"], ["8.8.8.8"])
    guard = AddressGuard(Answers(*rounds))
    first = await guard.targets("http", "bureau.test", 80)
    assert await guard.targets("http", "bureau.test", 80) is first
    assert len(await guard.targets("http", "bureau.test", 80)) == 2
    with pytest.raises(TargetDenied):
        await guard.targets("http", "bureau.test", 80)
    assert await guard.targets("http", "bureau.test", 80) == first


async def test_a_verdict_holds_for_its_port_scheme_and_trust_alone() -> None:
    guard = AddressGuard(Answers(["10.0.0.1"]), "bureau.test:80")
    tls = TlsOptions(ca=b"pem")
    (plain,) = await guard.targets("http", "bureau.test", 80)
    (secure,) = await guard.targets("https", "bureau.test", 80, tls)
    assert (plain.scheme, secure.scheme, secure.tls) == ("http", "https", tls)
    for _ in range(2):
        with pytest.raises(TargetDenied):
            await guard.targets("http", "bureau.test", 81)


async def test_an_answer_changed_in_place_is_judged_again() -> None:
    answer = ["8.8.8.8"]
    guard = AddressGuard(Answers(answer))
    await guard.targets("http", "bureau.test", 80)
    answer[0] = "127.0.0.1"
    with pytest.raises(TargetDenied):
        await guard.targets("http", "bureau.test", 80)


async def test_the_verdicts_that_are_kept_are_bounded() -> None:
    guard = AddressGuard(Answers(["8.8.8.8"]), max_verdicts=2)
    first = await guard.targets("http", "0.test", 80)
    for number in (1, 2):
        await guard.targets("http", f"{number}.test", 80)
    again = await guard.targets("http", "0.test", 80)
    assert again == first
    assert again is not first


async def test_a_name_without_an_answer_stays_a_dns_error() -> None:
    class Failing:
        async def resolve(self, host: str, port: int) -> Sequence[str]:
            raise UpstreamError("DNS_ERROR", "no", sent=False)

    with pytest.raises(UpstreamError):
        await AddressGuard(Failing()).targets("http", "none.test", 80)


@pytest.mark.parametrize(
    ("allowed", "host", "port", "answer", "admitted"),
    [
        ("bureau.test", "bureau.test", 1, "127.0.0.1", True),
        ("bureau.test", "BUREAU.test.", 1, "127.0.0.1", True),
        ("Bureau.Test.:80", "bureau.test", 80, "10.0.0.1", True),
        ("bureau.test:80", "bureau.test", 81, "10.0.0.1", False),
        ("bureau.test", "evil.bureau.test", 80, "10.0.0.1", False),
        ("bureau.test", "bureau.test", 80, "fe80::1%1", False),
        ("localhost:9", "localhost", 9, "::1", True),
        ("127.0.0.1", "any.test", 5, "127.0.0.1", True),
        ("127.0.0.1", "any.test", 5, "127.0.0.2", False),
        ("127.0.0.1:5", "any.test", 5, "127.0.0.1", True),
        ("127.0.0.1:5", "any.test", 6, "127.0.0.1", False),
        ("127.0.0.1:5", "2130706433", 5, "127.0.0.1", True),
        ("::1", "any.test", 5, "::1", True),
        ("[::1]:5", "any.test", 5, "::1", True),
        ("[::1]:5", "any.test", 6, "::1", False),
        ("[::1]", "any.test", 6, "::1", True),
        ("10.0.0.0/8", "any.test", 6, "10.255.255.255", True),
        ("10.0.0.0/8", "any.test", 6, "11.0.0.0", True),
        ("10.0.0.0/8", "any.test", 6, "172.16.0.1", False),
        ("10.0.0.0/8", "any.test", 6, "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "any.test", 6, "::ffff:127.0.0.1", False),
        ("::ffff:127.0.0.1", "any.test", 6, "::ffff:127.0.0.1", True),
        ("64:ff9b::/96", "any.test", 6, "64:ff9b::8.8.8.8", True),
        ("64:ff9b::/96", "any.test", 6, "64:ff9b::169.254.169.254", False),
        ("fd00::/8, 10.0.0.0/8", "any.test", 6, "fd00::1", True),
        ("", "any.test", 6, "127.0.0.1", False),
    ],
)
async def test_the_operator_lets_private_targets_through(allowed: str, host: str, port: int, answer: str, admitted: bool) -> None:
    try:
        await AddressGuard(Answers([answer]), allowed).targets("http", host, port)
        result = True
    except TargetDenied:
        result = False
    assert result is admitted


def carriers(inner: str) -> dict[str, IPv6Address]:
    """Every IPv6 address that carries the IPv4 one, by the name of the way."""
    number = int(IPv4Address(inner))
    return {
        "mapped": IPv6Address(0xFFFF << 32 | number),
        "compatible": IPv6Address(number),
        "nat64": IPv6Address(0x64FF9B << 96 | number),
        "local nat64": IPv6Address(0x64FF9B0001 << 80 | number),
        "6to4": IPv6Address(0x2002 << 112 | number << 80 | 1),
        "teredo": IPv6Address(0x20010000 << 96 | (number ^ 0xFFFFFFFF)),
    }


@pytest.mark.parametrize("way", carriers("10.0.0.1"))
@pytest.mark.parametrize("allowed", ["10.0.0.1", "10.0.0.1:80", "10.0.0.0/8", "0.0.0.0/0"])
async def test_an_allowed_ipv4_address_lets_through_its_mapped_form_alone(allowed: str, way: str) -> None:
    answer = carriers("10.0.0.1")[way]
    assert embedded(answer) == IPv4Address("10.0.0.1")
    assert await verdict(allowed, "any.test", 80, str(answer)) is (way == "mapped")


@pytest.mark.parametrize("way", carriers("10.0.0.1"))
async def test_a_mapped_form_keeps_the_port_and_a_carrier_may_be_allowed_by_itself(way: str) -> None:
    answer = str(carriers("10.0.0.1")[way])
    assert not await verdict("10.0.0.1:80", "any.test", 81, answer)
    assert await verdict(answer, "any.test", 81, answer)


async def test_an_allowed_address_lets_no_other_answer_of_its_name_through() -> None:
    assert not await verdict("10.0.0.1", "any.test", 80, "10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize(
    "entry",
    [
        "a b:c",
        "host:0",
        "host:65536",
        "host:",
        ":80",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0.0/8:80",
        "http://host",
        "ho st!",
        "*.test",
        "2130706433",
        "127.1",
        "fe80::1%eth0",
        "[::1",
        "::1]:5",
        "-",
        "host/8",
        "host:99999999999",
    ],
)
def test_an_entry_that_says_nothing_is_named(entry: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_allowed([entry])
    assert entry in str(caught.value)


def test_entries_come_in_one_text_or_as_a_sequence() -> None:
    entries = ["bureau.test:80", "10.0.0.0/8", "[::1]:5", "localhost"]
    assert parse_allowed(", ".join(entries)) == parse_allowed(entries) == parse_allowed("\n ".join(entries) + " ")
    assert parse_allowed("") == parse_allowed(())
