"""Packets: what is parsed and refused, checksums against a second computation, ICMP by the RFCs."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.packet import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPacket,
    PacketError,
    Unreachable,
    checksum,
    decrement_hop_limit,
    destination_of,
    ip_version,
    is_link_local,
    is_loopback,
    is_multicast,
    is_unspecified,
    packet_too_big,
    parse,
    source_of,
    time_exceeded,
    unreachable,
    well_formed,
)

UDP = 17
GATEWAY4, GATEWAY6 = ip_address("10.8.0.1").packed, ip_address("fd00::1").packed


def slow_checksum(data: bytes) -> int:
    """RFC 1071 by the book: 16-bit words, end-around carry at each step."""
    total = 0
    for place in range(0, len(data), 2):
        total += int.from_bytes(data[place : place + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ipv4(
    payload: bytes = b"data",
    *,
    source: str = "10.8.0.2",
    destination: str = "192.0.2.1",
    protocol: int = UDP,
    ttl: int = 64,
    fragment: int = 0,
    options: bytes = b"",
    ident: int = 0,
) -> bytes:
    header = bytearray((0x45 + len(options) // 4, 0))
    header += (20 + len(options) + len(payload)).to_bytes(2, "big")
    header += ident.to_bytes(2, "big") + fragment.to_bytes(2, "big")
    header += bytes((ttl, protocol, 0, 0))
    header += ip_address(source).packed + ip_address(destination).packed + options
    header[10:12] = slow_checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + payload


def ipv6(
    payload: bytes = b"data",
    *,
    source: str = "fd00::2",
    destination: str = "2001:db8::1",
    protocol: int = UDP,
    hop_limit: int = 64,
) -> bytes:
    return (
        b"\x60\0\0\0"
        + len(payload).to_bytes(2, "big")
        + bytes((protocol, hop_limit))
        + ip_address(source).packed
        + ip_address(destination).packed
        + payload
    )


def pseudo_header(packet: bytes, protocol: int) -> bytes:
    length = len(packet) - 40
    return packet[8:40] + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")


# --- checksum -------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200))
def test_the_checksum_agrees_with_the_definition(data: bytes) -> None:
    assert checksum(data) == slow_checksum(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFF),
        (bytes(20), 0xFFFF),
        (b"\xff\xff", 0),
        (b"\xff\xff" * 700, 0),
        (b"\x00\x01\xf2\x03\xf4\xf5\xf6\xf7", 0x220D),  # RFC 1071 section 3
    ],
)
def test_the_checksum_tells_both_zeros_apart(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


# --- looking at headers ---------------------------------------------------------------------------


def test_an_ipv4_header_is_read() -> None:
    packet = ipv4(b"12345678", options=b"\x01" * 4, fragment=0x2000 | 3, ttl=9)
    assert parse(packet) == IPPacket(
        version=4,
        source=ip_address("10.8.0.2").packed,
        destination=ip_address("192.0.2.1").packed,
        protocol=UDP,
        hop_limit=9,
        header_length=24,
        total_length=32,
        fragment_offset=24,
        more_fragments=True,
    )


def test_an_ipv6_header_is_read() -> None:
    assert parse(ipv6(b"12345678", hop_limit=9)) == IPPacket(
        version=6,
        source=ip_address("fd00::2").packed,
        destination=ip_address("2001:db8::1").packed,
        protocol=UDP,
        hop_limit=9,
        header_length=40,
        total_length=48,
    )


HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AUTHENTICATION, DESTINATION_OPTIONS = 0, 43, 44, 50, 51, 60
# IANA "IPv6 Extension Header Types" without ESP, which nobody can look behind.
EXTENSION_HEADERS = {0, 43, 44, 51, 60, 135, 139, 140}


def test_ipv6_extension_headers_are_followed_to_the_upper_layer() -> None:
    chain = (
        bytes((DESTINATION_OPTIONS, 0)) + bytes(6)  # hop-by-hop, 8 bytes
        + bytes((ROUTING, 1)) + bytes(14)  # destination options, 16 bytes
        + bytes((AUTHENTICATION, 0)) + bytes(6)  # routing, 8 bytes
        + bytes((FRAGMENT, 4)) + bytes(22)  # authentication counts words of 4 bytes: 24
        + bytes((UDP, 0, 0, 1)) + bytes(4)  # first fragment, more to come
    )  # fmt: skip
    packet = parse(ipv6(chain + b"udp", protocol=HOP_BY_HOP))
    assert (packet.protocol, packet.header_length) == (UDP, 40 + len(chain))
    assert (packet.fragment_offset, packet.more_fragments) == (0, True)
    assert packet.is_fragment


def test_nothing_is_read_behind_the_header_of_a_later_fragment() -> None:
    later = bytes((DESTINATION_OPTIONS, 0)) + (1480).to_bytes(2, "big") + bytes(4)
    packet = parse(ipv6(later + b"\xff" * 4, protocol=FRAGMENT))
    assert (packet.protocol, packet.header_length) == (DESTINATION_OPTIONS, 48)
    assert packet.fragment_offset == 1480


@pytest.mark.parametrize("opaque", [ESP, 59, 253])
def test_what_cannot_be_followed_is_the_upper_layer(opaque: int) -> None:
    assert parse(ipv6(b"\xff" * 16, protocol=opaque)).protocol == opaque


@pytest.mark.parametrize(
    ("complaint", "packet"),
    [
        ("empty", b""),
        ("IP version 5", b"\x55" + bytes(50)),
        ("IP version 0", bytes(60)),
        ("short IPv4", ipv4()[:19]),
        ("short IPv6", ipv6()[:39]),
        ("IPv4 header length 16", b"\x44" + ipv4()[1:]),
        ("IPv4 header length 60", b"\x4f" + ipv4()[1:]),
        ("IPv4 total length 24", ipv4()[:-1]),
        ("IPv4 total length 24", ipv4() + b"\0"),
        ("IPv6 payload length 4", ipv6()[:-1]),
        ("IPv6 payload length 4", ipv6() + b"\0"),
        ("truncated IPv6", ipv6(b"\0" * 7, protocol=ROUTING)),
        ("truncated IPv6", ipv6(bytes((UDP, 1)) + bytes(6), protocol=ROUTING)),
        ("truncated IPv6", ipv6(bytes((UDP, 0)) + bytes(4), protocol=FRAGMENT)),
        ("behind another", ipv6(bytes(16), protocol=ROUTING)),
        ("more than 16", ipv6((bytes((ROUTING, 0)) + bytes(6)) * 17, protocol=ROUTING)),
    ],
)
def test_a_malformed_packet_is_refused_and_named(complaint: str, packet: bytes) -> None:
    with pytest.raises(PacketError, match=complaint):
        parse(packet)


@given(
    packet=st.one_of(
        st.binary(max_size=80),
        st.builds(ipv4, st.binary(max_size=60), protocol=st.integers(0, 255)),
        st.builds(ipv6, st.binary(max_size=60), protocol=st.integers(0, 255)),
    )
)
def test_the_cheap_functions_agree_with_the_parser(packet: bytes) -> None:
    if not well_formed(packet):
        with pytest.raises(PacketError):
            parse(packet)
        return
    try:
        parsed = parse(packet)
    except PacketError:
        # Only what lies behind the fixed IPv6 header may pass the cheap check and fail here.
        assert packet[6] in EXTENSION_HEADERS
        return
    assert parsed.version == ip_version(packet)
    assert parsed.source == source_of(packet)
    assert parsed.destination == destination_of(packet)


@given(address=st.ip_addresses())
def test_addresses_are_told_apart_as_the_standard_library_does(address: object) -> None:
    _check_address(ip_address(str(address)).packed)


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "127.9.9.9", "169.254.1.1", "169.255.0.0", "224.0.1.1", "240.0.0.1"),
        *("::", "::1", "::2", "fe80::1", "febf::1", "fec0::1", "ff05::2", "ff0e::1", "fd00::1"),
    ],
)
def test_addresses_at_the_edges_are_told_apart(text: str) -> None:
    _check_address(ip_address(text).packed)


def _check_address(packed: bytes) -> None:
    address = ip_address(packed)
    assert is_loopback(packed) == address.is_loopback
    assert is_multicast(packed) == address.is_multicast
    assert is_unspecified(packed) == address.is_unspecified
    if not address.is_multicast:
        assert is_link_local(packed) == address.is_link_local


@pytest.mark.parametrize("text", ["224.0.0.1", "224.0.0.251", "ff01::1", "ff02::1", "ff12::fb"])
def test_multicast_that_stays_on_the_link_is_link_local(text: str) -> None:
    assert is_link_local(ip_address(text).packed)


@pytest.mark.parametrize("text", ["224.0.1.1", "239.255.255.250", "ff05::2", "ff0e::1"])
def test_multicast_that_is_routed_is_not(text: str) -> None:
    assert not is_link_local(ip_address(text).packed)


# --- hop limit ------------------------------------------------------------------------------------


@given(ttl=st.integers(2, 255), protocol=st.integers(0, 255), ident=st.integers(0, 0xFFFF))
def test_the_ttl_falls_by_one_and_the_checksum_stays_right(
    ttl: int, protocol: int, ident: int
) -> None:
    packet = ipv4(ttl=ttl, protocol=protocol, ident=ident)
    lower = decrement_hop_limit(packet)
    assert lower == ipv4(ttl=ttl - 1, protocol=protocol, ident=ident)


def test_the_carry_of_the_checksum_is_not_lost() -> None:
    # One of these has each checksum from 0xFE00 up, where adding 0x0100 wraps or meets -0.
    seen = set()
    for ident in range(0x10000):
        packet = ipv4(b"", ident=ident)
        if packet[10] >= 0xFE:
            seen.add(packet[10:12])
            assert decrement_hop_limit(packet) == ipv4(b"", ident=ident, ttl=63)
    assert b"\xfe\xff" in seen


def test_a_wrong_checksum_is_not_made_right() -> None:
    packet = bytearray(ipv4())
    packet[11] ^= 1
    lower = decrement_hop_limit(bytes(packet))
    assert lower is not None
    assert slow_checksum(lower[:20]) != 0


@given(hop_limit=st.integers(2, 255))
def test_the_hop_limit_falls_by_one(hop_limit: int) -> None:
    assert decrement_hop_limit(ipv6(hop_limit=hop_limit)) == ipv6(hop_limit=hop_limit - 1)


@pytest.mark.parametrize("hops", [0, 1])
def test_a_packet_at_its_last_hop_goes_no_further(hops: int) -> None:
    assert decrement_hop_limit(ipv4(ttl=hops)) is None
    assert decrement_hop_limit(ipv6(hop_limit=hops)) is None


# --- ICMP -----------------------------------------------------------------------------------------


def check_icmpv4(packet: bytes | None, about: bytes, kind: int, code: int) -> bytes:
    """The four bytes behind the checksum, when everything else is as the RFCs want it."""
    assert packet is not None
    parsed = parse(packet)
    assert (parsed.source, parsed.destination) == (GATEWAY4, about[12:16])
    assert parsed.protocol == IPPROTO_ICMP
    assert slow_checksum(packet[:20]) == 0
    assert slow_checksum(packet[20:]) == 0
    assert (packet[20], packet[21]) == (kind, code)
    assert packet[28:] == about[: 576 - 28]
    return packet[24:28]


def check_icmpv6(packet: bytes | None, about: bytes, kind: int, code: int) -> bytes:
    assert packet is not None
    parsed = parse(packet)
    assert (parsed.source, parsed.destination) == (GATEWAY6, about[8:24])
    assert parsed.protocol == IPPROTO_ICMPV6
    assert slow_checksum(pseudo_header(packet, IPPROTO_ICMPV6) + packet[40:]) == 0
    assert (packet[40], packet[41]) == (kind, code)
    assert packet[48:] == about[: 1280 - 48]
    return packet[44:48]


@given(payload=st.binary(max_size=100), padding=st.sampled_from([0, 1, 520, 521, 1300]))
def test_packet_too_big_says_which_size_fits(payload: bytes, padding: int) -> None:
    payload += bytes(padding)
    too_big = ipv4(payload)
    assert check_icmpv4(packet_too_big(too_big, 1280, GATEWAY4), too_big, 3, 4) == b"\0\0\x05\0"
    too_big = ipv6(payload)
    assert check_icmpv6(packet_too_big(too_big, 1280, GATEWAY6), too_big, 2, 0) == b"\0\0\x05\0"


@pytest.mark.parametrize(
    ("reason", "v4", "v6"),
    [
        (Unreachable.NO_ROUTE, 0, 0),
        (Unreachable.HOST, 1, 3),
        (Unreachable.PROHIBITED, 13, 1),
        (Unreachable.BAD_SOURCE, 13, 5),
    ],
)
def test_unreachable_says_why(reason: Unreachable, v4: int, v6: int) -> None:
    assert check_icmpv4(unreachable(ipv4(), reason, GATEWAY4), ipv4(), 3, v4) == bytes(4)
    assert check_icmpv6(unreachable(ipv6(), reason, GATEWAY6), ipv6(), 1, v6) == bytes(4)


def test_time_exceeded_in_transit() -> None:
    check_icmpv4(time_exceeded(ipv4(ttl=1), GATEWAY4), ipv4(ttl=1), 11, 0)
    check_icmpv6(time_exceeded(ipv6(hop_limit=1), GATEWAY6), ipv6(hop_limit=1), 3, 0)


@pytest.mark.parametrize("kind", [0, 8, 13, 14])
def test_queries_of_icmpv4_are_answered(kind: int) -> None:
    assert time_exceeded(ipv4(bytes((kind,)), protocol=IPPROTO_ICMP), GATEWAY4)


@pytest.mark.parametrize("kind", [128, 129, 135])
def test_informational_messages_of_icmpv6_are_answered(kind: int) -> None:
    assert time_exceeded(ipv6(bytes((kind,)), protocol=IPPROTO_ICMPV6), GATEWAY6)


def fragment6(payload: bytes, offset: int, protocol: int) -> bytes:
    header = bytes((protocol, 0)) + offset.to_bytes(2, "big") + bytes(4)
    return ipv6(header + payload, protocol=FRAGMENT)


UNANSWERED = {
    "ICMPv4 destination unreachable": ipv4(b"\x03", protocol=IPPROTO_ICMP),
    "ICMPv4 redirect": ipv4(b"\x05", protocol=IPPROTO_ICMP),
    "ICMPv4 time exceeded": ipv4(b"\x0b", protocol=IPPROTO_ICMP),
    "ICMPv4 parameter problem": ipv4(b"\x0c", protocol=IPPROTO_ICMP),
    "ICMPv4 of unknown type": ipv4(b"\xfe", protocol=IPPROTO_ICMP),
    "ICMPv4 without type": ipv4(b"", protocol=IPPROTO_ICMP),
    "IPv4 multicast destination": ipv4(destination="239.1.1.1"),
    "IPv4 broadcast destination": ipv4(destination="255.255.255.255"),
    "IPv4 unspecified source": ipv4(source="0.0.0.0"),
    "IPv4 loopback source": ipv4(source="127.0.0.1"),
    "IPv4 multicast source": ipv4(source="224.0.0.5"),
    "IPv4 broadcast source": ipv4(source="255.255.255.255"),
    "later IPv4 fragment": ipv4(fragment=100),
    "ICMPv6 destination unreachable": ipv6(b"\x01", protocol=IPPROTO_ICMPV6),
    "ICMPv6 packet too big": ipv6(b"\x02", protocol=IPPROTO_ICMPV6),
    "ICMPv6 of unknown error type": ipv6(b"\x7f", protocol=IPPROTO_ICMPV6),
    "ICMPv6 redirect": ipv6(b"\x89", protocol=IPPROTO_ICMPV6),
    "ICMPv6 without type": ipv6(b"", protocol=IPPROTO_ICMPV6),
    "ICMPv6 error behind an extension header": ipv6(
        bytes((IPPROTO_ICMPV6, 0)) + bytes(6) + b"\x01", protocol=DESTINATION_OPTIONS
    ),
    "later fragment of ICMPv6": fragment6(b"\x80", 8, IPPROTO_ICMPV6),
    "IPv6 multicast destination": ipv6(destination="ff0e::1"),
    "IPv6 unspecified source": ipv6(source="::"),
    "IPv6 multicast source": ipv6(source="ff02::1"),
    "not a packet": b"\x45 not a packet",
}


@pytest.mark.parametrize("packet", UNANSWERED.values(), ids=UNANSWERED.keys())
def test_what_must_not_be_answered_is_not(packet: bytes) -> None:
    source = GATEWAY4 if ip_version(packet) == 4 else GATEWAY6
    assert unreachable(packet, Unreachable.NO_ROUTE, source) is None
    assert time_exceeded(packet, source) is None


def test_packet_too_big_is_the_one_answer_to_ipv6_multicast() -> None:
    packet = ipv6(destination="ff0e::1")
    check_icmpv6(packet_too_big(packet, 1280, GATEWAY6), packet, 2, 0)
    assert packet_too_big(ipv4(destination="239.1.1.1"), 1280, GATEWAY4) is None


def test_later_fragments_of_ipv6_are_answered_when_they_are_no_icmp() -> None:
    packet = fragment6(b"rest", 1480, UDP)
    check_icmpv6(packet_too_big(packet, 1280, GATEWAY6), packet, 2, 0)


def test_a_source_of_the_other_family_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="16 bytes for an IPv4 packet"):
        time_exceeded(ipv4(), GATEWAY6)


@given(packet=st.one_of(st.builds(ipv4, st.binary(max_size=40)), st.builds(ipv6, st.binary())))
def test_no_error_is_ever_answered_by_an_error(packet: bytes) -> None:
    source = GATEWAY4 if ip_version(packet) == 4 else GATEWAY6
    for error in (
        packet_too_big(packet, 1280, source),
        unreachable(packet, Unreachable.PROHIBITED, source),
        time_exceeded(packet, source),
    ):
        assert error is not None
        assert time_exceeded(error, source) is None
