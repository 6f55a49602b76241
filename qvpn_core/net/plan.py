"""What a client wants of the kernel's network, and the order in which one wish becomes another.

Pure data and pure functions. Choosing the routes is the planner's work
(:mod:`qvpn_core.client.planner`), applying them :mod:`qvpn_core.net.apply`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Literal

IPAddress = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

#: What a route in our table does, as rtm_type (linux/rtnetlink.h) says it: ``tunnel`` is a unicast
#: route out of the TUN, ``throw`` leaves the table for the next rule, ``unreachable`` refuses.
RouteKind = Literal["tunnel", "throw", "unreachable"]

#: Why the planner made a route; ``explain`` turns it into words.
RouteReason = Literal["advertised", "excluded", "lan", "local-scope", "no-family", "not-advertised"]


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of our table. The most specific entry that covers a destination decides."""

    prefix: Network
    kind: RouteKind
    reason: RouteReason


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Everything a tunnel needs from the kernel. A prefix occurs in `routes` at most once."""

    #: Host addresses of the TUN (/32 and /128).
    addresses: tuple[Interface, ...]
    #: Bytes of the largest IP packet.
    mtu: int
    routes: tuple[Route, ...]
    #: The gateway's addresses and ports as the transport uses them: what arrives from there passes
    #: reverse-path filters although unmarked traffic to it would use the tunnel.
    endpoints: tuple[tuple[IPAddress, int], ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions whose unmarked traffic must meet our table, in order."""
        return tuple(sorted({route.prefix.version for route in self.routes}))


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """What must not leave beside the tunnel. `exempt` always wins over `protected`."""

    #: None for everything.
    protected: tuple[Network, ...] | None = None
    #: What may, because the user keeps it out of the tunnel; the networks of the LAN among it.
    exempt: tuple[Network, ...] = ()
    #: Whether the hosts of the link may be searched for, and spoken to by link-local addresses.
    lan: bool = False
    #: Whether it outlives session and reboot, until somebody's ``unlock``.
    always: bool = False

    def blocks(self, destination: IPAddress) -> bool:
        """Whether a program's packet to `destination` is refused outside the tunnel.

        Speaks of addresses that mean another host; loopback and discovery have rules of their own.
        """
        if any(destination in network for network in self.exempt):
            return False
        if self.lan and destination.is_link_local:
            return False
        return self.protected is None or any(destination in it for it in self.protected)


def transition(old: tuple[Route, ...], new: tuple[Route, ...]) -> Iterator[tuple[bool, Route]]:
    """The steps from one set of routes to another: ``(True, add or replace)``, ``(False, delete)``.

    New entries come most specific first, stale ones leave least specific first. That order keeps a
    promise: between any two steps, every destination goes where `old` or where `new` sends it,
    never a third way.
    """
    before = {route.prefix: route.kind for route in old}
    after = {route.prefix for route in new}
    for route in sorted(new, key=_specificity, reverse=True):
        if before.get(route.prefix) != route.kind:
            yield True, route
    for route in sorted(old, key=_specificity):
        if route.prefix not in after:
            yield False, route


def _specificity(route: Route) -> int:
    return route.prefix.prefixlen
