"""Which services a device may use: rules as text, classes of addresses, and every way around."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import UsageError
from qvpn_core.masque.target import make_target
from qvpn_server.own_addresses import is_own
from qvpn_server.service_rules import (
    AddressClass,
    ServiceRule,
    allowed,
    classify,
    parse_rule,
    plain,
)

#: What a group has that says nothing.
DEFAULT = ("0.0.0.0/0", "::/0")
PUBLIC = "198.51.100.7"
OWN = (ip_network("203.0.113.130/32"), ip_network("10.86.0.0/16"))

networks = st.one_of(
    st.ip_addresses(v=4).flatmap(
        lambda a: st.integers(8, 32).map(lambda n: ip_network(f"{a}/{n}", strict=False))
    ),
    st.ip_addresses(v=6).flatmap(
        lambda a: st.integers(16, 128).map(lambda n: ip_network(f"{a}/{n}", strict=False))
    ),
)
wheres = st.one_of(
    networks, st.just("*"), st.sampled_from(("git.example.org", "*.example.org", "intranet"))
)
port_ranges = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(
    lambda pair: (min(pair), max(pair))
)
rules = st.builds(
    ServiceRule, wheres, st.sampled_from((None, "tcp", "udp")), st.none() | port_ranges
)


def may(
    rule: str | tuple[str, ...], address: str, port: int = 443, *, name: str | None = None,
    protocol: str = "tcp",
) -> bool:  # fmt: skip
    """Whether rules let a device connect to `address`, which it gave or `name` leads to."""
    parsed = [parse_rule(text) for text in ((rule,) if isinstance(rule, str) else rule)]
    where = plain(ip_address(address))
    kind = "udp" if protocol == "udp" else "tcp"
    host = name if name is not None else ip_address(address)
    return allowed(parsed, kind, host, where, port, classify(where, OWN))


@given(rules)
def test_a_rule_reads_back(rule: ServiceRule) -> None:
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("192.0.2.1:22", "192.0.2.1/32:22"),
        ("[2001:db8::]:22", "[2001:db8::/128]:22"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("tcp/Git.Example.org.:22-23", "tcp/git.example.org:22-23"),
        ("udp/*:53", "udp/*:53"),
    ],
)
def test_how_rules_are_written(text: str, written: str) -> None:
    assert str(parse_rule(text)) == written


@pytest.mark.parametrize(
    "text",
    ["", ":22", "sctp/*", "*:0", "*:65536", "*:9-8", "*:", "10.0.0.1/8", "127.1", "0x7f000001",
     "2130706433", "a b", "*.*", "*x", "ex*mple.org", "[fe80::1%eth0]:22", "tcp/", "x" * 300],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)


def test_protocols_and_ports() -> None:
    assert may("tcp/*:443", PUBLIC)
    assert not may("tcp/*:443", PUBLIC, protocol="udp")
    assert not may("tcp/*:443", PUBLIC, 444)
    assert may("*:400-500", PUBLIC, 500, protocol="udp")
    assert not may("*:400-500", PUBLIC, 501)
    assert not may((), PUBLIC)


#: Literal addresses, and what names may lead to, that no general rule opens.
SPECIAL = [
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "64:ff9b::127.0.0.1",
    "2002:7f00:1::",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "169.254.169.254",
    "fd00:ec2::254",
    "168.63.129.16",
    "100.100.100.200",
    "fe80::1",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd12::1",
    "::ffff:10.1.2.3",
    "64:ff9b:1::1",
    "203.0.113.130",
    "10.86.0.7",
]


@pytest.mark.parametrize("address", SPECIAL)
@pytest.mark.parametrize("name", [None, "evil.example.org"])
def test_no_general_rule_opens_a_special_address(address: str, name: str | None) -> None:
    for rule in (DEFAULT, "*", "*.example.org", "0.0.0.0/1", "203.0.113.0/24", "::/3"):
        assert not may(rule, address, name=name)


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("127.0.0.1:5432", "127.0.0.1"),
        ("127.0.0.0/8:5432", "127.0.0.9"),
        ("169.254.169.254", "169.254.169.254"),
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.1.0.0/16", "10.1.2.3"),
        ("10.1.0.0/16", "::ffff:10.1.2.3"),
        ("192.168.1.1", "192.168.1.1"),
        ("fd12::/48", "fd12::1"),
        ("203.0.113.130:5432", "203.0.113.130"),
        ("10.86.0.0/16", "10.86.0.7"),
    ],
)
def test_a_prefix_within_opens_it(rule: str, address: str) -> None:
    assert may(rule, address, 5432)
    assert may(rule, address, 5432, name="a.name.that.leads.there")


def test_the_prefix_around_devices_opens_them_not() -> None:
    assert not may("10.0.0.0/8", "10.86.0.7")
    assert not may("203.0.113.0/24", "203.0.113.130")


def test_an_exact_name_opens_private_addresses_and_no_guarded_ones() -> None:
    rule = "git.example.org:22"
    assert may(rule, "10.1.2.3", 22, name="Git.Example.ORG.")
    assert may(rule, PUBLIC, 22, name="git.example.org")
    assert not may(rule, "127.0.0.1", 22, name="git.example.org")
    assert not may(rule, "169.254.169.254", 22, name="git.example.org")
    assert not may(rule, "10.86.0.7", 22, name="git.example.org")
    assert not may(rule, PUBLIC, 22, name="other.example.org")
    assert not may(rule, PUBLIC, 22)  # by its address


def test_a_domain_opens_public_addresses_below_it() -> None:
    assert may("*.example.org", PUBLIC, name="a.b.example.org")
    assert not may("*.example.org", PUBLIC, name="example.org")
    assert not may("*.example.org", PUBLIC, name="badexample.org")
    assert not may("*.example.org", "10.1.2.3", name="a.example.org")


@pytest.mark.parametrize("rule", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"])
def test_some_addresses_are_never_opened(rule: str) -> None:
    assert not may(rule, rule)


@given(st.ip_addresses())
def test_every_address_has_a_class_and_public_ones_are_global(address: object) -> None:
    where = plain(ip_address(str(address)))
    if classify(where).kind is AddressClass.PUBLIC:
        assert not where.is_loopback
        assert not where.is_link_local
        assert not where.is_multicast
        assert not where.is_unspecified


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "1.0x7f", "fe80::1%lo",
     "127.0.0.1%00.example.org", "[::1]", "localhost:80", "a..b", ""],
)  # fmt: skip
def test_other_spellings_of_addresses_are_no_hosts(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        make_target(host, 80)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "255.255.255.255"])
def test_the_kernel_knows_its_own_addresses(address: str) -> None:
    assert is_own(ip_address(address))


def test_the_kernel_knows_what_is_elsewhere() -> None:
    assert not is_own(ip_address("192.0.2.1"))
