"""What a list of destinations would do on this machine, before anybody applies it. Pure.

The planner answers; this only asks it, and finds the line that is behind an answer. Without a
session nobody knows what the gateway carries: then it is taken to carry everything, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Final

from qvpn_core.client.explain import Way, explain
from qvpn_core.client.planner import (
    GatewayOffer,
    RoutePolicy,
    SystemState,
    plan_kill_switch,
    plan_network,
)
from qvpn_core.client.route_list import (
    Entry,
    Finding,
    Lookups,
    RouteList,
    compile_policy,
    decisive,
    findings,
)
from qvpn_core.client.states import KillSwitchMode
from qvpn_core.net.plan import IPAddress, KillSwitch, Network, NetworkPlan, RouteKind, RouteReason

#: What any gateway may be hoped to be: addresses of documentation (RFC 5737, RFC 3849), all routes.
_ANY: Final = GatewayOffer(
    (ip_interface("192.0.2.1/32"), ip_interface("2001:db8::1/128")),
    (ip_network("0.0.0.0/0"), ip_network("::/0")),
)
_MTU: Final = 1393
_WAYS: Final[dict[RouteKind, Way]] = {
    "tunnel": "tunnel",
    "throw": "direct",
    "unreachable": "refused",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A resulting route: the most specific row that covers a destination decides."""

    prefix: Network
    way: Way
    reason: RouteReason


@dataclass(frozen=True, slots=True)
class Answer:
    """Where one address would go, which route says so, and which line of the list is behind it."""

    address: IPAddress
    way: Way
    rule: Network | None
    #: None when no route of ours covers the address, or the kill switch decides.
    reason: RouteReason | None
    entry: Entry | None
    #: The core's own sentence.
    words: str


@dataclass(frozen=True, slots=True)
class Preview:
    """The answer of the planner."""

    routes: RouteList
    lookups: Lookups
    policy: RoutePolicy
    plan: NetworkPlan
    kill_switch: KillSwitch | None
    #: Whether what the gateway carries is only hoped.
    guessed: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        """The resulting routes, but for those that every tunnel has, most general first."""
        return tuple(
            Row(route.prefix, _WAYS[route.kind], route.reason)
            for route in sorted(
                self.plan.routes,
                key=lambda it: (it.prefix.version, it.prefix.network_address, it.prefix.prefixlen),
            )
            if route.reason != "local-scope"
        )

    def where(self, address: IPAddress) -> Answer:
        """Where a program's packet to `address` would go."""
        found = explain(self.plan, address, self.kill_switch)
        route = next((it for it in self.plan.routes if it.prefix == found.rule), None)
        # Where the kill switch decides, the route's reason is not why.
        decides = route is not None and _WAYS[route.kind] == found.way
        entry = decisive(self.routes, self.lookups, ip_network(address))
        return Answer(
            address,
            found.way,
            found.rule,
            route.reason if route is not None and decides else None,
            entry,
            found.words,
        )


def preview(
    routes: RouteList,
    lookups: Lookups,
    offer: GatewayOffer | None,
    state: SystemState,
    *,
    mtu: int = _MTU,
    kill_switch: KillSwitchMode = "off",
) -> Preview:
    """What the planner makes of a list. Raises what `compile_policy` and `plan_network` raise."""
    policy = compile_policy(routes, lookups)
    guessed = offer is None or not offer.addresses
    taken = _ANY if offer is None or not offer.addresses else offer
    plan = plan_network(policy, taken, state, mtu if not guessed else _MTU)
    held = None
    if kill_switch != "off":
        held = plan_kill_switch(policy, state, always=kill_switch == "always")
    return Preview(routes, lookups, policy, plan, held, guessed)


def oddities(
    routes: RouteList, lookups: Lookups, offer: GatewayOffer | None
) -> tuple[Finding, ...]:
    """What is odd about a list, as far as it is known what the gateway carries."""
    carried: Sequence[Network] | None = None
    if offer is not None and offer.addresses:
        carried = offer.routes
    return findings(routes, lookups, carried)
