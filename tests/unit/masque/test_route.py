"""ROUTE_ADVERTISEMENT: layout, order, overlap; prefixes to ranges and back without loss."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.address import IPNetwork
from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, CapsuleType, encode_capsule
from qvpn_core.masque.route import (
    MAX_PREFIXES,
    IPAddressRange,
    RouteAdvertisement,
    prefixes_to_ranges,
    ranges_to_prefixes,
)


def span(start: str, end: str, protocol: int = 0) -> IPAddressRange:
    return IPAddressRange(ip_address(start), ip_address(end), protocol)


# A small address space, so that neighbours and overlaps are frequent.
small_v4 = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(24, 32),
)
small_v6 = st.builds(
    lambda number, length: IPv6Network((number >> (128 - length) << (128 - length), length)),
    st.integers(0, 255).map(lambda low: (0x20010DB8 << 96) + low),
    st.integers(120, 128),
)
prefix_lists = st.lists(st.one_of(small_v4, small_v6), max_size=12)


def test_the_layout_of_route_advertisement() -> None:
    advertisement = RouteAdvertisement(
        (
            span("0.0.0.0", "255.255.255.255"),
            span("2001:db8:3456::b", "2001:db8:3456::b", 132),
        )
    )
    address = "20010db83456000000000000" + "0000000b"
    value = bytes.fromhex(f"04 00000000 ffffffff 00 06 {address} {address} 84")
    assert advertisement.encode() == encode_capsule(3, value)
    assert RouteAdvertisement.parse(value) == advertisement


def test_an_empty_advertisement_withdraws_everything() -> None:
    assert RouteAdvertisement.parse(b"") == RouteAdvertisement(())


@pytest.mark.parametrize(
    ("complaint", "value"),
    {
        "IP version 0": "00 00000000 ffffffff 00",
        "10.0.0.2 is above 10.0.0.1": "04 0a000002 0a000001 00",
        "truncated: 1 bytes missing": "04 0a000001 0a000002",
        "truncated: 4 bytes missing": "04 0a000001",
    }.items(),
)
def test_a_malformed_range_is_refused_and_named(complaint: str, value: str) -> None:
    with pytest.raises(CapsuleError, match=f"ROUTE_ADVERTISEMENT.*{complaint}"):
        RouteAdvertisement.parse(bytes.fromhex(value))


A, B = ("10.0.0.0", "10.0.0.9"), ("10.0.0.10", "10.0.0.20")
V6 = ("2001:db8::", "2001:db8::9")


@pytest.mark.parametrize(
    "ranges",
    [
        [span(*A), span(*B)],  # adjacent is not overlapping
        [span(*B, 6), span(*A, 17)],  # addresses start anew with each protocol
        [span(*A, 6), span(*A, 17)],  # the same addresses for two protocols
        [span(*B, 6), span(*V6)],  # protocols start anew with each version
        [span(*A), span(*B, 6)],  # all protocols here, one there
        [span(*A), span("10.0.0.30", "10.0.0.40"), span(*B, 6)],
    ],
)
def test_what_is_in_order_is_accepted(ranges: list[IPAddressRange]) -> None:
    advertisement = RouteAdvertisement(tuple(ranges))
    [capsule] = CapsuleDecoder().feed(advertisement.encode())
    assert RouteAdvertisement.parse(capsule.value) == advertisement


@pytest.mark.parametrize(
    "ranges",
    [
        [span(*V6), span(*A)],  # versions fall
        [span(*A, 17), span(*B, 6)],  # protocols fall
        [span(*B), span(*A)],  # addresses fall
        [span(*A), span(*A)],  # the same twice
        [span(*A), span("10.0.0.9", "10.0.0.20")],  # one address in common
        [span(*A), span("10.0.0.9", "10.0.0.20", 6)],  # in common with all protocols, at the end
        [span(*B), span("10.0.0.1", "10.0.0.10", 6)],  # at the start
        [span(*A), span(*B), span("10.0.0.15", "10.0.0.15", 6)],  # within
        [span("10.0.0.3", "10.0.0.4"), span(*A, 6)],  # around
        [span(*V6), span("2001:db8::1", "2001:db8::1", 58)],  # in IPv6
    ],
)
def test_what_is_out_of_order_or_overlaps_is_refused(ranges: list[IPAddressRange]) -> None:
    with pytest.raises(ValueError, match=r"precede|overlaps"):
        RouteAdvertisement(tuple(ranges))
    wire = b"".join(
        bytes((r.version,)) + r.start.packed + r.end.packed + bytes((r.protocol,)) for r in ranges
    )
    with pytest.raises(CapsuleError, match="ROUTE_ADVERTISEMENT"):
        RouteAdvertisement.parse(wire)


def test_a_range_of_two_versions_or_of_a_protocol_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="different IP versions"):
        IPAddressRange(IPv4Address("10.0.0.1"), IPv6Address("::1"))
    with pytest.raises(ValueError, match="protocol 256"):
        span(*A, 256)


def test_prefixes_become_sorted_ranges_and_neighbours_are_joined() -> None:
    prefixes: list[IPNetwork] = [
        IPv6Network("::/0"),
        IPv4Network("10.0.1.0/24"),
        IPv4Network("192.0.2.7/32"),
        IPv4Network("10.0.0.0/24"),
        IPv4Network("10.0.0.128/25"),
    ]
    assert prefixes_to_ranges(prefixes, 17) == (
        span("10.0.0.0", "10.0.1.255", 17),
        span("192.0.2.7", "192.0.2.7", 17),
        span("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 17),
    )


def test_ipv4_and_ipv6_are_not_joined_where_their_numbers_touch() -> None:
    ranges = prefixes_to_ranges([IPv4Network("0.0.0.0/0"), IPv6Network("::1:0:0/96")])
    assert [r.version for r in ranges] == [4, 6]


@given(prefixes=prefix_lists)
def test_any_prefixes_make_a_legal_advertisement(prefixes: list[IPNetwork]) -> None:
    advertisement = RouteAdvertisement(prefixes_to_ranges(prefixes))
    [capsule] = CapsuleDecoder().feed(advertisement.encode())
    assert capsule.type == CapsuleType.ROUTE_ADVERTISEMENT
    assert RouteAdvertisement.parse(capsule.value) == advertisement


@given(prefixes=prefix_lists)
def test_ranges_give_the_collapsed_prefixes_back(prefixes: list[IPNetwork]) -> None:
    collapsed = [
        *collapse_addresses(p for p in prefixes if isinstance(p, IPv4Network)),
        *collapse_addresses(p for p in prefixes if isinstance(p, IPv6Network)),
    ]
    assert list(ranges_to_prefixes(prefixes_to_ranges(prefixes))) == collapsed


def test_ranges_of_several_protocols_give_each_prefix_once() -> None:
    assert ranges_to_prefixes([span(*A, 6), span(*A, 17)]) == ranges_to_prefixes([span(*A)])


def test_a_hostile_advertisement_cannot_fill_a_routing_table() -> None:
    # Each of these needs some 250 prefixes; a legal capsule holds almost 2,000 of them.
    base = int(ip_network("2001:db8::/32").network_address)
    ranges = [
        IPAddressRange(
            IPv6Address((base + (n << 64)) | 1), IPv6Address((base + ((n + 1) << 64)) - 2)
        )
        for n in range(MAX_PREFIXES // 100)
    ]
    RouteAdvertisement(tuple(ranges))
    with pytest.raises(CapsuleError, match="more than"):
        ranges_to_prefixes(ranges)
