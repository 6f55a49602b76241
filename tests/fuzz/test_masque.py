"""Bytes from a hostile peer into everything in qvpn_core.masque and qvpn_core.packet.

Only the documented errors come out; what is accepted survives encoding and parsing again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from qvpn_core.errors import UsageError
from qvpn_core.masque.address import (
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    RequestedAddress,
)
from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, CapsuleType, encode_capsule
from qvpn_core.masque.connect_ip import ConnectIpError, ConnectIpSession, Role, split_context
from qvpn_core.masque.dns import DnsAssign, DnsConfiguration, Nameserver
from qvpn_core.masque.route import RouteAdvertisement, prefixes_to_ranges, ranges_to_prefixes
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, WILDCARD, expand, match, split_template
from qvpn_core.masque.varint import decode_varint, encode_varint
from qvpn_core.packet import (
    PacketError,
    Unreachable,
    decrement_hop_limit,
    packet_too_big,
    parse,
    time_exceeded,
    unreachable,
    well_formed,
)
from tests.fuzz.harness import Target, fuzz

ASSIGN = AddressAssign(
    (
        AssignedAddress(0, IPv4Network("10.8.0.2/32")),
        AssignedAddress(70_000, IPv6Network("fd00::/64")),
    )
)
REQUEST = AddressRequest(
    (
        RequestedAddress(1, IPv4Network("0.0.0.0/32")),
        RequestedAddress(100, IPv6Network("2001:db8::/48")),
    )
)
ROUTES = RouteAdvertisement(
    (
        *prefixes_to_ranges([IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16")]),
        *prefixes_to_ranges([IPv4Network("172.16.0.0/12")], 17),
        *prefixes_to_ranges([IPv6Network("2001:db8::/32")]),
    )
)
DNS = DnsAssign(
    (
        DnsConfiguration(
            (
                Nameserver(1, (IPv4Address("192.0.2.53"),), (IPv6Address("2001:db8::53"),)),
                Nameserver(
                    2,
                    authentication_domain="dns.example",
                    service_parameters=((1, b"\x02h3"), (3, b"\x01\xbb"), (7, b"/dns-query{?dns}")),
                ),
            ),
            ("", "internal.example"),
            ("corp.example",),
        ),
    )
)
STREAM = b"".join(
    (
        ASSIGN.encode(),
        encode_capsule(0x17, b"unknown"),
        ROUTES.encode(),
        encode_capsule(CapsuleType.DATAGRAM, b"\0packet"),
        REQUEST.encode(),
        DNS.encode(),
    )
)


def value(capsule: bytes) -> bytes:
    [decoded] = CapsuleDecoder().feed(capsule)
    return decoded.value


def capsule_value(
    kind: type[AddressAssign | AddressRequest | RouteAdvertisement | DnsAssign],
) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with suppress(CapsuleError):
            parsed = kind.parse(data)
            assert kind.parse(value(parsed.encode())) == parsed
            if isinstance(parsed, RouteAdvertisement):
                prefixes = ranges_to_prefixes(parsed.ranges)
                assert ranges_to_prefixes(prefixes_to_ranges(prefixes)) == prefixes

    return run


def run_varint(data: bytes) -> None:
    decoded = decode_varint(data)
    if decoded is not None:
        number, end = decoded
        assert end <= len(data)
        assert decode_varint(encode_varint(number)) == (number, len(encode_varint(number)))


def outcome(role: Role, data: bytes, step: int) -> tuple[list[object], bool]:
    """The events of `data` given in pieces of `step` bytes, and whether it ended well."""
    session = ConnectIpSession(role)
    events: list[object] = []
    try:
        for start in range(0, len(data), step):
            events += session.receive(data[start : start + step])
        session.receive_end()
    except ConnectIpError:
        with pytest.raises(ConnectIpError):
            session.receive(b"")
        return events, False
    return events, True


def run_session(data: bytes) -> None:
    for role in Role:
        whole, whole_ended = outcome(role, data, max(1, len(data)))
        split, split_ended = outcome(role, data, 7)
        assert whole_ended == split_ended
        if whole_ended:
            assert whole == split


def run_match(data: bytes) -> None:
    path = data.decode("latin-1")
    for template in (DEFAULT_TEMPLATE, "/masque{?target,ipproto}", "/masque?t={target}"):
        scope = match(template, path)
        if scope is not None and "{ipproto}" in template:
            ipproto = WILDCARD if scope.ipproto is None else scope.ipproto
            assert match(template, expand(template, scope.target, ipproto)) == scope


def run_template(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        _, template = split_template(text)
        path = expand(template)
    except UsageError:
        return
    assert match(template, path) is not None


def ipv4(payload: bytes) -> bytes:
    return (
        b"\x45\0" + (20 + len(payload)).to_bytes(2, "big") + bytes(4) + b"\x40\x11\0\0"
        b"\x0a\x08\0\x02\xc0\0\x02\x01" + payload
    )


def ipv6(next_header: int, payload: bytes) -> bytes:
    addresses = IPv6Address("fd00::2").packed + IPv6Address("2001:db8::1").packed
    size = len(payload).to_bytes(2, "big")
    return b"\x60\0\0\0" + size + bytes((next_header, 64)) + addresses + payload


def run_packet(data: bytes) -> None:
    sources = {4: bytes((10, 8, 0, 1)), 6: IPv6Address("fd00::1").packed}
    try:
        parsed = parse(data)
    except PacketError:
        assert unreachable(data, Unreachable.NO_ROUTE, sources[4]) is None
    else:
        assert well_formed(data)
        assert 20 <= parsed.header_length <= parsed.total_length == len(data)
        source = sources[parsed.version]
        for error in (
            unreachable(data, Unreachable.NO_ROUTE, source),
            packet_too_big(data, 1280, source),
            time_exceeded(data, source),
        ):
            if error is not None:
                assert parse(error).destination == parsed.source
                assert time_exceeded(error, source) is None
    if well_formed(data):
        lower = decrement_hop_limit(data)
        assert lower is None or (well_formed(lower) and len(lower) == len(data))


TARGETS = [
    Target("varint", run_varint, [b"\x25", b"\x7b\xbd", b"\x9d\x7f\x3e\x7d", bytes(8)]),
    Target("context", split_context, [b"\0packet", b"\x40\0packet"]),
    Target("address-assign", capsule_value(AddressAssign), [value(ASSIGN.encode())]),
    Target("address-request", capsule_value(AddressRequest), [value(REQUEST.encode())]),
    Target("route-advertisement", capsule_value(RouteAdvertisement), [value(ROUTES.encode())]),
    Target("dns-assign", capsule_value(DnsAssign), [value(DNS.encode())]),
    Target("session", run_session, [STREAM, ASSIGN.encode(), ROUTES.encode(), DNS.encode()]),
    Target(
        "uri-match",
        run_match,
        [
            expand(DEFAULT_TEMPLATE).encode(),
            expand(DEFAULT_TEMPLATE, "2001:db8::/32", 17).encode(),
            b"/masque?target=a.example&ipproto=6",
            b"/masque?t=10.0.0.0%2F8",
        ],
    ),
    Target(
        "uri-template",
        run_template,
        [
            f"https://proxy.example{DEFAULT_TEMPLATE}".encode(),
            b"https://[::1]:443/masque?user=bob&t={target}{&ipproto}",
            b"https://192.0.2.1:4443/ip{?target,ipproto}",
        ],
    ),
    Target(
        "packet",
        run_packet,
        [
            ipv4(b"12345678"),
            ipv6(17, b"12345678"),
            ipv6(
                0, bytes((43, 0)) + bytes(6) + bytes((44, 0)) + bytes(6) + b"\x11\0\0\1" + bytes(8)
            ),
        ],
    ),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_breaks(target: Target) -> None:
    assert fuzz(target) > 0
