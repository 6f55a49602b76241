"""What may be asked of a resolver, and resolv.conf as text: nothing gets in that was not meant."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.net.dns import resolv_conf
from qvpn_core.net.dns.plan import MAX_DOMAINS, MAX_SERVERS, DnsPlan
from qvpn_core.net.dns.records import (
    MAX_FILE,
    DnsRecord,
    GlobalDns,
    GlobalDomain,
    RemoveResolvconfEntry,
    RestoreGlobalDns,
    RestoreResolvConf,
    RevertLink,
    RewriteResolvConf,
)
from qvpn_core.net.dns.resolv_conf import MAX_ASKED, ResolvConf

SERVER = ip_address("10.0.0.53")
FAR = [ip_address(f"10.0.0.{n}") for n in range(1, 20)] + [ip_address("fd00::53")]
labels = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=20)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)


@st.composite
def plans(draw: st.DrawFn) -> DnsPlan:
    servers = draw(st.lists(st.sampled_from(FAR), min_size=1, max_size=MAX_SERVERS))
    search = tuple(draw(st.lists(domains, max_size=6)))
    return DnsPlan(tuple(servers), (".", *search), search)


def test_names_are_kept_in_one_spelling_each_once() -> None:
    plan = DnsPlan((SERVER, SERVER), ("Corp.Example.", "corp.example", ""), ("LAB.example",))
    assert plan == DnsPlan((SERVER,), ("corp.example", "."), ("lab.example",))
    assert plan.everything
    assert not DnsPlan((SERVER,), ("corp.example",)).everything


@pytest.mark.parametrize(
    "server",
    ["0.0.0.0", "127.0.0.53", "224.0.0.251", "169.254.1.1", "255.255.255.255",
     "::", "::1", "ff02::fb", "fe80::1", "fe80::1%eth0", "fd00::1%eth0", "::ffff:10.0.0.1"],
)  # fmt: skip
def test_an_address_that_no_far_host_can_have_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name server"):
        DnsPlan((ip_address(server),))


@pytest.mark.parametrize(
    "name",
    ["a b", "a\nnameserver 6.6.6.6", "a;b", "a#b", "-a", "a..b", "ä.example", "a" * 64, "*", "/x"],
)
def test_what_is_no_domain_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a domain name"):
        DnsPlan((SERVER,), (name,))
    with pytest.raises(ValueError, match="not a domain name"):
        DnsPlan((SERVER,), (".",), (name,))


def test_too_much_or_too_little_is_refused() -> None:
    many = tuple(f"d{n}.example" for n in range(MAX_DOMAINS + 1))
    for servers, names, search in (
        ((), (".",), ()),
        (tuple(FAR[: MAX_SERVERS + 1]), (".",), ()),
        ((SERVER,), (), ()),
        ((SERVER,), many, ()),
        ((SERVER,), (".",), many),
        ((SERVER,), (".",), (".",)),
    ):
        with pytest.raises(ValueError, match=r"name servers|domains|root"):
            DnsPlan(servers, names, search)


@given(plans(), st.lists(st.text(max_size=12), max_size=8))
def test_our_version_says_what_the_plan_says_and_nothing_else(
    plan: DnsPlan, options: list[str]
) -> None:
    data = resolv_conf.render(plan, "qvpn0", options)
    text = resolv_conf.parse(data)
    assert text.servers == plan.servers[:MAX_ASKED]
    assert text.search == plan.search
    assert set(text.options) <= set(options) - {"trust-ad"}
    assert resolv_conf.is_ours(data)
    assert resolv_conf.says(text, plan)


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(data: bytes) -> None:
    text = resolv_conf.parse(data)
    assert all(isinstance(server, IPv4Address | IPv6Address) for server in text.servers)
    assert not resolv_conf.is_ours(data)


def test_a_resolv_conf_is_read_as_the_c_library_reads_it() -> None:
    text = resolv_conf.parse(
        b"# nameserver 192.0.2.1\n; nameserver 192.0.2.2\n nameserver 192.0.2.3\n"
        b"nameserver\nnameserver nonsense\nnameserver 192.0.2.4 # the router\n"
        b"domain one.example\nsearch two.example three.example\n"
        b"options edns0\noptions timeout:1\nsortlist 192.0.2.0\nnameserver 2001:db8::1"
    )
    assert text == ResolvConf(
        (ip_address("192.0.2.4"), ip_address("2001:db8::1")),
        ("two.example", "three.example"),
        ("edns0", "timeout:1"),
    )


def test_our_version_is_known_however_its_writing_was_cut_short() -> None:
    ours = resolv_conf.render(DnsPlan((SERVER,)), "qvpn0")
    before = b"nameserver 192.0.2.1\n"
    assert not resolv_conf.is_ours(before)
    assert resolv_conf.is_ours(before + ours[len(before) :])  # put back, not yet cut
    assert resolv_conf.is_ours(ours + b"options timeout:1\n")  # edited


@pytest.mark.parametrize(
    "record",
    [
        RevertLink("qvpn0", 7),
        RestoreGlobalDns(GlobalDns(("a.example",), ("edns0",), (GlobalDomain("*", ("::1",)),))),
        RemoveResolvconfEntry("qvpn0"),
        RestoreResolvConf(),
        RewriteResolvConf(b"nameserver \xff\x00\n", 1_700_000_000_123_456_789),
    ],
)  # fmt: skip
def test_a_record_survives_its_journey_through_a_file(record: DnsRecord) -> None:
    assert msgspec.json.decode(msgspec.json.encode(record), type=DnsRecord) == record


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"dns-link","interface":"eth0","index":2}',
        '{"type":"dns-link","interface":"qvpn0","index":0}',
        '{"type":"dns-resolvconf","interface":"qvpn0/../lo"}',
        '{"type":"dns-resolvconf","interface":"-x"}',
        '{"type":"dns-mounted-file","previous":"%s","mtime_ns":0}' % ("AAAA" * (MAX_FILE // 3 + 1)),
        '{"type":"dns-command"}',
    ],
)
def test_a_record_of_what_is_not_ours_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=DnsRecord)
