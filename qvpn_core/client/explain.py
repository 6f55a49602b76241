"""What a plan means to a person: which way a destination goes, and what may surprise. Pure.

The plan is the planner's; this only reads it, as the kernel does: the longest match decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from qvpn_core.client.planner import RoutePolicy, SystemState, is_lan
from qvpn_core.net.plan import IPAddress, KillSwitch, Network, NetworkPlan, RouteKind, RouteReason

Way = Literal["tunnel", "direct", "refused"]

#: Warnings that a person still reads.
MAX_WARNINGS: Final = 8


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which way a destination goes and the prefix of our table that says so, if one does."""

    destination: IPAddress
    way: Way
    rule: Network | None
    words: str


def explain(
    plan: NetworkPlan | None, destination: IPAddress, kill_switch: KillSwitch | None = None
) -> Explanation:
    """Which way unmarked traffic to `destination` goes, as the kernel decides.

    Under the tunnel's `plan`, None when there is no tunnel, and under the kill switch. Addresses of
    the machine's other links are not known here.
    """
    own = () if plan is None else plan.addresses
    if any(destination == address.ip for address in own):
        words = f"{destination} is this device's own address in the tunnel"
        return Explanation(destination, "direct", None, words)
    matching = [] if plan is None else [it for it in plan.routes if destination in it.prefix]
    route = max(matching, key=lambda route: route.prefix.prefixlen, default=None)
    direct = route is None or route.kind == "throw"
    if direct and kill_switch is not None and not destination.is_loopback:
        if kill_switch.blocks(destination):
            words = f"{destination} is refused: beside the tunnel the kill switch blocks it"
            return Explanation(destination, "refused", route.prefix if route else None, words)
    if route is None:
        why = "no tunnel is up" if plan is None else "nothing that uses the tunnel covers it"
        return Explanation(destination, "direct", None, f"{destination} goes direct: {why}")
    way, verb = _WAYS[route.kind]
    why = _WORDS[route.reason].format(prefix=route.prefix, version=destination.version)
    endpoints = () if plan is None else plan.endpoints
    if way == "tunnel" and any(destination == address for address, _port in endpoints):
        why += "; only qvpn's own packets to the gateway go direct"
    return Explanation(destination, way, route.prefix, f"{destination} {verb}: {why}")


def warnings(
    policy: RoutePolicy,
    plan: NetworkPlan,
    state: SystemState,
    kill_switch: KillSwitch | None = None,
) -> tuple[str, ...]:
    """What a person may not expect of `plan` on this machine, a line each, MAX_WARNINGS at most."""
    return tuple(islice(_warnings(policy, plan, state, kill_switch), MAX_WARNINGS))


def _warnings(
    policy: RoutePolicy, plan: NetworkPlan, state: SystemState, kill_switch: KillSwitch | None
) -> Iterator[str]:
    for rule in state.rules_before:
        yield f"a routing rule of another program (priority {rule}) decides before qvpn's"
    if kill_switch is not None and kill_switch.protected is None:
        whole = {it.prefix.version for it in plan.routes if it.prefix.prefixlen == 0}
        if len(whole) < 2:
            yield (
                "the gateway does not carry everything, and the kill switch refuses the rest: "
                "send only the gateway's networks into the tunnel (--only)"
            )
    specific = [
        route.prefix
        for route in plan.routes
        if route.kind == "tunnel" and route.prefix.prefixlen > 0
    ]
    for attached in state.attached:
        network, link = attached.network, attached.link
        # A prefix that has parts behind the gateway and parts here is judged by its first host.
        way = explain(plan, network.network_address + 1).way
        remote = any(_overlap(network, other) for other in specific)
        if way == "direct" and remote:
            yield f"{network} is on {link} and behind the gateway: it goes to {link}"
        elif way == "direct":
            continue
        elif remote:
            yield f"{network} is on {link} and behind the gateway: it uses the tunnel"
        elif is_lan(network):
            yield (
                f"{network} on {link} is out of reach: to keep it, leave the LAN out of the tunnel "
                "(--except lan)"
            )
        elif policy.lan and network.version == 4:  # IPv6 has link-local addresses for neighbours
            yield (
                f"{network} on {link} is out of reach, as it is too large or too public for a "
                f"LAN: if you trust it, leave it out of the tunnel (--except {network})"
            )


#: What each kind of route means, as a word and as a verb.
_WAYS: Final[dict[RouteKind, tuple[Way, str]]] = {
    "tunnel": ("tunnel", "uses the tunnel"),
    "throw": ("direct", "goes direct"),
    "unreachable": ("refused", "is refused"),
}

_WORDS: Final[dict[RouteReason, str]] = {
    "advertised": "the gateway carries {prefix} and the route policy wants it there",
    "excluded": "the route policy excludes {prefix}",
    "lan": "the route policy excludes the LAN, {prefix}",
    "local-scope": "{prefix} means this machine or its own link",
    "no-family": "the tunnel carries no IPv{version}, and direct it would leak",
    "not-advertised": "the route policy wants {prefix} in the tunnel, the gateway lacks it",
}


def _overlap(left: Network, right: Network) -> bool:
    return left.version == right.version and left.overlaps(right)
