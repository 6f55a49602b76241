"""Two CONNECT-IP sessions talking, and one session against a peer that breaks the rules."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import ProtocolViolation
from qvpn_core.masque.capsule import CapsuleType, encode_capsule
from qvpn_core.masque.connect_ip import (
    CONTEXT_ID_IP,
    MAX_REQUESTS,
    NO_ADDRESS,
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    ConnectIpError,
    ConnectIpSession,
    DnsAssign,
    IPAddressRange,
    RequestedAddress,
    Role,
    RouteAdvertisement,
    prefixes_to_ranges,
    split_context,
)
from qvpn_core.masque.varint import MAX_VARINT, encode_varint
from qvpn_core.transport.interface import H3_MESSAGE_ERROR

CLIENT_V4 = IPv4Network("192.0.2.11/32")
EVERYTHING = prefixes_to_ranges([IPv4Network("0.0.0.0/0")])
DNS = DnsAssign.plain([IPv4Address("192.0.2.53")])


@pytest.fixture
def client() -> ConnectIpSession:
    return ConnectIpSession(Role.CLIENT)


@pytest.fixture
def proxy() -> ConnectIpSession:
    return ConnectIpSession(Role.PROXY)


def test_a_remote_access_session_from_request_to_dns(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    """RFC 9484 section 8.1, figure 15, and DNS."""
    [request] = proxy.receive(client.request_addresses([NO_ADDRESS[4]]))
    assert request == AddressRequest((RequestedAddress(1, NO_ADDRESS[4]),))

    answer = (AssignedAddress(1, CLIENT_V4),)
    events = client.receive(
        proxy.assign_addresses(answer) + proxy.advertise_routes(EVERYTHING) + proxy.assign_dns(DNS)
    )
    assert events == [AddressAssign(answer), RouteAdvertisement(EVERYTHING), DNS]
    assert client.local_addresses == proxy.peer_addresses == answer
    assert client.peer_routes == proxy.local_routes == EVERYTHING
    assert client.dns == proxy.dns == DNS.configurations
    assert (proxy.local_addresses, proxy.peer_routes) == ((), ())


def test_a_site_to_site_session_assigns_and_routes_both_ways(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    """RFC 9484 section 8.2, figure 18."""
    branch = prefixes_to_ranges([IPv4Network("192.0.2.0/24")])
    own = AssignedAddress(0, IPv4Network("192.0.2.200/32"))
    proxy.receive(client.assign_addresses([own]) + client.advertise_routes(branch))
    assert proxy.local_addresses == client.peer_addresses == (own,)
    assert proxy.peer_routes == client.local_routes == branch


def test_a_proxy_may_assign_without_being_asked(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    client.receive(proxy.assign_addresses([AssignedAddress(0, CLIENT_V4)]))
    assert client.local_addresses == (AssignedAddress(0, CLIENT_V4),)


def test_each_capsule_replaces_what_its_kind_said_before(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    client.receive(
        proxy.assign_addresses([AssignedAddress(0, CLIENT_V4)])
        + proxy.advertise_routes(EVERYTHING)
        + proxy.assign_dns(DNS)
    )
    client.receive(
        proxy.assign_dns(DnsAssign()) + proxy.advertise_routes([]) + proxy.assign_addresses([])
    )
    for session in (client, proxy):
        assert session.dns == ()
    assert (client.local_addresses, client.peer_routes) == ((), ())
    assert (proxy.peer_addresses, proxy.local_routes) == ((), ())


def test_a_refusal_is_told_once_and_kept_by_nobody(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    client.receive(proxy.assign_addresses([AssignedAddress(0, CLIENT_V4)]))
    [request] = proxy.receive(client.request_addresses([IPv6Network("::/128")]))
    assert isinstance(request, AddressRequest)
    [event] = client.receive(proxy.refuse(request))
    assert isinstance(event, AddressAssign)
    assert [(entry.request_id, entry.refused) for entry in event.addresses] == [
        (0, False),
        (1, True),
    ]
    assert client.local_addresses == proxy.peer_addresses == (AssignedAddress(0, CLIENT_V4),)


def test_request_ids_are_never_used_twice(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    wishes = [NO_ADDRESS[4], NO_ADDRESS[6]]
    events = proxy.receive(client.request_addresses(wishes) + client.request_addresses(wishes))
    numbers = [
        entry.request_id
        for event in events
        if isinstance(event, AddressRequest)
        for entry in event.addresses
    ]
    assert numbers == [1, 2, 3, 4]


def test_a_proxy_does_not_even_parse_the_dns_of_a_client(proxy: ConnectIpSession) -> None:
    assert proxy.receive(encode_capsule(CapsuleType.DNS_ASSIGN, b"\xff nonsense")) == []
    assert proxy.dns == ()


def test_datagram_and_unknown_capsules_are_skipped(client: ConnectIpSession) -> None:
    noise = encode_capsule(CapsuleType.DATAGRAM, b"\0packet") + encode_capsule(0x17, bytes(100_000))
    assert client.receive(noise + AddressAssign().encode()) == [AddressAssign()]


BAD_CAPSULES = {
    "malformed ADDRESS_ASSIGN capsule: IP version 9": encode_capsule(0x01, b"\0\x09"),
    "malformed ADDRESS_REQUEST capsule: it asks for no address": encode_capsule(0x02, b""),
    "malformed ROUTE_ADVERTISEMENT capsule: truncated": encode_capsule(0x03, b"\x04"),
    "malformed DNS_ASSIGN capsule: truncated": encode_capsule(CapsuleType.DNS_ASSIGN, b"\x01"),
    "limit": encode_varint(0x01) + encode_varint(MAX_VARINT),
}


@pytest.mark.parametrize(("complaint", "capsule"), BAD_CAPSULES.items())
def test_a_violation_names_itself_and_ends_the_session(
    client: ConnectIpSession, complaint: str, capsule: bytes
) -> None:
    with pytest.raises(ConnectIpError, match=complaint) as raised:
        client.receive(capsule)
    assert raised.value.code == H3_MESSAGE_ERROR
    assert isinstance(raised.value, ProtocolViolation)
    assert "\n" not in str(raised.value)
    with pytest.raises(ConnectIpError, match=complaint):
        client.receive(AddressAssign().encode())
    with pytest.raises(ConnectIpError, match=complaint):
        client.receive_end()


def test_a_reused_request_id_is_a_violation(proxy: ConnectIpSession) -> None:
    request = AddressRequest((RequestedAddress(5, NO_ADDRESS[4]),)).encode()
    proxy.receive(request)
    with pytest.raises(ConnectIpError, match="reused request ID 5"):
        proxy.receive(request)


def test_the_memory_for_request_ids_is_bounded(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    proxy.receive(client.request_addresses([NO_ADDRESS[4]] * MAX_REQUESTS))
    with pytest.raises(ConnectIpError, match=f"more than {MAX_REQUESTS}"):
        proxy.receive(client.request_addresses([NO_ADDRESS[4]]))


def test_the_stream_may_end_between_capsules_and_nothing_follows(
    client: ConnectIpSession,
) -> None:
    client.receive(AddressAssign().encode())
    client.receive_end()
    with pytest.raises(ConnectIpError, match="has ended"):
        client.receive(AddressAssign().encode())


def test_the_stream_must_not_end_inside_a_capsule(client: ConnectIpSession) -> None:
    client.receive(b"\x01")
    with pytest.raises(ConnectIpError, match="ended inside a capsule"):
        client.receive_end()


def test_senders_refuse_what_the_rfc_forbids(
    client: ConnectIpSession, proxy: ConnectIpSession
) -> None:
    with pytest.raises(ValueError, match="no request 1"):
        proxy.assign_addresses([AssignedAddress(1, CLIENT_V4)])
    with pytest.raises(ValueError, match="asks for no address"):
        client.request_addresses([])
    with pytest.raises(ValueError, match="must not precede"):
        proxy.advertise_routes(EVERYTHING * 2)
    with pytest.raises(ValueError, match="routes must be advertised before"):
        proxy.assign_dns(DNS)
    with pytest.raises(ValueError, match="client assigns no DNS"):
        client.assign_dns(DNS)
    assert (proxy.peer_addresses, proxy.local_routes, proxy.dns) == ((), (), ())


@given(cuts=st.lists(st.integers(0, 400), max_size=30))
def test_events_do_not_depend_on_how_the_stream_is_split(cuts: list[int]) -> None:
    proxy = ConnectIpSession(Role.PROXY)
    ranges = [IPAddressRange(IPv4Address(n), IPv4Address(n)) for n in range(0, 30, 2)]
    stream = (
        proxy.assign_addresses([AssignedAddress(0, CLIENT_V4)])
        + proxy.advertise_routes(ranges)
        + proxy.assign_dns(DNS)
    )
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    client = ConnectIpSession(Role.CLIENT)
    events = [
        event for start, end in pairwise(places) for event in client.receive(stream[start:end])
    ]
    client.receive_end()
    assert events == ConnectIpSession(Role.CLIENT).receive(stream)


@given(context=st.integers(0, MAX_VARINT), payload=st.binary(max_size=64))
def test_the_context_id_is_split_from_the_payload(context: int, payload: bytes) -> None:
    assert split_context(encode_varint(context) + payload) == (context, payload)


@pytest.mark.parametrize("cut_short", [b"", b"\x40", b"\xc0\0\0"])
def test_a_datagram_without_a_whole_context_id_has_none(cut_short: bytes) -> None:
    assert split_context(cut_short) is None


def test_context_id_zero_may_be_written_long() -> None:
    assert split_context(b"\x40\x00packet") == (CONTEXT_ID_IP, b"packet")
