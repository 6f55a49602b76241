"""Messages survive the way there and back; what a session may not ask for does not."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_interface, ip_network
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client import planner
from qvpn_core.helper import protocol, wire
from qvpn_core.helper.errors import NotAllowed
from qvpn_core.helper.protocol import MAX_MESSAGE, MAX_PREFIXES, Prefixes, ProtocolError
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import KillSwitch, NetworkPlan, Route, RouteKind, RouteReason

addresses = st.ip_addresses().filter(
    lambda it: (
        not (
            it.is_loopback
            or it.is_multicast
            or it.is_unspecified
            or it.is_link_local
            or getattr(it, "ipv4_mapped", None)
            or str(it) == "255.255.255.255"
        )
    )
)
networks = st.builds(
    lambda address, length: ip_network((address, min(length, address.max_prefixlen)), strict=False),
    st.ip_addresses(),
    st.integers(0, 128),
)
routes = st.builds(
    Route, networks, st.sampled_from(get_args(RouteKind)), st.sampled_from(get_args(RouteReason))
)
plans = st.builds(
    NetworkPlan,
    st.lists(addresses.map(ip_interface), min_size=1, max_size=4, unique=True).map(tuple),
    st.integers(1280, protocol.MAX_MTU),
    st.lists(routes, max_size=30, unique_by=lambda route: route.prefix).map(tuple),
    st.lists(st.tuples(addresses, st.integers(1, 65535)), max_size=4).map(tuple),
)


def there_and_back(request: protocol.Request) -> protocol.Request:
    return protocol.decode_request(protocol.encode(request))


@given(plans)
def test_a_network_plan_arrives_as_it_was_sent(plan: NetworkPlan) -> None:
    request = there_and_back(protocol.Apply(wire.pack_network(plan)))
    assert isinstance(request, protocol.Apply)
    came = wire.unpack_network(request.network)
    assert (came.addresses, came.mtu, came.endpoints) == (plan.addresses, plan.mtu, plan.endpoints)
    assert set(came.routes) == set(plan.routes)
    assert len(came.routes) == len(plan.routes)


@given(
    st.none() | st.lists(networks, max_size=20).map(tuple),
    st.lists(networks, max_size=20).map(tuple),
    st.booleans(),
    st.booleans(),
)
def test_a_kill_switch_arrives_as_it_was_sent(
    protected: tuple[planner.Network, ...] | None,
    exempt: tuple[planner.Network, ...],
    lan: bool,
    always: bool,
) -> None:
    plan = KillSwitch(protected, exempt, lan, always)
    request = there_and_back(protocol.SetFirewall(wire.pack_kill_switch(plan)))
    assert isinstance(request, protocol.SetFirewall)
    assert request.kill_switch is not None
    came = wire.unpack_kill_switch(request.kill_switch)
    assert set(came.exempt) == set(exempt)
    assert (came.protected is None) == (protected is None)
    assert set(came.protected or ()) == set(protected or ())
    assert (came.lan, came.always) == (lan, always)


def test_a_dns_plan_arrives_as_it_was_sent() -> None:
    plan = DnsPlan((ip_address("10.0.0.53"), ip_address("fd00::53")), ("corp.example",), ("a.b",))
    request = there_and_back(
        protocol.Apply(protocol.Network(("10.0.0.1",), 1300, (), ()), wire.pack_dns(plan))
    )
    assert isinstance(request, protocol.Apply)
    assert request.dns is not None
    assert wire.unpack_dns(request.dns) == plan


def test_the_largest_plans_fit_into_a_message_and_a_message_into_a_socket() -> None:
    everything = tuple(ip_network((i << 64, 64)) for i in range(MAX_PREFIXES))
    route = [Route(prefix, "tunnel", "advertised") for prefix in everything]
    plan = NetworkPlan((ip_interface("fd86::2"),), 1300, tuple(route))
    requests = (
        protocol.Apply(wire.pack_network(plan)),
        protocol.SetFirewall(wire.pack_kill_switch(KillSwitch(everything, everything))),
    )
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        for request in requests:
            ours.send(protocol.encode(request))
            assert protocol.decode_request(its.recv(MAX_MESSAGE)) == request
    assert planner.MAX_ROUTES <= MAX_PREFIXES


def test_more_prefixes_than_that_are_refused_before_they_are_sent() -> None:
    everything = tuple(ip_network((i << 64, 64)) for i in range(MAX_PREFIXES + 1))
    with pytest.raises(NotAllowed, match="4097 networks"):
        wire.pack_prefixes(everything)


@given(st.binary(max_size=200))
def test_bytes_are_prefixes_or_refused(data: bytes) -> None:
    try:
        found = wire.unpack_prefixes(Prefixes(v4=data, v6=data))
    except NotAllowed:
        return
    assert wire.pack_prefixes(found) == Prefixes(v4=data, v6=data)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"do": "exec", "argv": ["id"]},
        {"do": "hello"},
        {"do": "hello", "version": 1, "more": 1},
        {"do": "open-tun", "mtu": 100},
        {"do": "open-tun", "mtu": 1300, "name": "eth0"},
        {"do": "sign-in", "seconds": protocol.MAX_SIGN_IN + 1},
        {"do": "sign-in", "seconds": 60, "uid": 0},
        {"do": "apply", "network": {"addresses": [], "mtu": 1300, "routes": [], "endpoints": 1}},
    ],
)
def test_what_is_not_in_the_closed_set_is_no_request(document: object) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(msgspec.msgpack.encode(document))


def test_no_request_can_name_a_file_a_command_or_an_interface() -> None:
    """The closed set's text values are addresses and domains; everything else is a number."""
    texts = set()

    def walk(kind: object) -> None:
        fields = getattr(kind, "__struct_fields__", None)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and fields:
            for field in msgspec.structs.fields(kind):
                if "_Address" in str(field.type) or "str" in repr(field.type):
                    texts.add(f"{kind.__name__}.{field.name}")
                walk(field.type)
        for part in get_args(kind):
            walk(part)

    for request in get_args(protocol.Request):
        walk(request)
    assert texts == {
        "Network.addresses", "Network.endpoints", "Dns.servers", "Dns.domains", "Dns.search",
    }  # fmt: skip
