"""DNS_ASSIGN: the examples of the draft, its rules, and names that must not reach a resolver."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.address import IPAddress
from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, CapsuleType, encode_capsule
from qvpn_core.masque.dns import DNS_PORT, DnsAssign, DnsConfiguration, Nameserver, SvcParamKey

DOHPATH = 7  # RFC 9461 section 5

# draft-ietf-masque-connect-ip-dns-06 section 3.6.1
FULL_TUNNEL = DnsConfiguration(
    (
        Nameserver(
            1,
            authentication_domain="masque.example.org",
            service_parameters=(
                (SvcParamKey.ALPN, b"\x02h2\x02h3"),
                (DOHPATH, b"/dns-query{?dns}"),
            ),
        ),
    ),
    internal_domains=("",),
)
# section 3.6.2
SPLIT_TUNNEL = DnsConfiguration(
    (Nameserver(1, (IPv4Address("192.0.2.33"),), (IPv6Address("2001:db8::1"),)),),
    ("internal.corp.example",),
    ("internal.corp.example", "corp.example"),
)

labels = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?", fullmatch=True)
domains = st.lists(labels, max_size=4).map(".".join)
parameters = st.dictionaries(st.integers(8, 0xFFFF), st.binary(max_size=20), max_size=4).map(
    lambda chosen: tuple(sorted(chosen.items()))
)
nameservers = st.builds(
    Nameserver,
    st.integers(1, 0xFFFF),
    st.lists(st.ip_addresses(v=4), max_size=3).map(tuple),
    st.lists(st.ip_addresses(v=6), min_size=1, max_size=3).map(tuple),
    domains,
    parameters,
)
configurations = st.builds(
    DnsConfiguration,
    st.lists(nameservers, max_size=3).map(tuple),
    st.lists(domains, max_size=3).map(tuple),
    st.lists(domains, max_size=3).map(tuple),
)


def round_trip(assign: DnsAssign) -> DnsAssign:
    [capsule] = CapsuleDecoder().feed(assign.encode())
    assert capsule.type == CapsuleType.DNS_ASSIGN
    return DnsAssign.parse(capsule.value)


def test_the_layout_of_dns_assign() -> None:
    server = "0001 01 c0000221 01 20010db8000000000000000000000001 00 00"
    name = b"\x15internal.corp.example"
    value = bytes.fromhex(f"01 {server} 01") + name + b"\x02" + name + b"\x0ccorp.example"
    assert DnsAssign((SPLIT_TUNNEL,)).encode() == encode_capsule(0x1ACE79EC, value)
    assert DnsAssign.parse(value) == DnsAssign((SPLIT_TUNNEL,))


def test_the_examples_of_the_draft_are_understood() -> None:
    assert round_trip(DnsAssign((FULL_TUNNEL, SPLIT_TUNNEL))).configurations == (
        FULL_TUNNEL,
        SPLIT_TUNNEL,
    )
    [encrypted], [plain] = FULL_TUNNEL.nameservers, SPLIT_TUNNEL.nameservers
    assert not encrypted.unencrypted
    assert plain.unencrypted
    assert plain.port == DNS_PORT
    assert FULL_TUNNEL.answers_everything
    assert not SPLIT_TUNNEL.answers_everything


def test_plain_servers_keep_their_order_by_priority_and_answer_everything() -> None:
    servers: list[IPAddress] = [IPv6Address("2001:db8::53"), IPv4Address("192.0.2.53")]
    [configuration] = round_trip(DnsAssign.plain(servers)).configurations
    ordered = sorted(configuration.nameservers, key=lambda nameserver: nameserver.priority)
    assert [nameserver.addresses for nameserver in ordered] == [(server,) for server in servers]
    assert all(nameserver.unencrypted for nameserver in ordered)
    assert configuration.answers_everything


def test_a_port_and_the_absence_of_plain_dns_are_read_from_the_service_parameters() -> None:
    nameserver = Nameserver(
        ipv4=(IPv4Address("192.0.2.53"),),
        authentication_domain="dns.example",
        service_parameters=(
            (SvcParamKey.ALPN, b"\x03dot"),
            (SvcParamKey.NO_DEFAULT_ALPN, b""),
            (SvcParamKey.PORT, (5353).to_bytes(2, "big")),
        ),
    )
    assert nameserver.port == 5353
    assert not nameserver.unencrypted


def test_an_empty_assignment_takes_everything_back() -> None:
    assert DnsAssign.parse(b"") == DnsAssign(())


ADDRESS = "01 c0000221 00"
MALFORMED = {
    "service priority 0": f"01 0000 {ADDRESS} 00 00 00 00",
    "neither address nor name": "01 0001 00 00 00 00 00 00",
    "rising order": f"01 0001 {ADDRESS} 00 08 0009 0000 0008 0000 00 00",
    "not in rising order": f"01 0001 {ADDRESS} 00 08 0009 0000 0009 0000 00 00",
    "address hint": f"01 0001 {ADDRESS} 00 08 0004 0004 c0000221 00 00",
    "without a name to authenticate": f"01 0001 {ADDRESS} 00 07 0001 0003 026832 00 00",
    "a port that is not two bytes": f"01 0001 {ADDRESS} 00 05 0003 0001 35 00 00",
    "a port that is not two": f"01 0001 {ADDRESS} 00 04 0003 0000 00 00",
    "truncated: 2 bytes missing": f"01 0001 {ADDRESS} 00 06 0009 0004 6832",
    "truncated: inside": f"01 0001 {ADDRESS} 00 00 00",
    "truncated: 6 bytes missing": "00 01 0a 61622e63",
    "is not a domain name": "00 01 03 612062 00",  # a space
    "a.-b": "00 01 04 612e2d62 00",
    "ascii": "00 01 02 c3a9 00",  # not an A-label
}


@pytest.mark.parametrize(("complaint", "value"), MALFORMED.items())
def test_a_malformed_configuration_is_refused_and_named(complaint: str, value: str) -> None:
    with pytest.raises(CapsuleError, match=f"DNS_ASSIGN.*{complaint}"):
        DnsAssign.parse(bytes.fromhex(value))


@pytest.mark.parametrize(
    "name", ["a\nnameserver 192.0.2.66", "a b", "a..b", ".a", "-a", "x" * 64, "a." * 127 + "a"]
)
def test_a_name_that_could_confuse_a_resolver_configuration_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a domain name"):
        DnsConfiguration(search_domains=(name,))


@pytest.mark.parametrize("root", ["", "."])
def test_the_root_has_two_spellings(root: str) -> None:
    assert DnsConfiguration(internal_domains=(root,)).answers_everything


@given(chosen=st.lists(configurations, max_size=3))
def test_what_is_assigned_arrives(chosen: list[DnsConfiguration]) -> None:
    assign = DnsAssign(tuple(chosen))
    assert round_trip(assign) == assign
