"""The route planner: a route policy and a gateway's offer become a :class:`NetworkPlan`. Pure.

Three sets decide, per IP version. *Wanted* is what the policy sends into the tunnel, *carried* what
the gateway advertises in a version the tunnel has an address for, *excluded* what the policy or the
scope of an address keeps out. Then, the first line that applies::

    excluded                    direct    a throw route, on to the main table
    wanted and carried          tunnel    a route out of the TUN
    wanted, must not leak       refused   an unreachable route, answered at once
    anything else               direct    no entry

"Must not leak" is what ``only`` names explicitly, and under ``all`` a whole IP version that a full
tunnel lacks. On-link subnets get no exemption: a hostile DHCP server chooses those. Whoever wants
the printer of the LAN excludes its subnet, or whatever LAN there is; then still only networks that
can be one (`is_lan`).

With a kill switch, "direct" is for excluded destinations and for what ``only`` does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Network,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final, Literal

from qvpn_core.errors import GatewayRefused, PathTooNarrow, UsageError
from qvpn_core.net.plan import (
    Interface,
    IPAddress,
    KillSwitch,
    Network,
    NetworkPlan,
    Route,
    RouteReason,
)
from qvpn_core.net.survey import Attached

RouteMode = Literal["all", "only", "all-except"]

#: A plan never holds more routes; a gateway that advertises more is refused.
MAX_ROUTES: Final = 4096
#: RFC 8200 section 5.
MIN_IPV6_MTU: Final = 1280

_WHOLE: Final[dict[int, Network]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
#: The part of a version's space that counts when asking whether a tunnel is a full one.
_GLOBAL: Final[dict[int, Network]] = {4: ip_network("0.0.0.0/0"), 6: ip_network("2000::/3")}
_PRIVATE: Final = tuple(  # RFC 1918 section 3
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")  # RFC 4193 section 3.1
#: Loopback, link-local, multicast and broadcast mean this machine or this link, never a far one.
_LOCAL_SCOPE: Final[dict[int, tuple[Network, ...]]] = {
    4: tuple(map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255"))),
    6: tuple(map(ip_network, ("::1", "fe80::/10", "ff00::/8"))),
}


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """Which destinations a user wants in the tunnel. `excluded` always wins over `destinations`.

    `destinations` belongs to mode ``only`` and is empty otherwise. Modes ``all`` and ``all-except``
    plan alike; two names exist because people ask for them separately.
    """

    mode: RouteMode = "all"
    destinations: tuple[Network, ...] = ()
    excluded: tuple[Network, ...] = ()
    #: Whether to exclude the networks of whatever LAN this machine is in, too.
    lan: bool = False

    def __post_init__(self) -> None:
        if (self.mode == "only") != bool(self.destinations):
            raise UsageError(
                f"the route policy {self.mode!r} does not fit its destinations",
                "name destinations with 'only', and with 'only' alone",
            )


@dataclass(frozen=True, slots=True)
class GatewayOffer:
    """What a gateway assigned and advertised (RFC 9484 sections 4.7.1 and 4.7.3)."""

    addresses: tuple[Interface, ...]
    routes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class SystemState:
    """What the planner must know of the machine."""

    #: (address, port) of the gateway as the transport's sockets see it.
    endpoints: tuple[tuple[str, int], ...] = ()
    #: The networks of this machine's own links.
    attached: tuple[Attached, ...] = ()
    #: Priorities of others' rules that decide before ours.
    rules_before: tuple[int, ...] = ()


def plan_network(
    policy: RoutePolicy, offer: GatewayOffer, state: SystemState, mtu: int
) -> NetworkPlan:
    """Plan the network of a tunnel whose largest IP packet is `mtu` bytes.

    Raises PathTooNarrow when the tunnel has an IPv6 address and `mtu` is below 1280, GatewayRefused
    when nothing was assigned or the plan would exceed MAX_ROUTES.
    """
    addresses = tuple(dict.fromkeys(map(_host, offer.addresses)))
    if not addresses:
        raise GatewayRefused("the gateway assigned no address", "ask its administrator")
    versions = {address.version for address in addresses}
    if 6 in versions and mtu < MIN_IPV6_MTU:
        raise PathTooNarrow(
            f"the path carries packets of {mtu} bytes, IPv6 in the tunnel needs {MIN_IPV6_MTU}",
            "try another network or the tls transport",
        )
    carried = {
        version: _collapse(_of(version, offer.routes)) if version in versions else ()
        for version in (4, 6)
    }
    full = any(_is_full(version, carried[version]) for version in (4, 6))
    lan = lan_networks(state) if policy.lan else ()
    routes = [
        route
        for version in (4, 6)
        for route in _table(
            version, policy, _of(version, lan), _of(version, offer.routes), carried[version], full
        )
    ]
    if len(routes) > MAX_ROUTES:
        raise GatewayRefused(
            f"the tunnel would need {len(routes)} routes, more than {MAX_ROUTES}",
            "ask the gateway's administrator to advertise fewer, or use --only",
        )
    endpoints = tuple(dict.fromkeys(map(_endpoint, state.endpoints)))
    return NetworkPlan(addresses, mtu, tuple(routes), endpoints)


def plan_kill_switch(policy: RoutePolicy, state: SystemState, *, always: bool) -> KillSwitch:
    """What `policy` forbids beside the tunnel, whatever the gateway carries, connected or not."""
    protected = policy.destinations if policy.mode == "only" else None
    lan = lan_networks(state) if policy.lan else ()
    return KillSwitch(protected, (*policy.excluded, *lan), lan=policy.lan, always=always)


def lan_networks(state: SystemState) -> tuple[Network, ...]:
    """The networks of this machine's links that can be a LAN, in order, each once."""
    found = (attached.network for attached in state.attached)
    return tuple(dict.fromkeys(network for network in found if is_lan(network)))


def _table(
    version: int,
    policy: RoutePolicy,
    lan: tuple[Network, ...],
    advertised: tuple[Network, ...],
    carried: tuple[Network, ...],
    full: bool,
) -> list[Route]:
    """Our table for one IP version, so that its longest match is the module's four lines."""
    wanted: tuple[Network, ...] = (_WHOLE[version],)
    if policy.mode == "only":
        wanted = _collapse(_of(version, policy.destinations))
    excluded = _collapse(_of(version, policy.excluded))
    local = _LOCAL_SCOPE[version]
    kept_out = _cover((*excluded, *lan, *local))

    tunnel = _collapse(_intersection(wanted, carried))
    no_leak: tuple[Network, ...] = ()
    if policy.mode == "only" or (full and not carried):
        no_leak = wanted
    elif not carried:  # Advertised perhaps, but without an address to use it with.
        no_leak = _collapse(advertised)
    in_tunnel = _cover(tunnel)

    routes = [Route(prefix, "tunnel", "advertised") for prefix in tunnel if not kept_out(prefix)]
    routes += [
        Route(prefix, "unreachable", "not-advertised" if carried else "no-family")
        for prefix in no_leak
        if not in_tunnel(prefix) and not kept_out(prefix)
    ]
    # An exclusion needs an entry only where a wider entry of ours would catch it.
    caught = _cover([route.prefix for route in routes])
    reasons: dict[Network, RouteReason] = dict.fromkeys(local, "local-scope")
    reasons |= dict.fromkeys(lan, "lan")
    reasons |= dict.fromkeys(excluded, "excluded")
    routes += [Route(prefix, "throw", why) for prefix, why in reasons.items() if caught(prefix)]
    return routes


def is_lan(network: Network) -> bool:
    """Whether a network on a link may be left out of the tunnel because the user trusts the LAN.

    Whoever runs the DHCP server or router chooses it, and could so pull far hosts out of the tunnel
    (CVE-2023-36672): it must be private, and no larger than people make a LAN.
    """
    if network.version == 6:
        return network.prefixlen >= 64 and network.subnet_of(_UNIQUE_LOCAL)
    return network.prefixlen >= 16 and any(map(network.subnet_of, _PRIVATE))


def _of(version: int, networks: Iterable[Network]) -> tuple[Network, ...]:
    return tuple(network for network in networks if network.version == version)


def _collapse(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The same addresses in the fewest prefixes. All of one version."""
    return tuple(collapse_addresses(networks))  # type: ignore[type-var]


def _cover(prefixes: Iterable[Network]) -> Callable[[Network], bool]:
    """A test whether a prefix lies within one of `prefixes`: one set look-up per length in use."""
    known = set(prefixes)
    lengths = sorted({prefix.prefixlen for prefix in known})

    def covered(prefix: Network) -> bool:
        return any(
            prefix.supernet(new_prefix=length) in known
            for length in lengths
            if length <= prefix.prefixlen
        )

    return covered


def _intersection(left: tuple[Network, ...], right: tuple[Network, ...]) -> list[Network]:
    """Two prefixes are nested or disjoint, so the intersection is made of whole prefixes."""
    in_left, in_right = _cover(left), _cover(right)
    return [*filter(in_right, left), *filter(in_left, right)]


def _is_full(version: int, carried: tuple[Network, ...]) -> bool:
    """Whether a tunnel is meant for everything: it carries most of the version's global space.

    Not all of it, for many gateways leave private or reserved ranges out.
    """
    space = _GLOBAL[version]
    inside = _collapse(_intersection((space,), carried))
    return 2 * sum(prefix.num_addresses for prefix in inside) > space.num_addresses


def _host(interface: Interface) -> Interface:
    """The address to use out of an assigned prefix: the one given, or the first behind a zero."""
    network = interface.network
    base = interface.ip == network.network_address and network.num_addresses > 1
    return ip_interface(interface.ip + 1 if base else interface.ip)


def _endpoint(endpoint: tuple[str, int]) -> tuple[IPAddress, int]:
    """Without zone, and IPv4 as IPv4 where a dual-stack socket maps it (RFC 4291 2.5.5.2)."""
    address = ip_address(endpoint[0].partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped, endpoint[1]
    return address, endpoint[1]
