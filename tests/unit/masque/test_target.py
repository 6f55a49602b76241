"""Targets of CONNECT and CONNECT-UDP: what is one, and what only looks like an address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.target import Target, make_target, match_udp, parse_authority

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "test"]))
hosts = st.one_of(names, st.ip_addresses(v=4), st.ip_addresses(v=6))
targets = st.builds(Target, hosts, st.integers(1, 65535))


@given(targets)
def test_either_form_reads_back(target: Target) -> None:
    assert parse_authority(str(target)) == target
    assert match_udp(target.udp_path) == target


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("host.example:443", "host.example", 443),
        ("192.0.2.1:80", IPv4Address("192.0.2.1"), 80),
        ("[2001:db8::1]:22", IPv6Address("2001:db8::1"), 22),
        ("[::ffff:127.0.0.1]:22", IPv6Address("::ffff:127.0.0.1"), 22),
    ],
)
def test_an_authority(text: str, host: object, port: int) -> None:
    target = parse_authority(text)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:٣",
        "host:8 0",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "[host]:80",
        "[192.0.2.1]:80",
        "[fe80::1%eth0]:80",
        "[fe80::1%25eth0]:80",
        "2130706433:80",
        "0x7f000001:80",
        "0x7f.1:80",
        "127.1:80",
        "0177.0.0.1:80",
        "127.0.0.01:80",
        "127.0.0.1.:80",
        "1.2.3.4.5:80",
        "user@host:80",
        "host/path:80",
        "ho st:80",
        "host\0:80",
        "-host:80",
        "a" * 64 + ":80",
        ("a" * 60 + ".") * 5 + "test:80",
    ],
)
def test_what_is_no_authority(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_authority(text)


def test_the_paths_of_rfc_9298() -> None:
    assert make_target("192.0.2.6", 443).udp_path == "/.well-known/masque/udp/192.0.2.6/443/"
    path = "/.well-known/masque/udp/2001%3Adb8%3A%3A42/53/"
    assert make_target("2001:db8::42", 53).udp_path == path
    assert match_udp(path) == Target(IPv6Address("2001:db8::42"), 53)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/.well-known/masque/udp/192.0.2.6/443",
        "/.well-known/masque/udp/192.0.2.6/443/x",
        "/.well-known/masque/udp/192.0.2.6/443/?x",
        "/.well-known/masque/udp//443/",
        "/.well-known/masque/udp/192.0.2.6//",
        "/.well-known/masque/udp/192.0.2.6/0/",
        "/.well-known/masque/udp/2001:db8::42/53/",
        "/.well-known/masque/udp/fe80%3A%3A1%25eth0/53/",
        "/.well-known/masque/udp/%FF/53/",
        "/.well-known/masque/udp/a%2Fb/53/",
        "/.well-known/masque/udp/127.1/53/",
        "/.well-known/masque/udp/*/*/",
        "/.well-known/masque/ip/192.0.2.6/17/",
    ],
)
def test_other_paths_are_no_target(path: str) -> None:
    assert match_udp(path) is None


@given(st.text(max_size=80))
def test_no_text_is_more_than_refused(text: str) -> None:
    match_udp(text)
    try:
        target = parse_authority(text)
    except ValueError:
        return
    assert 0 < target.port < 65536
