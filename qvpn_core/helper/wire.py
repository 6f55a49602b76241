"""Plans to messages and back. Coming in, every value is checked against what a session may ask for.

Pure. `NotAllowed` says what was asked for and is not to be had; after it nothing has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface

from qvpn_core.helper import protocol
from qvpn_core.helper.errors import NotAllowed
from qvpn_core.helper.protocol import MAX_PREFIXES, Prefixes
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import (
    IPAddress,
    KillSwitch,
    Network,
    NetworkPlan,
    Route,
    RouteKind,
    RouteReason,
)

_MIN_IPV6_MTU = 1280  # RFC 8200 section 5


def pack_prefixes(networks: Iterable[Network]) -> Prefixes:
    """`networks` in the order given, those of IPv4 first. Raises NotAllowed for too many."""
    networks = tuple(networks)
    _check_count(networks)
    packed = {4: bytearray(), 6: bytearray()}
    for network in networks:
        packed[network.version].append(network.prefixlen)
        packed[network.version] += network.network_address.packed
    return Prefixes(bytes(packed[4]), bytes(packed[6]))


def unpack_prefixes(prefixes: Prefixes) -> tuple[Network, ...]:
    """The networks. Raises NotAllowed for what is none, and for too many."""
    v4, v6 = prefixes.v4, prefixes.v6
    if len(v4) % 5 or len(v6) % 17:
        raise NotAllowed("a list of networks is cut off")
    try:
        networks: tuple[Network, ...] = (
            *(IPv4Network((v4[i + 1 : i + 5], v4[i])) for i in range(0, len(v4), 5)),
            *(IPv6Network((v6[i + 1 : i + 17], v6[i])) for i in range(0, len(v6), 17)),
        )
    except ValueError as error:
        raise NotAllowed(f"a network is none ({error})") from None
    _check_count(networks)
    return networks


def pack_network(plan: NetworkPlan) -> protocol.Network:
    """A plan as a message."""
    groups: dict[tuple[RouteKind, RouteReason], list[Network]] = {}
    for route in plan.routes:
        groups.setdefault((route.kind, route.reason), []).append(route.prefix)
    return protocol.Network(
        addresses=tuple(str(address.ip) for address in plan.addresses),
        mtu=plan.mtu,
        routes=tuple(
            protocol.Routes(kind, reason, pack_prefixes(prefixes))
            for (kind, reason), prefixes in groups.items()
        ),
        endpoints=tuple((str(address), port) for address, port in plan.endpoints),
    )


def unpack_network(message: protocol.Network) -> NetworkPlan:
    """The plan. Raises NotAllowed."""
    addresses = tuple(ip_interface(_host(text, "tunnel address")) for text in message.addresses)
    if not addresses:
        raise NotAllowed("a tunnel without an address")
    if len(set(addresses)) != len(addresses):
        raise NotAllowed("a tunnel address twice")
    if message.mtu < _MIN_IPV6_MTU and any(address.version == 6 for address in addresses):
        raise NotAllowed(f"IPv6 in packets of {message.mtu} bytes")
    routes = tuple(
        Route(prefix, group.kind, group.reason)
        for group in message.routes
        for prefix in unpack_prefixes(group.prefixes)
    )
    _check_count(routes)
    if len({route.prefix for route in routes}) != len(routes):
        raise NotAllowed("two routes to one network")
    endpoints = tuple(
        (_host(text, "gateway", link_local=True), port) for text, port in message.endpoints
    )
    return NetworkPlan(addresses, message.mtu, routes, endpoints)


def pack_dns(plan: DnsPlan) -> protocol.Dns:
    """A plan as a message."""
    return protocol.Dns(tuple(map(str, plan.servers)), plan.domains, plan.search)


def unpack_dns(message: protocol.Dns) -> DnsPlan:
    """The plan. Raises NotAllowed."""
    servers = tuple(_host(text, "name server") for text in message.servers)
    try:
        return DnsPlan(servers, message.domains, message.search)
    except ValueError as error:
        raise NotAllowed(str(error)) from None


def pack_kill_switch(plan: KillSwitch) -> protocol.KillSwitch:
    """A plan as a message."""
    return protocol.KillSwitch(
        protected=None if plan.protected is None else pack_prefixes(plan.protected),
        exempt=pack_prefixes(plan.exempt),
        lan=plan.lan,
        always=plan.always,
    )


def unpack_kill_switch(message: protocol.KillSwitch) -> KillSwitch:
    """The plan. Raises NotAllowed."""
    return KillSwitch(
        protected=None if message.protected is None else unpack_prefixes(message.protected),
        exempt=unpack_prefixes(message.exempt),
        lan=message.lan,
        always=message.always,
    )


def _check_count(values: Sized) -> None:
    if len(values) > MAX_PREFIXES:
        raise NotAllowed(f"{len(values)} networks, more than {MAX_PREFIXES}")


def _host(text: str, what: str, *, link_local: bool = False) -> IPAddress:
    """A unicast address of one host somewhere, without a zone."""
    try:
        address = ip_address(text)
    except ValueError:
        raise NotAllowed(f"{text!r} is no address") from None
    mapped = getattr(address, "ipv4_mapped", None)
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or (address.is_link_local and not link_local)
        or mapped is not None
        or "%" in text
        or str(address) == "255.255.255.255"
    ):
        raise NotAllowed(f"{text} as a {what}")
    return address
